"""The ground below a scan: the lowest supported point of each cell, unless an opening cuts it as a thing.

Sources: Pingel, Clarke and McBride, "An improved simple morphological filter for the terrain classification of
airborne LIDAR data" (2013), whose openings with growing windows and a slope these follow, with squares in place of
disks, which are as exact and ten times as fast; and Zhang et al., "A progressive morphological filter for removing
nonground measurements from airborne LIDAR data" (2003), whose windows and slopes those of `by_windows` are. Points
below the ground are left out first (`unsupported_points`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from hf_any3d_survey.local_features.lowest_points import (
    NONE,
    WIDE,
    filled,
    lowest_points,
    mark_lowest,
    nearest_cells,
    unsupported_points,
)
from hf_any3d_survey.local_features.map_index import MapIndex, Points, bounds_of_all
from hf_any3d_survey.local_features.sparse_boxes import SparseVoxels, bounds_of

SLOPE, STEEP = 0.2, 0.6
"""Heights for each unit of an opening's radius above which what it cuts is a thing: usually, and where hills are to
stay."""
USUAL, LARGE = 17.0, 40.0
"""Largest radii of openings in meters: of houses, and of large roofs."""
_BEYOND = 3  # cells
_GROWTH = 1.2  # of the radius, from one opening to the next
_LEAST_CELL = 1.0
WINDOWS = (3, 7, 15, 31, 41)
"""Widths in cells of the windows of `by_windows`."""
_RISE, _STEP, _STEEP_RISE = 0.3, 0.3, 1.0
NOISE_DEPTH, NOISE_HEIGHT = 3.0, 5.0
"""Meters below the ground beyond which points without support are noise, and above it, beyond which lone ones are."""
_ALONE, _APART = 5, 4
"""Points at most that are alone in a cube of three voxels, whose edges are so many spacings, or `_LEAST_APART`."""
_LEAST_APART = 3.0
_MOST_NOISE = 0.1  # share of the points
_MOST_CELLS = 1 << 24
_AT_ONCE = 1 << 16  # points
_MOST_POINTS = 1 << 21
"""Points that are looked at in one piece, with those around them."""
_SUPPORT = 32  # cells around a part that decide what is supported in it
_CELLS_AT_ONCE, _SQUARE = 1 << 22, 1500
"""Cells of a grid that is looked at in one piece, and the side of the squares of a larger one."""
_REACH = 4 * LARGE
"""Meters around such a square that are looked at with it: openings see twice their radius, and things hide ground."""


@dataclass(frozen=True)
class GroundSurface:
    """Heights of the ground on a grid of square cells.

    Attributes:
        corner: (2,) the lowest coordinates of the grid.
        cell: Width of a cell.
        heights: (surfaces, rows, columns) heights of the cells' centers, of which the second is the ground.
        is_noise: (points,) which of the points are noise: far below the ground, or alone far above it.
    """

    corner: np.ndarray
    cell: float
    heights: np.ndarray
    is_noise: np.ndarray

    @classmethod
    def below(cls, points: Points, spacing: float) -> GroundSurface:
        """Find the ground below points (points, 3), z up, in meters, which are `spacing` apart.

        Its surfaces are what the openings of usual size leave; the cells that none of them cuts, smoothed; those that
        openings of large roofs leave, too; and those of usual size where hills are to stay. Many points, and grids of
        many cells, are looked at in parts side by side, so that memory does not grow with them but for what is
        returned.
        """
        bounds = bounds_of_all(points)
        # What supports a point is seen by larger cells, which have several.
        wide, wide_cell = grid_over(bounds, max(_LEAST_CELL, 2 * spacing))
        corner, cell = grid_over(bounds, max(_LEAST_CELL, spacing))
        shape = tuple(((bounds[1, :2] - corner) / cell).astype(np.int64) + 1)
        numbers = np.full(shape[0] * shape[1], NONE, np.int32)
        is_left_out = np.empty(len(points), bool)
        parts = _parts(points, bounds, cell, _SUPPORT * wide_cell)
        for near, is_inside, around in parts():
            # The same cells and blocks of them, wherever a part begins.
            block = WIDE * wide_cell
            first = wide + block * np.floor((around[:, :2].min(axis=0) - wide) / block)
            unsupported = unsupported_points(around, first, wide_cell)
            inside = near[is_inside]
            is_left_out[inside] = unsupported[is_inside]
            mark_lowest(numbers, shape, inside, around[is_inside], ~unsupported[is_inside], corner, cell)
        numbers = numbers.reshape(shape)
        is_empty = numbers == NONE
        lowest = np.empty(shape)
        step = max(1, _AT_ONCE // shape[1])
        for start in range(0, shape[0], step):
            rows = slice(start, start + step)
            lowest[rows] = points[numbers[rows].reshape(-1)][:, 2].reshape(lowest[rows].shape)
        lowest = filled(lowest, is_empty)
        heights = np.empty((*shape, 4))
        for window, inside, whole in _windows(shape, round(_REACH / cell)):
            part = points[numbers[window].reshape(-1)].reshape(*lowest[window].shape, 3)
            # (rows, columns, 2) from the center of each cell to its lowest point
            away = part[..., :2]
            away[..., 0] -= corner[0] + cell * (np.arange(*window[0].indices(shape[0]))[:, None] + 0.5)
            away[..., 1] -= corner[1] + cell * (np.arange(*window[1].indices(shape[1])) + 0.5)
            heights[whole] = _surfaces(lowest[window], away, is_empty[window], cell)[inside]
        surface = cls(corner, cell, np.moveaxis(heights, -1, 0), is_left_out)._with_deep_noise(points)
        for near, is_inside, around in parts():
            lone = surface._lone_points(around, spacing)
            surface.is_noise[near[lone[is_inside[lone]]]] = True
        if surface.is_noise.mean() > _MOST_NOISE:
            # So few points that each is alone
            surface.is_noise[:] = False
        return surface

    @classmethod
    def by_windows(cls, points: Points, spacing: float) -> GroundSurface:
        """Find the ground as models do that were saved before there was `below`.

        Its surfaces are what the openings leave; the cells that none of them cuts, smoothed; one opening with the
        widest window; and what openings leave on steep ground.
        """
        points = points[:]
        corner, cell = grid_over(bounds_of(points), max(_LEAST_CELL, 2 * spacing))
        is_left_out = unsupported_points(points, corner, cell, sparse=False)
        numbers = lowest_points(points, ~is_left_out, corner, cell)
        is_empty = numbers == NONE
        lowest = filled(points[numbers, 2], is_empty)
        surface, is_cut = _opened(lowest, _RISE * cell)
        steep, _ = _opened(lowest, _STEEP_RISE * cell)
        ground = ndimage.uniform_filter(filled(lowest, is_cut | is_empty), 3, mode="nearest")
        widest = ndimage.uniform_filter(
            ndimage.grey_opening(lowest, size=WINDOWS[-1], mode="nearest"), 5, mode="nearest"
        )
        return cls(corner, cell, np.stack([surface, ground, widest, steep]), is_left_out)._with_deep_noise(points)

    def _with_deep_noise(self, points: Points) -> GroundSurface:
        """Keep as noise what is far below the ground."""
        # Few points at the bottom of a narrow pit, such as a yard, are left out too, and are no noise.
        doubtful = np.flatnonzero(self.is_noise)
        self.is_noise[doubtful] = self.heights_above(points[doubtful])[:, 1] < -NOISE_DEPTH
        return self

    def _lone_points(self, points: np.ndarray, spacing: float) -> np.ndarray:
        """Return the numbers of points high above the ground that have hardly any others near them."""
        height = ndimage.map_coordinates(self.heights[1], self._place(points), order=1, mode="nearest")
        high = np.flatnonzero(points[:, 2] - height > NOISE_HEIGHT)
        if not len(high):
            return high
        voxels = SparseVoxels(points[high], max(_LEAST_APART, _APART * spacing))
        around = voxels.box_sums(voxels.counts[:, None])[:, 0]
        lone = high[around[voxels.of_point] <= _ALONE]
        if not len(lone):
            return lone
        # Sparse trees have others below them. Those near enough are in cubes around a lone point's own.
        away = max(NOISE_HEIGHT, _APART * spacing)
        others = np.flatnonzero(points[:, 2] >= points[lone, 2].min() - away)
        cubes = np.floor(points[others] / away).astype(np.int64)
        cubes -= bounds_of(cubes)[0] - 1
        _, rows, levels = bounds_of(cubes)[1] + 2
        number = (cubes[:, 0] * rows + cubes[:, 1]) * levels + cubes[:, 2]
        steps = np.array([(x * rows + y) * levels + z for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)])
        own = np.searchsorted(others, lone)
        is_near = np.isin(number, number[own][:, None] + steps)
        is_near[own] = False
        near = others[is_near]
        if not len(near):
            return lone
        distances, _ = KDTree(points[near]).query(points[lone])
        return lone[distances > away]

    @property
    def steepness(self) -> float:
        """Degrees of slope that nine tenths of the ground do not exceed."""
        ground = self.heights[1]
        if min(ground.shape) < 2:
            return 0.0
        return float(np.degrees(np.arctan(np.quantile(np.hypot(*np.gradient(ground, self.cell)), 0.9))))

    def heights_above(self, points: np.ndarray) -> np.ndarray:
        """Return how high points (points, 3) are above each of the surfaces, (points, surfaces) float32."""
        above = np.empty((len(points), len(self.heights)), np.float32)
        for start in range(0, len(points), _AT_ONCE):
            part = points[start : start + _AT_ONCE]
            above[start : start + _AT_ONCE] = part[:, 2:3] - self._weights(part) @ self._of_cells
        return above

    @cached_property
    def _of_cells(self) -> np.ndarray:
        """Heights (cells, surfaces)."""
        # Without a copy where heights have been laid out so.
        return np.ascontiguousarray(np.moveaxis(self.heights, 0, -1), np.float64).reshape(-1, len(self.heights))

    def _weights(self, points: np.ndarray) -> csr_array:
        """Return the weights (points, cells) of the four cells around points, the same for all surfaces.

        Linear between centers of cells; beyond the grid, the nearest cell.
        """
        _, rows, columns = self.heights.shape
        numbers = np.empty((len(points), 4), np.int32)
        weights = np.empty((len(points), 4))
        place = self._place(points)
        down, right = (axis.clip(0, size - 1) for axis, size in zip(place, (rows, columns), strict=True))
        row = np.minimum(down.astype(np.int32), max(rows - 2, 0))
        column = np.minimum(right.astype(np.int32), max(columns - 2, 0))
        down -= row
        right -= column
        row *= columns
        numbers[:, 0] = row + column
        # A grid of one row or column has no next one, which then has no weight either.
        numbers[:, 1] = numbers[:, 0] + (columns > 1)
        numbers[:, 2] = numbers[:, 0] + columns * (rows > 1)
        numbers[:, 3] = numbers[:, 1] + columns * (rows > 1)
        weights[:, 3] = down * right
        weights[:, 2] = down - weights[:, 3]
        weights[:, 1] = right - weights[:, 3]
        weights[:, 0] = 1 - down - weights[:, 1]
        ends = np.arange(0, 4 * len(points) + 1, 4, dtype=np.int32)
        return csr_array((weights.reshape(-1), numbers.reshape(-1), ends), (len(points), rows * columns))

    def slope_at(self, points: np.ndarray) -> np.ndarray:
        """Return the slope of the ground below points (points, 3), as rise over run, (points,) float32."""
        ground = self.heights[1]
        if min(ground.shape) < 2:
            return np.zeros(len(points), np.float32)
        slope = np.hypot(*np.gradient(ground, self.cell)).astype(np.float32)
        return ndimage.map_coordinates(slope, self._place(points), order=0, mode="nearest")

    def _place(self, points: np.ndarray) -> np.ndarray:
        """Return where points are on the grid, (2, points), in cells from the center of the first."""
        return (points[:, :2] - self.corner).T / self.cell - 0.5


def grid_over(bounds: np.ndarray, cell: float) -> tuple[np.ndarray, float]:
    """Return the corner (2,) of a grid and the width of its cells, by the bounds (2, 3) of points."""
    low, high = bounds[:, :2]
    corner = np.floor(low / cell) * cell
    # Few points may span a map: then cells are larger.
    area = np.prod((high - corner) / cell + 1)
    return corner, cell * max(1.0, float(np.sqrt(area / _MOST_CELLS)))


def _parts(
    points: Points, bounds: np.ndarray, cell: float, margin: float
) -> Callable[[], Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Cut points into parts side by side, of whole cells, that have some `_MOST_POINTS` with what is around them.

    Returns:
        What yields the numbers (near,) of a part's points and of those within `margin` around it, which of them are
        inside, (near,) bool, and the points themselves, (near, 3).
    """
    count = len(points)
    if count <= _MOST_POINTS:
        return lambda: iter([(np.arange(count), np.ones(count, bool), points[:])])
    index = MapIndex(points)
    low = np.floor(bounds[0, :2] / cell) * cell
    extent = bounds[1, :2] - low
    # As dense everywhere as on average; not narrower than what is around it.
    side = np.sqrt(_MOST_POINTS * np.prod(np.maximum(extent, cell)) / count) - 2 * margin
    side = cell * np.ceil(max(side, 2 * margin) / cell)
    steps = np.ceil((extent + cell) / side).astype(int)

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for x in range(steps[0]):
            for y in range(steps[1]):
                first = low + side * np.array([x, y])
                near = index.within(first - margin, first + side + margin)
                around = points[near]
                # By its own side alone: a point on a border is in one part.
                is_inside = np.floor((around[:, 0] - low[0]) / side) == x
                is_inside &= np.floor((around[:, 1] - low[1]) / side) == y
                if is_inside.any():
                    yield near, is_inside, around

    return parts


