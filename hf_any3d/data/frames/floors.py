"""Find the piece of floor that an object was scanned with."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.data.files.point_cloud import MEASURED

_SAMPLE = 4096
"""Points that are drawn from a mesh."""
_THICKNESS = 0.04
"""Height of the layer that may be a floor, in largest extents of the cloud."""
_LEAST_SHARE, _LEAST_LEFT = 0.05, 32
"""Share of the points that a floor has at least, and number of points that an object on it has."""
_CELLS, _LEAST_FILLED = 8, 0.5
"""Cells along each side of the ground, and the share of them that a floor covers at least."""
_LARGEST_OBJECT = 0.8
"""Share of the ground's area that what stands on a floor takes at most."""


def find_floor(points: np.ndarray, up_axis: str) -> np.ndarray | None:
    """Find a floor below an object: a thin layer at the bottom, wider than all that is above it.

    A foot, such as that of a lamp, may look the same.

    Args:
        points: (points, 3) in any unit.
        up_axis: The axis that points up, "x", "y" or "z".

    Returns:
        (points,) bool, True for the floor; None if there is none.
    """
    up = "xyz".index(up_axis)
    heights = points[:, up]
    ground = np.delete(points, up, axis=1)  # (points, 2)
    low, size = ground.min(axis=0), np.ptp(ground, axis=0)
    # A few points below the floor are noise.
    is_floor = heights < np.quantile(heights, 0.01) + _THICKNESS * np.ptp(points, axis=0).max()
    if not size.all() or (~is_floor).sum() < _LEAST_LEFT or is_floor.mean() < _LEAST_SHARE:
        return None
    cells = np.minimum((ground[is_floor] - low) / size * _CELLS, _CELLS - 1).astype(int)
    filled = len(np.unique(cells, axis=0)) / _CELLS**2
    object_size = np.ptp(ground[~is_floor], axis=0)
    if filled < _LEAST_FILLED or object_size.prod() > _LARGEST_OBJECT * size.prod():
        return None
    return is_floor


def without_floor(cloud: PointCloudData, up_axis: str) -> PointCloudData | None:
    """Return the points of a cloud or mesh that are not on the floor below it; None if there is no floor."""
    if cloud.is_mesh:
        try:
            cloud = cloud.sample_surface(_SAMPLE)
        except PointCloudError:
            return None
    is_floor = find_floor(cloud.points, up_axis)
    if is_floor is None:
        return None
    arrays: dict[str, Any] = {}
    for name in ("colors", "normals", *MEASURED):
        values = getattr(cloud, name)
        if values is not None:
            arrays[name] = values[~is_floor]
    return PointCloudData(cloud.points[~is_floor], **arrays)
