"""Clouds that show no single object: too few points, a whole room, a street."""

from __future__ import annotations

import numpy as np

from hf_any3d.data.files import PointCloudData

ROOM_HEIGHT, ROOM_WIDTH = (1.8, 6.0), 2.2
"""Meters, smallest and largest height and smallest side of what may be a whole room."""
ROOM_SHARE = 0.4
"""Share of the points of a room that lie on its floor, ceiling and walls."""
FEW_POINTS = 32
"""Points of a cloud below which it shows no shape."""
LARGEST_OBJECT = 20.0
"""Meters, largest extent of a single object, in files whose unit is known."""


class NoObjectWarning(UserWarning):
    """A cloud that a model of objects was given shows no single object."""


def why_no_object(cloud: PointCloudData, up_axis: str) -> str | None:
    """Return why a cloud shows no object: too few points, its size, or that it is a whole room; None if it may."""
    points = cloud.points
    if cloud.faces is None and len(points) < FEW_POINTS:
        return f"{len(points)} points show no shape: the label is a guess"
    if (reason := why_too_large(cloud)) is not None:
        return reason
    low, size = points.min(axis=0), np.ptp(points, axis=0)  # (3,)
    height, sides = size["xyz".index(up_axis)], np.delete(size, "xyz".index(up_axis))
    if not (ROOM_HEIGHT[0] <= height <= ROOM_HEIGHT[1] and sides.min() >= ROOM_WIDTH):
        return None
    # What stands in the middle of its box is an object of this size.
    places = (points - low) / size
    if (np.abs(places - 0.5) > 0.47).any(axis=1).mean() < ROOM_SHARE:
        return None
    extent = " × ".join(f"{length:.1f}" for length in size)
    return f"{extent} in size, in meters a whole room: label its points (hf-any3d segment) or cut an object out"


def why_too_large(cloud: PointCloudData) -> str | None:
    """Return why a cloud of a file in meters is too large for an object, None if it is not."""
    extent = float(np.ptp(cloud.points, axis=0).max()) * (cloud.meters_per_unit or 0)
    if extent <= LARGEST_OBJECT:
        return None
    return f"spans {extent:.0f} m: no single object; label its points (hf-any3d segment) or cut an object out"
