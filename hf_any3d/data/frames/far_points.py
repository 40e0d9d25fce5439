"""Points of a scan that are far from all others, such as zeros beside coordinates of a map, before any grid is made.

A place is one area, or several large ones. What lies farther from it than the place is wide, and is few points or all
in one spot, is an error of a sensor or a program: it would make each grid thousands of kilometers wide.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.point_cloud import MEASURED, OF_FILE, _bounds, row_blocks
from hf_any3d.utils.messages import printable

NEAR = 250.0
"""Edge of the cells, in meters: what lies in neighboring cells is one group, so that no group is nearer to others."""
_ISLAND, _FEWEST = 1000.0, 10
"""Meters up to which more points than so few are never far: rocks off a coast, with a corner of land in the tile."""
_SMALL = 0.01
"""Share of the points of the largest group up to which a group is small."""
_SPOT = 1.0
"""Meters of a group that is one spot, such as any number of zeros: its points do not make a place."""
_MOST = 0.1
"""Share of all points above which scattered points are what the scan is, as of an overview of a country."""
_LARGEST = 1 << 20  # number of a cell along an axis, so that three fit into 63 bits
_SAMPLE = 10_000
_MOST_DECIMALS = 7


@dataclass(frozen=True)
class FarPoints:
    """Points that are far from a place.

    Attributes:
        is_far: (points,) bool, which points they are.
        meters: Distance of the nearest of them from the place.
        first: (3,) coordinates of the first one, as in the file.
        rows: (others,) numbers of the points of the place.
    """

    is_far: np.ndarray
    meters: float
    first: np.ndarray
    rows: np.ndarray

    def __str__(self) -> str:
        """Return how many there are, how far they lie, and where."""
        count = len(self.is_far) - len(self.rows)
        # A millimeter is enough to find it.
        where = ", ".join(f"{round(value, 3):.12g}" for value in self.first.tolist())
        away = distance_in_words(self.meters)
        if count == 1:
            return f"1 point of {len(self.is_far):,} lies {away} away from all others, at {where}"
        return (
            f"{count:,} points of {len(self.is_far):,} lie {away} or more away from all others, the first at {where}"
        )

    def spread(self, values: np.ndarray, far: Any) -> np.ndarray:
        """Return values (others, ...) with one for each point of the file: `far` for those that are far."""
        every = np.full((len(self.is_far), *values.shape[1:]), far, values.dtype)
        every[self.rows] = values
        return every


def distance_in_words(meters: float) -> str:
    """Return a distance such as "5,025 km"."""
    if meters < 1000:
        return f"{meters:,.0f} m"
    if meters < 1e9:
        return f"{meters / 1000:,.0f} km"
    return f"{meters / 1000:.1g} km"


def find_far_points(cloud: PointCloudData) -> FarPoints | None:
    """Return the points of a scan of a place that are far from all others; None if there are none.

    Points in cells of 250 m that touch are one group. Far is a group that lies farther from each place than that is
    wide, and 250 m at least, or a kilometer if it has more than ten points. It has no more than a hundredth of the
    points of the largest group, or is all in one spot. Gaps in a mountain side, between strips, or around islands are
    none of these. Without a unit, coordinates are taken for meters.
    """
    points = cloud.points
    if cloud.is_mesh or cloud.in_degrees or len(points) < 2:
        return None
    factor = np.ones(3) if cloud.meters_per_axis is None else cloud.meters_per_axis
    low, high = _bounds(points)
    if ((high.astype(np.float64) - low) * factor).max() <= NEAR:
        return None
    # Any point inside of the place would do; coordinates of another place end at the largest cell.
    center = np.median(points[:: max(1, len(points) // _SAMPLE)], axis=0).astype(np.float64)
    keys, counts = _cells(points, center, factor)
    group_of_cell = _groups(keys)
    if not group_of_cell.any():
        return None
    lows, highs, numbers = _extents(points, center, factor, keys, group_of_cell)
    totals = np.bincount(group_of_cell, counts).astype(np.int64)
    is_far, gaps = far_groups(totals, lows, highs)
    spots = totals[is_far & ((highs - lows).max(axis=1) <= _SPOT)]
    scattered = totals[is_far].sum() - spots.max(initial=0)
    if not is_far.any() or scattered > _MOST * len(points):
        return None
    far = is_far[numbers]
    first = points[int(far.argmax())].astype(np.float64)
    if cloud.offset is not None:
        first += cloud.offset
    return FarPoints(far, float(gaps[is_far].min()), first, np.flatnonzero(~far))


def split_far_points(cloud: PointCloudData, name: object = None) -> tuple[PointCloudData, FarPoints | None]:
    """Leave out the points of a scan that are far from all others, with a warning.

    Args:
        cloud: The scan.
        name: Its name in the warning.

    Returns:
        The cloud, and what was left out; None if nothing was.
    """
    far = find_far_points(cloud)
    if far is None:
        return cloud, None
    prefix = "" if name is None else f"{name}: "
    warnings.warn(printable(f"{prefix}{far}; treated as noise and ignored"), stacklevel=3)
    return without_far_points(cloud, far), far


def far_groups(counts: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the groups of points that are far from all places.

    Args:
        counts: (groups,) points of each.
        lows: (groups, axes) lowest coordinates of each, in meters.
        highs: (groups, axes) highest ones.

    Returns:
        Which groups are far, (groups,) bool, and the distance of each from the nearest place, (groups,) meters.
    """
    is_spot = (highs - lows).max(axis=1) <= _SPOT
    if is_spot.all():
        # Nothing is a place.
        return np.zeros(len(counts), bool), np.zeros(len(counts))
    largest = int(np.where(is_spot, 0, counts).max())
    is_place = ~is_spot & (counts > _SMALL * largest)
    least = np.where((counts > _FEWEST) & ~is_spot, _ISLAND, NEAR)
    # Boxes of places, which grow by the groups that are near them
    low, high = lows[is_place].copy(), highs[is_place].copy()
    waiting = ~is_place
    gaps = np.full(len(counts), np.inf)
    has_grown = True
    while has_grown:
        has_grown = False
        gaps[waiting] = np.inf
        for place in range(len(low)):
            apart = np.maximum(lows - high[place], low[place] - highs).clip(min=0)
            away = np.linalg.norm(apart, axis=1)
            gaps = np.where(waiting, np.minimum(gaps, away), gaps)
            near = waiting & (away <= np.maximum(least, (high[place] - low[place]).max()))
            if near.any():
                low[place] = np.minimum(low[place], lows[near].min(axis=0))
                high[place] = np.maximum(high[place], highs[near].max(axis=0))
                waiting &= ~near
                has_grown = True
    return waiting, gaps