def _windows(shape: tuple[int, int], margin: int) -> Iterator[tuple[tuple[slice, ...], ...]]:
    """Cut a grid of many cells into squares.

    Yields:
        A square with `margin` cells around it, the square in that, and the square in the grid.
    """
    side = max(shape) if shape[0] * shape[1] <= _CELLS_AT_ONCE else _SQUARE
    for top in range(0, shape[0], side):
        for left in range(0, shape[1], side):
            starts = [max(0, first - margin) for first in (top, left)]
            stops = [min(size, first + side + margin) for size, first in zip(shape, (top, left), strict=True)]
            whole = [slice(first, min(size, first + side)) for size, first in zip(shape, (top, left), strict=True)]
            inside = [slice(own.start - start, own.stop - start) for own, start in zip(whole, starts, strict=True)]
            yield tuple(map(slice, starts, stops)), tuple(inside), tuple(whole)


def _surfaces(lowest: np.ndarray, away: np.ndarray, is_empty: np.ndarray, cell: float) -> np.ndarray:
    """Return the four surfaces of `GroundSurface.below`, (rows, columns, surfaces).

    Args:
        lowest: (rows, columns) heights of the lowest points.
        away: (rows, columns, 2) where these are, from the centers of the cells.
        is_empty: (rows, columns) cells without a point, whose height is that of the nearest other.
        cell: Width of a cell.
    """
    is_thing = is_large = is_steep = is_empty
    # Slopes go on beyond the edge, where small openings would cut what rises to it.
    width = min(_BEYOND, *(size - 1 for size in lowest.shape))
    wider = np.pad(lowest, width, mode="reflect", reflect_type="odd")
    opened = last = lowest
    radii = [1]
    while (larger := max(radii[-1] + 1, round(radii[-1] * _GROWTH))) * cell <= LARGE:
        radii.append(larger)
    for radius in radii:
        now = _squares(_squares(wider, radius, np.minimum), radius, np.maximum)
        now = now[width : width + lowest.shape[0], width : width + lowest.shape[1]]
        cut = last - now
        last = now
        length = radius * cell
        is_large = is_large | (cut > SLOPE * length)
        if length <= USUAL:
            opened = now
            is_thing = is_large
            is_steep = is_steep | (cut > STEEP * length)
    # Under things, the ground is that of the nearest cell that is none.
    kept = [_leveled(lowest, away, cut, cell) for cut in (is_thing, is_large, is_steep)]
    return np.stack([opened, *kept], axis=-1)


