"""Sums over boxes of neighboring voxels, by sorted keys and lists of the neighbors that exist: no tree.

Voxels are sorted by x, y and z, so that those above each other are next to each other. The 3 × 3 × 3 voxels of a box
are then nine short ranges of voxels, which are looked up once for whatever is added over them.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

_AROUND = tuple((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1))
_KEY_BITS = 63


class SparseVoxels:
    """Voxels of an edge that hold at least one of the points (points, 3).

    Attributes:
        of_point: (points,) number of the voxel that each point is in.
        counts: (voxels,) points in each.
    """

    def __init__(self, points: np.ndarray, edge: float):
        self._sort([np.floor(points[:, axis] / edge).astype(np.int64) for axis in range(3)])

    def parents(self, factor: int) -> SparseVoxels:
        """Return the voxels of an edge `factor` times as long, whose points are these voxels."""
        rest, z = np.divmod(self._keys.astype(np.int64), self._height)
        x, y = np.divmod(rest, self._row // self._height)
        cells = [(column + low) // factor for column, low in zip((x, y, z), self._lows, strict=True)]
        parents = SparseVoxels.__new__(SparseVoxels)
        parents._sort(cells)
        return parents

    def _sort(self, cells: list[np.ndarray]) -> None:
        """Find the voxels of points by their cells, (points,) along each axis, and give them numbers."""
        # A margin, so that neighbors of the outermost voxels have keys of their own.
        self._lows = [int(column.min()) - 1 for column in cells]
        width, rows, self._height = (
            int(column.max()) - low + 2 for column, low in zip(cells, self._lows, strict=True)
        )
        self._row = rows * self._height
        keys = (cells[0] - self._lows[0]) * self._row
        keys += (cells[1] - self._lows[1]) * self._height
        keys += cells[2] - self._lows[2]
        bits = (len(keys) - 1).bit_length()
        if (width * self._row).bit_length() + bits > _KEY_BITS:
            # Stable: equal keys stay in their order.
            self._order = np.argsort(keys, kind="stable")
            ordered = keys[self._order]
        else:
            # Numbers behind the keys: sorting values is several times as fast as sorting their order.
            both = (keys << bits) | np.arange(len(keys))
            both.sort()
            ordered = both >> bits
            self._order = both & ((1 << bits) - 1)
            del both
        is_first = np.ones(len(keys), bool)
        np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
        starts = np.flatnonzero(is_first)
        # Half as long where they fit, with room for the keys of neighbors.
        fits = (width + 2) * self._row < np.iinfo(np.int32).max
        self._keys = ordered[starts].astype(np.int32 if fits else np.int64)
        self._ends = np.append(starts, len(keys))
        self.counts = np.diff(self._ends)
        self.of_point = np.empty(len(keys), np.int64)
        self.of_point[self._order] = np.repeat(np.arange(len(starts)), self.counts)

    def __len__(self) -> int:
        return len(self._keys)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Add values (points, c) of the points of each voxel, (voxels, c) float64."""
        ones = np.ones(len(self._order))
        return csr_array((ones, self._order, self._ends), (len(self), len(ones))) @ values

    def means(self, values: np.ndarray) -> np.ndarray:
        """Average values (points, c) of the points of each voxel, (voxels, c) float64."""
        return self.sums(values) / self.counts[:, None]

    def box_sums(self, values: np.ndarray, numbers: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Add values (voxels, c) of the 3 × 3 × 3 voxels around some, by their numbers, (numbers, c) float64."""
        starts, ends = (limits[:, numbers].T.reshape(-1) for limits in self._ranges)
        lengths = ends - starts
        until = np.cumsum(lengths, dtype=np.int64)
        # Ranges one after the other: each place holds its own number and how far its range is from that.
        columns = np.repeat(starts - (until - lengths), lengths)
        columns += np.arange(len(columns))
        rows = np.concatenate([[0], until[len(_AROUND) - 1 :: len(_AROUND)]])
        # 1 where a voxel (column) is in the box around another one (row).
        is_near = csr_array((np.ones(len(columns)), columns, rows), (len(rows) - 1, len(self)))
        return is_near @ values

    @cached_property
    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """First voxel of each of the nine columns of a box, and the one after its last, (9, voxels) each."""
        return _ranges(self._keys, self._row, self._height, 1)

    def columns(self, heights: np.ndarray) -> tuple[np.ndarray, ...]:
        """Look along the 3 × 3 columns around each voxel, whose mean points have `heights` (voxels,).

        Returns:
            For each voxel, (voxels,): how many are above the box around it, how many below, and the lowest and the
            highest of the heights.
        """
        # All voxels of a column of space have the same columns around them, of which there are far fewer.
        column = self._keys // self._height
        is_first = np.ones(len(self), bool)
        np.not_equal(column[1:], column[:-1], out=is_first[1:])
        start_of = np.append(np.flatnonzero(is_first), len(self))
        own = column[start_of[:-1]]
        bottom = heights[start_of[:-1]]
        top = heights[start_of[1:] - 1]
        before = np.zeros(len(own), np.int64)
        after = np.zeros(len(own), np.int64)
        lowest = np.full(len(own), np.inf)
        highest = np.full(len(own), -np.inf)
        last = len(own) - 1
        for place, end in zip(*_ranges(own, self._row // self._height, 1, 0), strict=True):
            found = np.minimum(place, last)
            has = end > place
            before += start_of[place]
            after += start_of[end]
            np.minimum(lowest, np.where(has, bottom[found], np.inf), out=lowest)
            np.maximum(highest, np.where(has, top[found], -np.inf), out=highest)
        of_column = np.repeat(np.arange(len(own)), np.diff(start_of))
        starts, ends = self._ranges
        above = after[of_column] - ends.sum(axis=0)
        below = starts.sum(axis=0) - before[of_column]
        return above, below, lowest[of_column], highest[of_column]


def _ranges(keys: np.ndarray, row: int, column: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the keys that are at most `reach` from those of the nine columns around each of some sorted, unique keys.

    Args:
        keys: (keys,) with room for `row`, `column` and `reach` on both sides.
        row: Distance between the keys of two columns beside each other along x.
        column: The same along y.
        reach: Distance along a column.

    Returns:
        The first place and the one after the last, (9, keys) each, in the order of `_AROUND`.
    """
    count = len(keys)
    starts = np.empty((len(_AROUND), count), np.int32)
    ends = np.empty_like(starts)
    own = len(_AROUND) // 2
    starts[own] = np.arange(count)
    ends[own] = starts[own] + 1
    if reach:
        is_next = keys[1:] == keys[:-1] + 1
        starts[own, 1:] -= is_next
        ends[own, :-1] += is_next
    # No key is as high as that after the last one.
    beyond = np.append(keys, np.iinfo(keys.dtype).max)
    for number in range(own + 1, len(_AROUND)):
        x, y = _AROUND[number]
        lowest = keys + (x * row + y * column - reach)
        start = np.searchsorted(keys, lowest)
        end = start.copy()
        # Each of these keys is there or not.
        for _ in range(2 * reach + 1):
            end += beyond[end] <= lowest + 2 * reach
        starts[number] = start
        ends[number] = end
        # Neighbors are mutual, so that the column on the other side needs no search: a key is before its range if the
        # range of that key has ended, and not behind it if the range of that key has begun.
        starts[-1 - number] = np.bincount(end, minlength=count)[:count].cumsum()
        ends[-1 - number] = np.bincount(start, minlength=count)[:count].cumsum()
    return starts, ends


def bounds_of(points: np.ndarray) -> np.ndarray:
    """Return the lowest and the highest coordinates of points (points, axes), as (2, axes)."""
    # Axis by axis: numpy takes ten times as long to reduce short rows.
    return np.array([[column.min() for column in points.T], [column.max() for column in points.T]])
