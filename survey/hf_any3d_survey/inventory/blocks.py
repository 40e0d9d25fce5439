"""Blocks of buildings: roofs whose points touch, over all tiles of a place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CELL = 1.0
"""Width of a cell in meters."""
_HALF = 1 << 30  # cells from the origin of the map along an axis, at most: two numbers fit into 63 bits
# The other four neighbors of a cell find it in turn.
_NEIGHBORS = ((1, 0), (0, 1), (1, 1), (1, -1))
_ROOF = 0.95


@dataclass(frozen=True)
class Block:
    """Building, or several that touch.

    Attributes:
        cells: (cells, 2) lower corners of the cells that it covers, on the map in meters.
        height: Meters above the ground that a twentieth of its cells exceed, as chimneys and antennas do.
        ground: Mean elevation of the ground below, in meters.
        points: Number of its points.
        score: Mean probability of their class.
        shape: (columns,) sums over its cells of what they are like.
    """

    cells: np.ndarray
    height: float
    ground: float
    points: int
    score: float
    shape: np.ndarray


class BlockCells:
    """Cells with roof points of all tiles, and blocks of those that touch, corners included."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._shapes: list[tuple[np.ndarray, np.ndarray]] = []
        self._keys = np.zeros(0, np.int64)
        self._block_of_cell = np.zeros(0, np.int64)

    def add(self, points: np.ndarray, heights: np.ndarray, scores: np.ndarray) -> None:
        """Add roof points (points, 3) on the map, in meters, with heights above the ground and scores (points,)."""
        keys, cell_of = np.unique(keys_of(points), return_inverse=True)
        highest = np.full(len(keys), -np.inf)
        np.maximum.at(highest, cell_of, heights)
        sums = [np.bincount(cell_of, weights, len(keys)) for weights in (None, points[:, 2] - heights, scores)]
        self._parts.append((keys, np.stack([highest, *sums], axis=1)))

    def add_shapes(self, keys: np.ndarray, shapes: np.ndarray) -> None:
        """Add what cells are like, by their sorted keys (cells,), as float32 numbers (cells, columns)."""
        self._shapes.append((keys, shapes))

    def blocks(self) -> list[Block]:
        """Return all blocks; `of_keys` gives their places in the list."""
        if not self._parts:
            return []
        every = np.concatenate([keys for keys, _ in self._parts])
        values = np.concatenate([own for _, own in self._parts])
        # Tiles share cells along their border.
        keys, of_part = np.unique(every, return_inverse=True)
        highest = np.full(len(keys), -np.inf)
        np.maximum.at(highest, of_part, values[:, 0])
        counts, ground, scores = (np.bincount(of_part, column, len(keys)) for column in values[:, 1:].T)
        shapes = self._shapes_of(keys)
        found = _components(keys)
        self._keys, self._block_of_cell = keys, found
        corners = corners_of(keys)
        # Block by block, from low to high
        order = np.lexsort((highest, found))
        starts = np.searchsorted(found[order], np.arange(found.max() + 1))
        counts, ground, scores, shapes = (
            np.add.reduceat(values[order], starts) for values in (counts, ground, scores, shapes)
        )
        heights = _quantiles(highest[order], starts)
        return [
            Block(
                corners[cells],
                float(heights[n]),
                ground[n] / counts[n],
                int(counts[n]),
                scores[n] / counts[n],
                shapes[n],
            )
            for n, cells in enumerate(np.split(order, starts[1:]))
        ]

    def _shapes_of(self, keys: np.ndarray) -> np.ndarray:
        """Return what cells are like, (cells, columns), the mean of the tiles that share one."""
        sums = np.zeros((len(keys), self._shapes[0][1].shape[1]))
        counts = np.zeros(len(keys))
        for own, shapes in self._shapes:
            at, is_there = find_cells(keys, own)
            sums[at[is_there]] += shapes[is_there]
            counts[at[is_there]] += 1
        return sums / counts[:, None]

    def of_keys(self, keys: np.ndarray) -> np.ndarray:
        """Return the places in the list of blocks of points with keys (points,)."""
        return self._block_of_cell[find_cells(self._keys, keys)[0]]


def keys_of(points: np.ndarray) -> np.ndarray:
    """Return one whole number for the cell of each point, (points,)."""
    cells = np.floor(points[:, :2] / CELL).astype(np.int64) + _HALF
    return cells[:, 0] * (2 * _HALF) + cells[:, 1]


def corners_of(keys: np.ndarray) -> np.ndarray:
    """Return the lower corners (cells, 2) of cells on the map, in meters."""
    return (np.stack(np.divmod(keys, 2 * _HALF), axis=1) - _HALF) * CELL


def shift_of(right: int, up: int) -> int:
    """Return what is added to the key of a cell for the one so many cells to the right and up."""
    return right * 2 * _HALF + up


def find_cells(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of wanted keys (wanted,) among sorted ones (cells,), and which of them are there."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return at, keys[at] == wanted


def _quantiles(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the `_ROOF` quantile of each group of sorted values (values,), which begin at `starts` (groups,)."""
    place = _ROOF * (np.diff(np.append(starts, len(values))) - 1)
    low = starts + np.floor(place).astype(np.int64)
    high = starts + np.ceil(place).astype(np.int64)
    return values[low] + (place % 1) * (values[high] - values[low])


def _components(keys: np.ndarray) -> np.ndarray:
    """Return the number of the component of each cell, by sorted keys (cells,)."""
    pairs = []
    for right, up in _NEIGHBORS:
        at, touches = find_cells(keys, keys + shift_of(right, up))
        pairs.append(np.stack([np.flatnonzero(touches), at[touches]]))
    first, second = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(keys),) * 2)
    return connected_components(graph, directed=False)[1]
