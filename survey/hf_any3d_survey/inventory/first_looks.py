"""Knowledge of all tiles of a place before heights are measured: two looks at each tile, one after the other.

first look: points of a tile, with those around it ─► classes of its own points ─┐ kept, tile by tile
second look: its points, with classes and ground that the others found near it ◄─┘

So each point is labeled once, where all that is around it is seen, and tiles agree along their borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hf_any3d.data.files import PointCloudData
from hf_any3d_survey.inventory.place import MARGIN, Around, Copies
from hf_any3d_survey.inventory.seen import Labeled, Near, Seen
from hf_any3d_survey.inventory.shelf import Shelf
from hf_any3d_survey.inventory.steps import InventorySteps
from hf_any3d_survey.inventory.terrain import ground_of_cells
from hf_any3d_survey.inventory.tile_files import TileFile
from hf_any3d_survey.local_features.ground_surface import GroundSurface
from hf_any3d_survey.local_features.map_index import PlacedPoints

# Meters around a tile, and spacings of its points, within which points are looked at a second time: roofs and the
# canopy are described by a few cells around each.
_BESIDE, _SPACINGS = 5.0, 6.0


class _Kept(NamedTuple):
    """A first look without its arrays, which are on the shelf.

    Attributes:
        labeled: The answer, with arrays of no points.
        has_returns: Whether returns of the points near it are known.
    """

    labeled: Labeled
    has_returns: bool


class FirstLooks:
    """Keeps the first looks at the tiles of a place.

    Args:
        tiles: All tiles.
        shelf: Where arrays are kept.
    """

    def __init__(self, tiles: Sequence[TileFile], shelf: Shelf):
        self._tiles = tiles
        self._shelf = shelf
        self._kept: list[_Kept] = []

    def add(self, labeled: Labeled, cloud: PointCloudData, around: Sequence[Around], copies: Copies) -> None:
        """Keep the first look at the next tile.

        Args:
            labeled: The answer about its own points.
            cloud: These, and those around them.
            around: Points of other tiles, behind its own in the cloud.
            copies: Those of its own that an earlier tile has, too.
        """
        number = len(self._kept)
        count = len(labeled.classes)
        own = PlacedPoints(cloud.points[:count], labeled.factor, labeled.origin)
        others = PlacedPoints(cloud.points[count:], labeled.factor, labeled.origin)
        reach = _BESIDE + _SPACINGS * labeled.spacing
        beside = np.flatnonzero(_are_within(others[:], labeled.bounds, reach)) if around else np.zeros(0, np.int64)
        tiles = np.repeat([other.tile for other in around], [len(other.rows) for other in around]).astype(np.int64)
        rows = np.concatenate([np.zeros(0, np.int64), *(other.rows for other in around)])
        arrays = {
            "classes": labeled.classes,
            "scores": labeled.scores,
            "is_ground": labeled.is_ground,
            # Features alone read the other surfaces.
            "surfaces": labeled.ground.heights[:2],
            "ground": ground_of_cells(own, labeled.is_ground, labeled.spacing),
            "given beside": cloud.points[count:][beside],
            "tiles beside": tiles[beside],
            "rows beside": rows[beside],
            **{f"{name} of copies": values for name, values in vars(copies).items()},
        }
        returns = cloud.number_of_returns
        if returns is not None:
            arrays["returns beside"] = returns[count:][beside]
        self._shelf.put(_name_of(number), arrays)
        bare = GroundSurface(labeled.ground.corner, labeled.ground.cell, np.zeros((2, 0, 0)), np.zeros(0, bool))
        none = {name: np.zeros(0) for name in ("classes", "scores", "is_ground")}
        self._kept.append(_Kept(Labeled(**{**vars(labeled), **none, "ground": bare}), returns is not None))

    def second(self, pipe: InventorySteps, number: int) -> tuple[Seen, Copies]:
        """Look at a tile again, when the first looks at all of them are known."""
        tile = self._tiles[number]
        labeled, has_returns = self._kept[number]
        own = self._shelf.get(_name_of(number))
        surfaces = GroundSurface(labeled.ground.corner, labeled.ground.cell, own["surfaces"], np.zeros(0, bool))
        arrays = {name: own[name] for name in ("classes", "scores", "is_ground")}
        labeled = Labeled(**{**vars(labeled), **arrays, "ground": surfaces})
        cloud = tile.open()
        given = np.concatenate([cloud.points, own["given beside"]])
        returns = None
        if has_returns and cloud.number_of_returns is not None:
            returns = np.concatenate([cloud.number_of_returns, own["returns beside"]])
        near = self._near(labeled.bounds, number, own["tiles beside"], own["rows beside"])
        copies = Copies(*(np.asarray(own[f"{name} of copies"]) for name in ("rows", "tiles", "originals")))
        return pipe.see(labeled, given, returns, near, tile.stem), copies

    def _near(self, bounds: np.ndarray, number: int, tiles: np.ndarray, rows: np.ndarray) -> Near:
        """Return what other tiles say of the points `rows` (points,) of `tiles` (points,), and their ground."""
        classes = np.zeros(len(rows), np.uint8)
        scores = np.zeros(len(rows), np.float32)
        ground = [np.zeros((0, 3))]
        for other, kept in enumerate(self._kept):
            box = kept.labeled.bounds
            if other == number or (box[1] < bounds[0] - MARGIN)[:2].any() or (box[0] > bounds[1] + MARGIN)[:2].any():
                continue
            arrays = self._shelf.get(_name_of(other))
            is_of_other = tiles == other
            classes[is_of_other] = arrays["classes"][rows[is_of_other]]
            scores[is_of_other] = arrays["scores"][rows[is_of_other]]
            ground.append(arrays["ground"][_are_within(arrays["ground"], bounds, MARGIN)])
        return Near(classes, scores, np.concatenate(ground))


def _are_within(points: np.ndarray, bounds: np.ndarray, reach: float) -> np.ndarray:
    """Return which points (points, 3) are at most so many meters beyond bounds (2, 3), on the map, (points,) bool."""
    low, high = bounds[0, :2] - reach, bounds[1, :2] + reach
    return ((points[:, :2] >= low) & (points[:, :2] <= high)).all(axis=1)


def _name_of(tile: int) -> str:
    return f"look{tile}"
