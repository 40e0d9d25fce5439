"""Sums over boxes of neighboring voxels, by sorted keys and prefix sums: no tree, no list of neighbors.

Voxels are sorted by x, y and z, so that those above each other are next to each other, and a sum over some of them is
the difference of two prefix sums. A box of 3 × 3 × 3 voxels is nine such differences.
"""

from __future__ import annotations

import numpy as np

_AROUND = tuple((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1))


class SparseVoxels:
    """Voxels of an edge that hold at least one of the points (points, 3).

    Attributes:
        of_point: (points,) number of the voxel that each point is in.
        counts: (voxels,) points in each.
    """

    def __init__(self, points: np.ndarray, edge: float):
        cells = np.floor(points / edge).astype(np.int64)
        # A margin, so that neighbors of the outermost voxels have keys of their own.
        cells -= cells.min(axis=0) - 1
        _, rows, self._height = (cells.max(axis=0) + 2).tolist()
        self._row = rows * self._height
        keys = cells[:, 0] * self._row + cells[:, 1] * self._height + cells[:, 2]
        # Sorting once gives all that np.unique would sort for again.
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        is_first = np.ones(len(keys), bool)
        np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
        self._keys = ordered[is_first]
        self.of_point = np.empty(len(keys), np.int64)
        self.of_point[order] = is_first.cumsum() - 1
        self.counts = np.bincount(self.of_point)

    def __len__(self) -> int:
        return len(self._keys)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Add values (points, c) of the points of each voxel, (voxels, c) float64."""
        return np.stack([np.bincount(self.of_point, column) for column in values.T], axis=1)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Average values (points, c) of the points of each voxel, (voxels, c) float64."""
        return self.sums(values) / self.counts[:, None]

    def box_sums(self, values: np.ndarray) -> np.ndarray:
        """Add values (voxels, c) of the 3 × 3 × 3 voxels around each one, (voxels, c)."""
        until = np.zeros((len(values) + 1, values.shape[1]))
        np.cumsum(values, axis=0, out=until[1:])
        total = np.zeros((len(self), values.shape[1]))
        for x, y in _AROUND:
            keys = self._keys + x * self._row + y * self._height
            # Keys from one below to one above: three voxels of a column, wherever some of them are empty.
            total += until[np.searchsorted(self._keys, keys + 2)]
            total -= until[np.searchsorted(self._keys, keys - 1)]
        return total

    def columns(self, heights: np.ndarray) -> tuple[np.ndarray, ...]:
        """Look along the 3 × 3 columns around each voxel, whose mean points have `heights` (voxels,).

        Returns:
            For each voxel, (voxels,): how many are above the box around it, how many below, and the lowest and the
            highest of the heights.
        """
        above = np.zeros(len(self))
        below = np.zeros(len(self))
        lowest = np.full(len(self), np.inf)
        highest = np.full(len(self), -np.inf)
        # Key of the lowest voxel that a column could have.
        bottoms = self._keys // self._height * self._height
        for x, y in _AROUND:
            shift = x * self._row + y * self._height
            start = np.searchsorted(self._keys, bottoms + shift)
            end = np.searchsorted(self._keys, bottoms + shift + self._height)
            above += end - np.searchsorted(self._keys, self._keys + shift + 2)
            below += np.searchsorted(self._keys, self._keys + shift - 1) - start
            has = end > start
            lowest[has] = np.minimum(lowest[has], heights[start[has]])
            highest[has] = np.maximum(highest[has], heights[end[has] - 1])
        return above, below, lowest, highest