def without_far_points(cloud: PointCloudData, far: FarPoints) -> PointCloudData:
    """Return the cloud as if its file had no far points: offset and precision are those of the place alone."""
    rows = far.rows
    # From the coordinates of the file: of the place alone, offset and precision are others.
    exact = cloud.points[rows]
    if cloud.offset is not None:
        # Far points leave float32 fewer digits, by which coordinates are no longer what the file has.
        moved = np.zeros(3)
        if exact.dtype == np.float32:
            moved = np.spacing(np.abs(exact).max(axis=0)).astype(np.float64)
        exact = _with_decimals(exact.astype(np.float64) + cloud.offset, moved)
    arrays: dict[str, Any] = {}
    for name in ("colors", "normals", "labels", *MEASURED):
        values = getattr(cloud, name)
        if values is not None:
            arrays[name] = values[rows]
    if cloud.scanner is not None:
        # In the coordinates of the file, as the points are here.
        scanner = cloud.scanner if cloud.scanner.ndim == 1 else cloud.scanner[rows]
        arrays["scanner"] = scanner if cloud.offset is None else scanner + cloud.offset
    if cloud.further is not None:
        arrays["further"] = {name: values[rows] for name, values in cloud.further.items()}
    return PointCloudData(exact, **arrays, **{name: getattr(cloud, name) for name in OF_FILE})


def _with_decimals(points: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return points (points, 3) with the fewest decimals from which none is farther than `moved` (3,)."""
    for axis, values in enumerate(points.T):
        for decimals in range(_MOST_DECIMALS):
            rounded = values.round(decimals)
            if (np.abs(rounded - values) <= moved[axis]).all():
                points[:, axis] = rounded
                break
    return points


def _keys(points: np.ndarray, center: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return one number for the cell of each point, (points,) int64."""
    places = np.floor((points.astype(np.float64) - center) * (factor / NEAR))
    x, y, z = (places.clip(-_LARGEST, _LARGEST - 1) + _LARGEST).astype(np.int64).T
    return (x << 42) | (y << 21) | z


def _cells(points: np.ndarray, center: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the cells that have points, and how many each has, (cells,) each."""
    found = [np.unique(_keys(points[rows], center, factor), return_counts=True) for rows in row_blocks(len(points))]
    keys, place = np.unique(np.concatenate([own for own, _ in found]), return_inverse=True)
    return keys, np.bincount(place.reshape(-1), np.concatenate([counts for _, counts in found]))


def _groups(keys: np.ndarray) -> np.ndarray:
    """Return the number of the group of each cell, (cells,): those that touch are one."""
    if len(keys) == 1:
        return np.zeros(1, np.int64)
    mask = (1 << 21) - 1
    cells = np.stack([keys >> 42, keys >> 21 & mask, keys & mask], axis=1)
    pairs = KDTree(cells).query_pairs(1.0, p=np.inf, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (len(keys), len(keys)))
    return connected_components(graph, directed=False)[1]


def _extents(
    points: np.ndarray, center: np.ndarray, factor: np.ndarray, keys: np.ndarray, group_of_cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lowest and highest coordinates of each group, (groups, 3) in meters, and the group of each point."""
    count = int(group_of_cell.max()) + 1
    lows = np.full((count, 3), np.inf)
    highs = np.full((count, 3), -np.inf)
    numbers = np.empty(len(points), np.int32)
    for rows in row_blocks(len(points)):
        own = group_of_cell[np.searchsorted(keys, _keys(points[rows], center, factor))]
        numbers[rows] = own
        meters = (points[rows].astype(np.float64) - center) * factor
        np.minimum.at(lows, own, meters)
        np.maximum.at(highs, own, meters)
    return lows, highs, numbers
