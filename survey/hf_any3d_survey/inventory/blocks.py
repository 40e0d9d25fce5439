"""Blocks of buildings: roofs whose points touch, over all tiles of a place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

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
    """

    cells: np.ndarray
    height: float
    ground: float
    points: int
    score: float


class BlockCells:
    """Cells with roof points of all tiles, and blocks of those that touch, corners included.

    Args:
        cell: Width of a cell in meters.
    """

    def __init__(self, cell: float):
        self.cell = cell
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._keys = np.zeros(0, np.int64)
        self._block_of_cell = np.zeros(0, np.int64)

    def add(self, points: np.ndarray, heights: np.ndarray, scores: np.ndarray) -> None:
        """Add roof points (points, 3) on the map, in meters, with heights above the ground and scores (points,)."""
        keys, cell_of = np.unique(self.keys_of(points), return_inverse=True)
        highest = np.full(len(keys), -np.inf)
        np.maximum.at(highest, cell_of, heights)
        sums = [np.bincount(cell_of, weights, len(keys)) for weights in (None, points[:, 2] - heights, scores)]
        self._parts.append((keys, np.stack([highest, *sums], axis=1)))

    def keys_of(self, points: np.ndarray) -> np.ndarray:
        """Return one whole number for the cell of each point, (points,)."""
        cells = np.floor(points[:, :2] / self.cell).astype(np.int64) + _HALF
        return cells[:, 0] * (2 * _HALF) + cells[:, 1]

    def blocks(self, least_area: float) -> list[Block]:
        """Return the blocks of at least so many square meters; `of_keys` gives their places in the list."""
        if not self._parts:
            return []
        every = np.concatenate([keys for keys, _ in self._parts])
        values = np.concatenate([own for _, own in self._parts])
        # Tiles share cells along their border.
        keys, of_part = np.unique(every, return_inverse=True)
        highest = np.full(len(keys), -np.inf)
        np.maximum.at(highest, of_part, values[:, 0])
        counts, ground, scores = (np.bincount(of_part, column, len(keys)) for column in values[:, 1:].T)
        found = _components(keys)
        areas = np.bincount(found) * self.cell**2
        kept = np.flatnonzero(areas >= least_area)
        place = np.full(len(areas), -1)
        place[kept] = np.arange(len(kept))
        self._keys, self._block_of_cell = keys, place[found]
        corners = np.stack(np.divmod(keys, 2 * _HALF), axis=1) - _HALF
        blocks = []
        order = np.argsort(found, kind="stable")
        starts = np.searchsorted(found[order], np.arange(len(areas) + 1))
        for number in kept:
            cells = order[starts[number] : starts[number + 1]]
            points = int(counts[cells].sum())
            blocks.append(
                Block(
                    corners[cells] * self.cell,
                    float(np.quantile(highest[cells], _ROOF)),
                    float(ground[cells].sum() / points),
                    points,
                    float(scores[cells].sum() / points),
                )
            )
        return blocks

    def of_keys(self, keys: np.ndarray) -> np.ndarray:
        """Return the places in the list of blocks of points with keys (points,), -1 for none."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._block_of_cell[at], -1)


def _components(keys: np.ndarray) -> np.ndarray:
    """Return the number of the component of each cell, by sorted keys (cells,)."""
    pairs = []
    for right, up in _NEIGHBORS:
        wanted = keys + right * 2 * _HALF + up
        at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        touches = keys[at] == wanted
        pairs.append(np.stack([np.flatnonzero(touches), at[touches]]))
    first, second = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(keys),) * 2)
    return connected_components(graph, directed=False)[1]
