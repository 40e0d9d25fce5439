"""Points of a file that an inventory leaves out: withheld ones, noise by its class, and those far from all others."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_any3d.data.checks.left_out_points import WITHHELD, left_out_words, rows_of_cloud, why_left_out
from hf_any3d.data.classes.las_classes import UNCLASSIFIED
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.frames.far_points import FarPoints, without_far_points
from hf_any3d.utils.messages import printable
from hf_any3d_survey.inventory.terrain import Terrain


@dataclass(frozen=True)
class LeftOut:
    """Points of a file that are left out of ground, things and rasters.

    Attributes:
        total: Number of points of the file.
        rows: (rows,) numbers of the withheld points and of noise.
        points: (rows, 3) float64 coordinates of these, as in the file.
        is_withheld: (rows,) bool, which of these are withheld.
        reasons: Reason -> points that are left out for it.
        far: Points far from all others, among what is left; None for none.
    """

    total: int
    rows: np.ndarray
    points: np.ndarray
    is_withheld: np.ndarray
    reasons: Counter[str]
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
            cloud = rows_of_cloud(cloud, self._kept)
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
    """Leave out withheld points, noise, and points far from all others, with a warning.

    Args:
        cloud: The scan.
        split_far: Returns a scan without its far points, about which it warns.
        name: Name of the scan in warnings.

    Returns:
        The cloud, None if nothing is left of it; and what was left out, None if nothing was.
    """
    is_left_out, is_withheld = np.zeros((2, len(cloud)), bool)
    reasons: Counter[str] = Counter()
    # Synthetic points stay: they are the water or the ground that a program has drawn where nothing was measured.
    for reason, own in why_left_out(cloud, (WITHHELD,), noise=True):
        is_left_out |= own
        reasons[reason] = int(own.sum())
        if reason == WITHHELD:
            is_withheld = own
    rows = np.flatnonzero(is_left_out)
    if len(rows) == len(cloud):
        return None, None
    if reasons:
        warnings.warn(printable(left_out_words(reasons, len(cloud), name)), stacklevel=2)
    points = cloud.points[rows].astype(np.float64)
    if cloud.offset is not None:
        points += cloud.offset
    left_out = LeftOut(len(cloud), rows, points, is_withheld[rows], reasons, None)
    others, far = split_far(left_out.without(cloud), name)
    if far is None and not len(rows):
        return cloud, None
    return others, replace(left_out, far=far)


def codes_of_file(cloud: PointCloudData) -> np.ndarray:
    """Return the classes of points by the codes of LAS, (points,) uint8; 0 where the file gives none."""
    if cloud.labels is None or cloud.label_codes is None:
        return np.zeros(len(cloud), np.uint8)
    codes = cloud.labels.clip(0, 255).astype(np.uint8)
    codes[np.isin(codes, UNCLASSIFIED)] = 0
    return codes
