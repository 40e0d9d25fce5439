"""Lowest points of the cells of a grid, without noise below the ground.

Reflections (multipath) and errors of the clock make points far below the ground: single ones, pairs, small clusters,
or a thin layer that copies what is above it. A low level counts only if enough of the points around lie on it. Under
a closed canopy, on whose lowest points few others lie, fewer are enough if they are spread like ground.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

NONE = -1
"""In place of the number of a point."""
_PIT = 2.0
"""Depth in meters below the usual height around a cell beyond which its lowest point needs support."""
_BAND = 1.5  # meters above and below a level that are of the level
_FEWEST, _SHARE = 8, 0.03
"""Number and share of the points around that must lie on a level to support it, the lowest point included."""
_SPARSE, _SPREAD, _OPAQUE = 0.006, 0.3, 0.4
"""Share of the points around that is enough if they are in this share of the blocks around, while less than the last
share lies on what is usual: a surface that hides what is below it has more."""
_AROUND = 4  # cells to each side whose middle height is usual
WIDE = 3
"""Cells along the edge of a block, whose points are counted together."""
_BLOCKS = 2  # blocks to each side of a cell's own, whose points may support it
_STEEPEST = 0.7
"""Steepest slope along which a level is followed; a steeper step is the edge of an object."""
_FEW_RAISED = 0.05  # share of the low cells
_ROUNDS = 16  # at most, of finding what is usual, as low points of many cells move it
_MOST_AT_ONCE = 1 << 13


def lowest_points(points: np.ndarray, usable: np.ndarray, corner: np.ndarray, cell: float) -> np.ndarray:
    """Find the lowest usable point of each cell.

    Args:
        points: (points, 3), z up, in meters.
        usable: (points,) which points count.
        corner: (2,) lowest coordinates of the grid.
        cell: Width of a cell.

    Returns:
        Numbers (rows, columns) of the points, `NONE` in cells without one.
    """
    _, shape = _cells(points, corner, cell)
    numbers = np.full(shape[0] * shape[1], NONE)
    mark_lowest(numbers, shape, np.arange(len(points)), points, usable, corner, cell)
    return numbers.reshape(shape)


def mark_lowest(
    numbers: np.ndarray,
    shape: tuple[int, int],
    rows: np.ndarray,
    points: np.ndarray,
    usable: np.ndarray,
    corner: np.ndarray,
    cell: float,
) -> None:
    """Write the number of the lowest usable point into each cell that has one, in place in `numbers` (cells,).

    Args:
        numbers: (cells,) of a grid of `shape`, row by row.
        shape: Rows and columns of the grid.
        rows: (points,) their numbers.
        points: (points, 3) the points, all of these cells at once.
        usable: (points,) which of them count.
        corner: (2,) lowest coordinates of the grid.
        cell: Width of a cell.
    """
    place = ((points[:, :2] - corner) / cell).astype(np.int64)
    number = place[:, 0] * shape[1] + place[:, 1]
    kept = np.flatnonzero(usable)
    if not len(kept):
        return
    number, heights = number[kept], points[kept, 2]
    # Cells of this part alone
    first = int(number.min())
    lowest = np.full(int(number.max()) + 1 - first, np.inf)
    np.minimum.at(lowest, number - first, heights)
    # Of several, the last of the scan, which is written last, in whatever parts that is looked at.
    is_lowest = heights == lowest[number - first]
    numbers[number[is_lowest]] = rows[kept[is_lowest]]


def unsupported_points(points: np.ndarray, corner: np.ndarray, cell: float, *, sparse: bool = True) -> np.ndarray:
    """Find points below the lowest one of their cell that others support, (points,) bool; arguments as above.

    Without `sparse`, few points below a closed canopy support none.
    """
    number, shape = _cells(points, corner, cell)
    # Points cell by cell, from low to high; `at` is the one of each cell that counts as its lowest.
    # One key of both is sorted several times as fast as one after the other.
    lowest = points[:, 2].min()
    order = np.argsort(number * (points[:, 2].max() - lowest + 1) + (points[:, 2] - lowest))
    heights = points[order, 2]
    ends = np.bincount(number, minlength=shape[0] * shape[1]).cumsum()
    starts = np.concatenate([[0], ends[:-1]])
    at = starts.copy()
    lowest, is_empty = _chosen(heights, at, ends, shape)
    levels = None
    for _ in range(_ROUNDS):
        width = 2 * _AROUND + 1
        # Mirrored at the edge: repeated, a cell there would be most of its own window.
        rows = ndimage.median_filter(lowest, (1, width), mode="mirror")
        usual = ndimage.median_filter(rows, (width, 1), mode="mirror")
        is_low = (lowest < usual - _PIT) & ~is_empty
        if not is_low.any():
            break
        if levels is None:
            place = np.stack(np.divmod(number, shape[1]), axis=1)
            levels = _Levels(place, points[:, 2], shape, cell, sparse)
            del place
        low = np.flatnonzero(is_low)
        # Where hardly any is raised, what is usual stays, too.
        if _raise_unsupported(heights, at, ends, low, usual.reshape(-1), levels) <= _FEW_RAISED * len(low):
            break
        lowest, is_empty = _chosen(heights, at, ends, shape)
    is_unsupported = np.empty(len(points), bool)
    is_unsupported[order] = np.arange(len(points)) < np.repeat(at, ends - starts)
    return is_unsupported


def _cells(points: np.ndarray, corner: np.ndarray, cell: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the number of each point's cell (points,), row by row, and the shape of the grid."""
    place = ((points[:, :2] - corner) / cell).astype(np.int64)
    shape = (int(place[:, 0].max()) + 1, int(place[:, 1].max()) + 1)
    return place[:, 0] * shape[1] + place[:, 1], shape


