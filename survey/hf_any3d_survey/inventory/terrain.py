"""The terrain of a place: one surface through the points that are called ground.

Each cell of a grid keeps the ground point of median height. Low and high spikes among these are dropped. Cells between
them are filled from coarse to fine, as by Gortler et al., "The Lumigraph" (1996), section 3.4, and relaxed to the mean
of their neighbors, so that slopes continue in a straight line as in a triangulation, at a fraction of its time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from hf_any3d_survey.local_features.ground_surface import grid_over
from hf_any3d_survey.local_features.map_index import Points, blocks, bounds_of_all

GUESSED = 5.0
"""Meters from the next ground point beyond which the terrain is guessed."""
# Meters from the terrain within which points are ground, and those for each unit of slope.
_TOLERANCE, _OF_SLOPE = 0.5, 1.0
_LEAST_CELL = 0.5  # meters
_SWEEPS = 8
# Of spikes: meters above or below, cells around that are compared, and the share of them that may be alike.
_SPIKE, _AROUND, _ALIKE = 1.0, 3, 0.1
_FEW, _FAR_AROUND = 8, 10
_COARSE = 4  # cells
_HELD_OUT = 10  # points of which one is held out


@dataclass(frozen=True)
class Terrain:
    """Heights of the terrain on a grid of square cells, rows along x and columns along y.

    Attributes:
        corner: (2,) lowest coordinates of the grid, in meters.
        cell: Width of a cell in meters.
        heights: (rows, columns) elevations of the cells' centers in meters.
        is_guessed: (rows, columns) cells that have no ground point within `GUESSED`.
        ground: (cells, 3) the ground points that the terrain goes through, one of each cell that has any.
    """

    corner: np.ndarray
    cell: float
    heights: np.ndarray
    is_guessed: np.ndarray
    ground: np.ndarray

    @classmethod
    def of(cls, points: Points, is_ground: np.ndarray, spacing: float, around: np.ndarray | None = None) -> Terrain:
        """Lay a surface through ground points.

        Args:
            points: (points, 3) in meters, z up.
            is_ground: (points,) bool, at least one here or around.
            spacing: Usual distance of neighboring points, seen from above.
            around: (others, 3) further points of the ground, such as `ground_of_cells` of neighboring tiles.
        """
        bounds = bounds_of_all(points)
        if around is not None and len(around):
            beyond = bounds_of_all(around)
            bounds = np.stack([np.minimum(bounds[0], beyond[0]), np.maximum(bounds[1], beyond[1])])
        corner, cell = grid_over(bounds, _cell(spacing))
        shape = tuple(((bounds[1, :2] - corner) / cell).astype(np.int64) + 1)
        ground = points[median_of_cells(points, np.flatnonzero(is_ground), corner, cell, shape)]
        if around is not None and len(around):
            ground = np.concatenate([ground, around])
            ground = ground[median_of_cells(ground, np.arange(len(ground)), corner, cell, shape)]
        ground = ground[~_are_spikes(ground, corner, cell, shape)]
        # To a tenth of a millimeter, as sums over all points differ in their last digits.
        heights = _filled(ground, corner, cell, shape).round(4)
        is_empty = np.ones(shape, bool)
        is_empty[_cells_of(ground, corner, cell)] = False
        away = np.asarray(ndimage.distance_transform_edt(is_empty, sampling=cell))
        return cls(corner, cell, heights, away > GUESSED, ground)

    def heights_above(self, points: np.ndarray) -> np.ndarray:
        """Return how high points (points, 3) are above the terrain in meters, (points,) float32."""
        place = (points[:, :2] - self.corner).T / self.cell - 0.5
        below = ndimage.map_coordinates(self.heights, place, order=1, mode="nearest")
        return (points[:, 2] - below).astype(np.float32)

    def tolerance_at(self, points: np.ndarray) -> np.ndarray:
        """Return how far from the terrain points (points, 3) may be ground, (points,) meters: on slopes, farther."""
        return _TOLERANCE + _OF_SLOPE * self._slope[self._cells(points)]

    @cached_property
    def _slope(self) -> np.ndarray:
        """Slope of the cells as rise over run, (rows, columns)."""
        if min(self.heights.shape) < 2:
            return np.zeros(self.heights.shape)
        return np.hypot(*np.gradient(self.heights, self.cell))

    def _cells(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return row and column of the cells of points (points, 2 or more); beyond the grid, of the nearest."""
        place = np.floor((points[:, :2] - self.corner) / self.cell).astype(np.int64)
        row, column = place.clip(0, np.array(self.heights.shape) - 1).T
        return row, column

    def guessed_at(self, points: np.ndarray) -> np.ndarray:
        """Return whether the terrain below points (points, 2 or more) is guessed, (points,) bool."""
        return self.is_guessed[self._cells(points)]

    def cells_with(self, points: Points) -> np.ndarray:
        """Return which cells have one of these points (points, 3), (rows, columns) bool."""
        has_points = np.zeros(self.heights.shape, bool)
        for block in blocks(len(points)):
            has_points[_cells_of(points[block], self.corner, self.cell)] = True
        return has_points

    def held_out_errors(self, is_vegetated: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Measure how far one ground point of ten lies above a terrain through the others.

        Args:
            is_vegetated: (rows, columns) bool, cells in which vegetation stands.
            bounds: (2, 2 or 3) lowest and highest coordinates within which points are held out.

        Returns:
            Errors in meters, below 0 for points below the terrain: in the open, and under vegetation.
        """
        flat = self.ground[:, :2]
        is_held = np.arange(len(self.ground)) % _HELD_OUT == 0
        if is_held.all():
            return np.zeros(0), np.zeros(0)
        heights = _filled(self.ground[~is_held], self.corner, self.cell, self.heights.shape)
        is_held &= ((flat >= bounds[0, :2]) & (flat <= bounds[1, :2])).all(axis=1)
        held = self.ground[is_held]
        errors = replace(self, heights=heights).heights_above(held)
        below_plants = is_vegetated[_cells_of(held, self.corner, self.cell)]
        return errors[~below_plants], errors[below_plants]


def _cell(spacing: float) -> float:
    """Return the width of the cells of points that are so far apart."""
    # In steps of half a meter, so that neighboring tiles have the same cells.
    return max(_LEAST_CELL, np.ceil(2 * spacing) / 2)


def ground_of_cells(points: Points, is_ground: np.ndarray, spacing: float) -> np.ndarray:
    """Return the ground point of median height of each cell of a terrain, (cells, 3), of points (points, 3)."""
    bounds = bounds_of_all(points)
    corner, cell = grid_over(bounds, _cell(spacing))
    shape = tuple(((bounds[1, :2] - corner) / cell).astype(np.int64) + 1)
    return points[median_of_cells(points, np.flatnonzero(is_ground), corner, cell, shape)]


def median_of_cells(
    points: Points, rows: np.ndarray, corner: np.ndarray, cell: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Return the one of `rows` (rows,) in each cell that has the median height, (cells,), in order of the cells."""
    cells = np.empty(len(rows), np.int32)
    heights = np.empty(len(rows), np.float32)
    for block in blocks(len(rows)):
        part = points[rows[block]]
        row, column = _cells_of(part, corner, cell)
        cells[block] = row * shape[1] + column
        heights[block] = part[:, 2]
    order = np.lexsort((heights, cells))
    counts = np.bincount(cells)
    counts = counts[counts > 0]
    starts = np.cumsum(counts) - counts
    return rows[order[starts + (counts - 1) // 2]]


def _cells_of(points: np.ndarray, corner: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of the cells of points (points, 3)."""
    row, column = ((points[:, :2] - corner) / cell).astype(np.int64).T
    return row, column


def _are_spikes(ground: np.ndarray, corner: np.ndarray, cell: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return which ground points (cells, 3), one a cell, are far above or below almost all around them."""
    coarse_shape = tuple(-(-size // _COARSE) for size in shape)
    coarse = _filled(ground, corner, cell * _COARSE, coarse_shape)
    place = (ground[:, :2] - corner).T / (cell * _COARSE) - 0.5
    # Against a smooth surface, since on a slope all neighbors are above or below.
    above = ground[:, 2] - ndimage.map_coordinates(coarse, place, order=1, mode="nearest")
    grid = np.full(np.array(shape) + 2 * _FAR_AROUND, np.nan, np.float32)
    row, column = _cells_of(ground, corner, cell)
    row += _FAR_AROUND
    column += _FAR_AROUND
    grid[row, column] = above
    is_spike = np.zeros(len(ground), bool)
    waiting = np.flatnonzero(np.abs(above) > _SPIKE / 2)
    for reach in (_AROUND, _FAR_AROUND):
        counts = np.zeros(len(waiting), np.int32)
        lower = np.zeros(len(waiting), np.int32)
        higher = np.zeros(len(waiting), np.int32)
        own = above[waiting]
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                if down == 0 and right == 0:
                    continue
                other = grid[row[waiting] + down, column[waiting] + right]
                counts += ~np.isnan(other)
                lower += other > own + _SPIKE
                higher += other < own - _SPIKE
        alike = np.maximum(1, _ALIKE * counts)
        is_spike[waiting] = (counts > 2) & ((counts - lower <= alike) | (counts - higher <= alike))
        waiting = waiting[counts < _FEW]
    return is_spike


def _filled(ground: np.ndarray, corner: np.ndarray, cell: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return heights (rows, columns) of the centers of cells by ground points (points, 3)."""
    # What is left of a plane, so that slopes go on beyond the outermost points.
    center = ground.mean(axis=0)
    flat = np.column_stack([ground[:, :2] - center[:2], np.ones(len(ground))])
    plane = np.linalg.lstsq(flat, ground[:, 2], rcond=None)[0]
    row, column = _cells_of(ground, corner, cell)
    number = row * shape[1] + column
    size = shape[0] * shape[1]
    place = (ground[:, :2] - corner) / cell
    values = (None, ground[:, 2] - flat @ plane, place[:, 0], place[:, 1])
    sums = np.empty((len(values), size))
    for own_sums, own in zip(sums, values, strict=True):
        own_sums[:] = np.bincount(number, own, size)
    heights = _from_coarse(sums.reshape(-1, *shape), 1)
    x, y = (corner[axis] + (np.arange(shape[axis]) + 0.5) * cell - center[axis] for axis in (0, 1))
    return heights + (plane[0] * x[:, None] + plane[1] * y + plane[2])


def _from_coarse(sums: np.ndarray, scale: int) -> np.ndarray:
    """Return heights (rows, columns) of the centers of cells that are `scale` cells of the finest grid wide.

    Args:
        sums: (4, rows, columns) number of points in each cell, and the sums of their heights and places along both
            axes, in cells of the finest grid.
        scale: Width of a cell.
    """
    counts = sums[0]
    shape = counts.shape
    is_known = counts > 0
    if max(shape) == 1:
        return sums[1] / counts
    coarse = _from_coarse(_summed_in_pairs(_summed_in_pairs(sums, 1), 2), 2 * scale)
    heights = np.asarray(ndimage.zoom(coarse, 2, order=1, mode="nearest", grid_mode=True))[: shape[0], : shape[1]]
    # The height at the center by that of the points beside it
    known = sums[1:, is_known] / counts[is_known]
    level = known[0]
    for axis, size in enumerate(shape):
        if size > 1:
            slope = np.gradient(heights, scale, axis=axis)[is_known]
            centers = (np.nonzero(is_known)[axis] + 0.5) * scale
            level = level - slope * (known[1 + axis] - centers)
    heights[is_known] = level
    for _ in range(_SWEEPS if not is_known.all() else 0):
        around = np.pad(heights, 1, mode="edge")
        means = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
        means /= 4
        means[is_known] = level
        heights = means
    return heights


def _summed_in_pairs(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the sums of every two neighbors along an axis; the last one stays alone where their number is odd."""
    values = values.swapaxes(0, axis)
    sums = values[::2].copy()
    sums[: len(values) // 2] += values[1::2]
    return sums.swapaxes(0, axis)
