"""Points of a file that an inventory leaves out: withheld ones, noise by its class, and those far from all others."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_any3d.data.far_points import FarPoints, without_far_points
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.data.las_classes import FAMILIES, UNCLASSIFIED
from hf_any3d_survey.inventory.terrain import Terrain

WITHHELD = "withheld"
"""Flag of LAS of points that are deleted but for their record."""


@dataclass(frozen=True)
class LeftOut:
    """Points of a file that are left out of ground, things and rasters.

    Attributes:
        total: Number of points of the file.
        rows: (rows,) numbers of the withheld points and of noise.
        points: (rows, 3) float64 coordinates of these, as in the file.
        is_withheld: (rows,) bool, which of these are withheld.
        far: Points far from all others, among what is left; None for none.
    """

    total: int
    rows: np.ndarray
    points: np.ndarray
    is_withheld: np.ndarray
    far: FarPoints | None

    @property
    def _kept(self) -> np.ndarray:
        """Numbers of the points that are neither withheld nor noise."""
        is_kept = np.ones(self.total, bool)
        is_kept[self.rows] = False
        return np.flatnonzero(is_kept)

    def without(self, cloud: PointCloudData) -> PointCloudData:
        """Return the cloud without these points."""
        if len(self.rows):
            cloud = _part(cloud, self._kept)
        return cloud if self.far is None else without_far_points(cloud, self.far)

    def heights_above(self, terrain: Terrain, factor: np.ndarray) -> np.ndarray:
        """Return meters of withheld points and noise above a terrain, (rows,); `factor` (3,) is the file's unit."""
        return terrain.heights_above(self.points * factor)

    def spread(self, values: np.ndarray, left_out: Any, far: Any) -> np.ndarray:
        """Return values (points,) for all points of the file.

        Args:
            values: (others,) values of the points that are not left out.
            left_out: Value of withheld points and noise, or (rows,) values.
            far: Value of points that are far.
        """
        if self.far is not None:
            values = self.far.spread(values, far)
        every = np.empty(self.total, values.dtype)
        every[self._kept] = values
        every[self.rows] = left_out
        return every


def split_left_out(
    cloud: PointCloudData,
    split_far: Callable[[PointCloudData, object], tuple[PointCloudData, FarPoints | None]],
    name: object = None,
) -> tuple[PointCloudData | None, LeftOut | None]:
    """Leave out withheld points, noise, and points far from all others.

    Args:
        cloud: The scan.
        split_far: Returns a scan without its far points, about which it warns.
        name: Name of the scan in warnings.

    Returns:
        The cloud, None if nothing is left of it; and what was left out, None if nothing was.
    """
    is_withheld = (cloud.further or {}).get(WITHHELD, np.zeros(len(cloud), bool)).astype(bool)
    rows = np.flatnonzero(is_withheld | np.isin(codes_of_file(cloud), FAMILIES["noise"]))
    if len(rows) == len(cloud):
        return None, None
    points = cloud.points[rows].astype(np.float64)
    if cloud.offset is not None:
        points += cloud.offset
    left_out = LeftOut(len(cloud), rows, points, is_withheld[rows], None)
    others, far = split_far(left_out.without(cloud), name)
    if far is None and not len(rows):
        return cloud, None
    return others, LeftOut(left_out.total, rows, points, left_out.is_withheld, far)


def codes_of_file(cloud: PointCloudData) -> np.ndarray:
    """Return the classes of points by the codes of LAS, (points,) uint8; 0 where the file gives none."""
    if cloud.labels is None or cloud.label_codes is None:
        return np.zeros(len(cloud), np.uint8)
    codes = cloud.labels.clip(0, 255).astype(np.uint8)
    codes[np.isin(codes, UNCLASSIFIED)] = 0
    return codes


def _part(cloud: PointCloudData, rows: np.ndarray) -> PointCloudData:
    """Return points of a cloud with what is known of each."""
    # Not through the constructor, which would make floats of returns that are bytes.
    part = copy(cloud)
    part.scanner = None
    for name in ("points", "labels", *ATTRIBUTES.values()):
        values = getattr(cloud, name)
        if values is not None:
            setattr(part, name, values[rows])
    if cloud.further is not None:
        part.further = {name: values[rows] for name, values in cloud.further.items() if name != WITHHELD}
    return part