def filled(heights: np.ndarray, is_missing: np.ndarray) -> np.ndarray:
    """Return heights with those of missing cells from the nearest other cell."""
    return heights[nearest_cells(is_missing)]


def nearest_cells(is_missing: np.ndarray) -> tuple[np.ndarray, ...] | slice:
    """Return an index of the nearest cell that is not missing, for each cell; of all if there is none, or no other."""
    if is_missing.all() or not is_missing.any():
        return slice(None)
    nearest = ndimage.distance_transform_edt(is_missing, return_distances=False, return_indices=True)
    return tuple(np.asarray(nearest))


def _chosen(
    heights: np.ndarray, at: np.ndarray, ends: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the grid of the points that count as lowest, and which cells have none."""
    is_empty = (at >= ends).reshape(shape)
    lowest = heights[np.minimum(at, len(heights) - 1)].reshape(shape)
    return filled(lowest, is_empty), is_empty


def _raise_unsupported(
    heights: np.ndarray, at: np.ndarray, ends: np.ndarray, low: np.ndarray, usual: np.ndarray, levels: _Levels
) -> int:
    """Raise the cells `low` to their first supported points, in place in `at`; return how many cells were raised."""
    raised = None
    while len(low):
        low = low[~levels.support(low, heights[at[low]], usual)]
        raised = len(low) if raised is None else raised
        at[low] += 1
        low = low[at[low] < ends[low]]
        # What is not far below the others needs no support.
        low = low[heights[at[low]] < usual[low] - _PIT]
    return raised or 0


class _Levels:
    """Sorted heights of the points of each block of cells."""

    def __init__(self, place: np.ndarray, heights: np.ndarray, shape: tuple[int, int], cell: float, sparse: bool):
        self._sparse = sparse
        self._shape = shape
        self._cell = cell
        self._blocks = (-(-shape[0] // WIDE), -(-shape[1] // WIDE))
        block = place // WIDE
        number = block[:, 0] * self._blocks[1] + block[:, 1]
        # One ascending sequence, in which the heights of each block have a span of their own.
        self._bottom = heights.min() - 2 * _BAND
        self._span = heights.max() - self._bottom + 2 * _BAND
        self._keys = np.sort(number * self._span + (heights - self._bottom))
        self._counts = np.bincount(number, minlength=self._blocks[0] * self._blocks[1])

    def support(self, cells: np.ndarray, low: np.ndarray, usual: np.ndarray) -> np.ndarray:
        """Return whether enough points lie on the level of the lowest points `low` (cells,) of some cells.

        Args:
            cells: (cells,) numbers of the cells.
            low: (cells,) heights of their lowest points.
            usual: (all cells,) what is usual around each; a level falls and rises with it, as on a slope.
        """
        is_supported = np.zeros(len(cells), bool)
        for start in range(0, len(cells), _MOST_AT_ONCE):
            part = slice(start, start + _MOST_AT_ONCE)
            on_level, spread, around = self._count(cells[part], low[part], usual)
            is_supported[part] = on_level >= np.maximum(_FEWEST, _SHARE * around)
            may_be = ~is_supported[part] & (on_level >= np.maximum(_FEWEST, _SPARSE * around)) & (spread >= _SPREAD)
            some = start + np.flatnonzero(may_be)
            if self._sparse and len(some):
                on_usual, _, _ = self._count(cells[some], usual[cells[some]], usual)
                is_supported[some] = on_usual < _OPAQUE * around[may_be]
        return is_supported

    def _count(self, cells: np.ndarray, low: np.ndarray, usual: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return how many points around each cell are on its level, in which share of the blocks, and of how many."""
        reach = np.arange(-_BLOCKS, _BLOCKS + 1)
        down, right = (steps.reshape(-1) for steps in np.meshgrid(reach, reach, indexing="ij"))
        row, column = (place[:, None] for place in np.divmod(cells, self._shape[1]))
        # (cells, blocks around)
        block_row = row // WIDE + down
        block_column = column // WIDE + right
        is_inside = (block_row >= 0) & (block_row < self._blocks[0])
        is_inside &= (block_column >= 0) & (block_column < self._blocks[1])
        block = np.where(is_inside, block_row * self._blocks[1] + block_column, 0)
        middle_row = np.clip(block_row * WIDE + WIDE // 2, 0, self._shape[0] - 1)
        middle_column = np.clip(block_column * WIDE + WIDE // 2, 0, self._shape[1] - 1)
        rise = usual[middle_row * self._shape[1] + middle_column] - usual[cells][:, None]
        most = 1 + _STEEPEST * self._cell * WIDE * np.maximum(np.abs(down), np.abs(right))
        level = low[:, None] - self._bottom + np.clip(rise, -most, most)
        # Levels below and above all points would lie in the spans of other blocks.
        first = np.searchsorted(self._keys, block * self._span + np.clip(level - _BAND, 0, self._span))
        last = np.searchsorted(self._keys, block * self._span + np.clip(level + _BAND, 0, self._span))
        on_level = np.where(is_inside, last - first, 0)
        spread = (on_level > 0).sum(axis=1) / is_inside.sum(axis=1)
        return on_level.sum(axis=1), spread, np.where(is_inside, self._counts[block], 0).sum(axis=1)
