"""Points that may be of trees, of all tiles of a place, by squares of the map.

Trees are looked for when all tiles are known, in squares that lie at multiples of their width: where tiles end, how
they overlap and in which order they come makes no difference to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_any3d_survey.inventory.shelf import Shelf
from hf_any3d_survey.local_features.map_index import PlacedPoints, blocks, numbered_keys
from hf_any3d_survey.local_features.sparse_boxes import bounds_of

SQUARE = 30.0
"""Meters of the squares by which points are found again."""
_FOOTPRINT = 2.0  # meters of the cells that tell where there are points


@dataclass(frozen=True)
class CrownPoints:
    """Points that may be of trees, within an area.

    Attributes:
        points: (points, 3) on the map in meters.
        heights: (points,) meters above the ground.
        tiles: (points,) number of the tile of each.
        rows: (points,) its number in that tile.
        is_guessed: (points,) whether the ground below is guessed.
        around: (places, 2) middles of cells of two meters that have any points.
    """

    points: np.ndarray
    heights: np.ndarray
    tiles: np.ndarray
    rows: np.ndarray
    is_guessed: np.ndarray
    around: np.ndarray

    def part(self, rows: np.ndarray) -> CrownPoints:
        """Return some of the points, by numbers or a mask."""
        own = (self.points, self.heights, self.tiles, self.rows, self.is_guessed)
        return CrownPoints(*(values[rows] for values in own), self.around)


class _Tile(NamedTuple):
    """Points of a tile.

    Attributes:
        number: Its number.
        factor, origin: (3,) by which what is given becomes places on the map, as of `PlacedPoints`.
        squares: (squares, 2) lower corners of these squares.
        ends: (squares + 1,) between which their points are.
        around: (places, 2) middles of the cells of the footprint.
        bounds: (2, 2) lowest and highest of these.
    """

    number: int
    factor: np.ndarray
    origin: np.ndarray
    squares: np.ndarray
    ends: np.ndarray
    around: np.ndarray
    bounds: np.ndarray


class CrownStore:
    """Keeps points that may be of trees until all tiles are known.

    Args:
        folder: Where they are kept; None keeps them in memory.
    """

    def __init__(self, folder: Path | None):
        # Points of tiles with their fields `given`, `height`, `row` and `is_guessed`, square by square
        self._points = Shelf(folder)
        self._tiles: list[_Tile] = []
        self._count = self._occupied = 0

    @property
    def density(self) -> float:
        """Points a square meter that has any."""
        return self._count / max(1, self._occupied)

    def add(
        self, tile: int, points: PlacedPoints, heights: np.ndarray, rows: np.ndarray, is_guessed: np.ndarray
    ) -> None:
        """Keep points of a tile.

        Args:
            tile: Its number.
            points: (all points, 3) on the map in meters, of which all tell where the place ends.
            heights: (all points,) meters above the ground.
            rows: (points,) those that may be of trees.
            is_guessed: (points,) whether the ground below these is guessed.
        """
        footprint = [np.unique(_keys(points[block], _FOOTPRINT)) for block in blocks(len(points))]
        around = (_places(np.unique(np.concatenate(footprint))) + 0.5) * _FOOTPRINT
        keys, squares = numbered_keys(lambda block: _keys(points[rows[block]], SQUARE), len(rows))
        ends = np.append(0, np.cumsum(np.bincount(squares, minlength=len(keys))))
        # Sorted by small numbers, and written where they stay: a copy of millions takes as much memory again.
        order = np.argsort(squares.astype(np.min_scalar_type(len(keys))), kind="stable")
        del squares
        kind = np.dtype([("given", points.given.dtype, 3), ("height", "<f4"), ("row", "<i4"), ("is_guessed", "?")])
        kept = self._points.room(f"crowns{tile}", "points", kind, (len(rows),))
        for block in blocks(len(rows)):
            own = order[block]
            kept["given"][block] = points.given[rows[own]]
            kept["row"][block] = rows[own]
            kept["height"][block] = heights[rows[own]]
            kept["is_guessed"][block] = is_guessed[own]
        placed = (points.factor, points.origin)
        self._tiles.append(_Tile(tile, *placed, _places(keys) * SQUARE, ends, around, bounds_of(around)))
        self._count += len(kept)
        for first, last in itertools.pairwise(ends.tolist()):
            own = PlacedPoints(kept["given"][first:last], points.factor, points.origin)
            self._occupied += len(np.unique(_keys(own[:], 1.0)))

    def squares(self, width: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield lower and upper corners (2,) of squares of the map that have points, of so many meters."""
        if not self._count:
            return
        places = np.concatenate([tile.squares for tile in self._tiles])
        for place in np.unique(np.floor((places + SQUARE / 2) / width), axis=0):
            yield place * width, (place + 1) * width

    def within(self, low: np.ndarray, high: np.ndarray) -> CrownPoints:
        """Return the points of all squares between two corners (2,), at multiples of `SQUARE`."""
        around = [np.zeros((0, 2))]
        parts: dict[str, list[np.ndarray]] = {
            "points": [np.zeros((0, 3))],
            "heights": [np.zeros(0, np.float32)],
            "tiles": [np.zeros(0, np.int32)],
            "rows": [np.zeros(0, np.int32)],
            "is_guessed": [np.zeros(0, bool)],
        }
        for tile in self._tiles:
            # Most of many tiles are elsewhere.
            if (tile.bounds[1] < low).any() or (tile.bounds[0] >= high).any():
                continue
            around.append(tile.around[_are_within(tile.around, low, high)])
            kept = self._points.get(f"crowns{tile.number}")["points"]
            for at in np.flatnonzero(_are_within(tile.squares, low, high)):
                own = kept[tile.ends[at] : tile.ends[at + 1]]
                parts["points"].append(PlacedPoints(own["given"], tile.factor, tile.origin)[:])
                parts["heights"].append(np.asarray(own["height"]))
                parts["tiles"].append(np.full(len(own), tile.number, np.int32))
                parts["rows"].append(np.asarray(own["row"]))
                parts["is_guessed"].append(np.asarray(own["is_guessed"]))
        found = {name: np.concatenate(values) for name, values in parts.items()}
        return CrownPoints(**found, around=np.concatenate(around))


def _are_within(places: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return which places (places, 2) lie between two corners (2,), (places,) bool."""
    return ((places >= low) & (places < high)).all(axis=1)


def _keys(points: np.ndarray, width: float) -> np.ndarray:
    """Return one whole number for the cell of each point (points, 2 or 3), (points,)."""
    cells = np.floor(points[:, :2] / width).astype(np.int64)
    return cells[:, 0] * (1 << 32) + cells[:, 1]


def _places(keys: np.ndarray) -> np.ndarray:
    """Return columns and rows (cells, 2) of cells."""
    rows = (keys + (1 << 31)) % (1 << 32) - (1 << 31)
    return np.stack([(keys - rows) >> 32, rows], axis=1)