def _leveled(lowest: np.ndarray, away: np.ndarray, is_cut: np.ndarray, cell: float) -> np.ndarray:
    """Return the heights (rows, columns) of the cells' centers by the cells that are not cut.

    Args:
        lowest: (rows, columns) heights of the lowest points.
        away: (rows, columns, 2) where these are, from the centers.
        is_cut: (rows, columns) cells that take the height of the nearest other.
        cell: Width of a cell.
    """
    nearest = nearest_cells(is_cut)
    heights = ndimage.gaussian_filter(lowest[nearest], 1, mode="nearest")
    if min(heights.shape) > 1:
        # On a slope, the lowest point lies downhill in its cell.
        down, right = np.gradient(heights, cell)
        level = lowest - away[..., 0] * down - away[..., 1] * right
        heights = ndimage.gaussian_filter(level[nearest], 1, mode="nearest")
    return heights


def _squares(heights: np.ndarray, radius: int, extreme: np.ufunc) -> np.ndarray:
    """Return the lowest or highest of heights (rows, columns) in the square around each cell, cut at the edge."""
    # By windows that double: a few passes of whole arrays, where filters of scipy look at one cell after the other.
    width = 2 * radius + 1
    for _ in range(2):
        # Along rows, which numpy handles at once; the second round is along the other axis. Repeating the edge adds
        # nothing to a window that holds it.
        found = np.pad(heights, ((radius, radius), (0, 0)), mode="edge")
        length = 1
        while length < width:
            step = min(length, width - length)
            found = extreme(found[:-step], found[step:])
            length += step
        heights = np.ascontiguousarray(found.T)
    return heights


def _opened(heights: np.ndarray, rise: float) -> tuple[np.ndarray, np.ndarray]:
    """Open heights (rows, columns) with growing windows; also returns which cells were cut as things on the ground.

    The ground may rise by `rise` from cell to cell.
    """
    is_cut = np.zeros(heights.shape, bool)
    last = 1
    for window in WINDOWS:
        opened = ndimage.grey_opening(heights, size=window, mode="nearest")
        # Zhang et al.: a window may cut what the slope allows over its growth, and one step more.
        is_thing = heights - opened > _STEP + rise * (window - last) / 2
        heights = np.where(is_thing, opened, heights)
        is_cut = is_cut | is_thing
        last = window
    return heights, is_cut
