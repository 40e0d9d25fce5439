"""Tiles that are one place: classes and heights of their points, and things that no border cuts.

tile ─► with the points around it ─► model of tiles ─► class, score ─┐
                                 └─► ground ─► height above it       ├─► trees whose top is in the tile
                                                                     └─► cells of roofs ─► blocks over all tiles
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.tasks.steps import return_free_memory
from hf_any3d.utils.atomic_files import reserve_room
from hf_any3d_survey.inventory.blocks import BlockCells
from hf_any3d_survey.inventory.left_out import LeftOut
from hf_any3d_survey.inventory.terrain import Terrain
from hf_any3d_survey.inventory.things import Thing, outlines_of, things_of
from hf_any3d_survey.inventory.trees import EVENNESS, number_trees
from hf_any3d_survey.local_features.ground_surface import GroundSurface
from hf_any3d_survey.local_features.map_index import MapIndex, PlacedPoints, blocks

GROUND, LOW, MEDIUM, HIGH, BUILDING, NOISE, HIGH_NOISE = 2, 3, 4, 5, 6, 7, 18
"""Codes of ASPRS for what stands in a place."""
VEGETATION = (LOW, MEDIUM, HIGH)
HEIGHTS = (0.5, 1.5)
"""Meters above the ground from which on vegetation is medium, and high: those of France's Lidar HD."""
MARGIN = 40.0
"""Meters around a tile within which points of others are seen: as far as ground and features reach."""
REGION, BUFFER = 150.0, 30.0
"""Meters of the squares in which trees are looked for at a time, at most, and around them."""
_REGION_POINTS = 2_000_000
# Spacing of points in meters, 0.7 a square meter, up to which crowns are told apart.
_WIDEST_SPACING = 1.2
# Vegetation below is bushes and grass, which are of no tree.
_LEAST_CROWN = 1.0
_CELL = 1.0
LEAST_GROUND = 0.001
"""Share of ground that any place seen from above has."""
_LEAST_EXTENT = 8.0  # meters: rooms and objects are smaller


@dataclass(frozen=True)
class Around:
    """Points of another tile: its number, their rows in it, and the points."""

    tile: int
    rows: np.ndarray
    cloud: PointCloudData


@dataclass
class Answer:
    """Knowledge of the points of a tile; each array is (points,).

    Attributes:
        classes: uint8 codes of ASPRS.
        scores: float32 probabilities of the classes.
        heights: float32 meters above the ground.
        numbers: int32 numbers of things; 0 for none.
        factor: (3,) length of a unit of the file in meters.
    """

    classes: np.ndarray
    scores: np.ndarray
    heights: np.ndarray
    numbers: np.ndarray
    factor: np.ndarray

    @classmethod
    def empty(cls, count: int, path: Path | None = None) -> Answer:
        """Make room for so many points, in files that begin with `path` where memory is not to hold them."""
        arrays: dict[str, np.ndarray] = {}
        for name, kind in (("classes", "u1"), ("scores", "<f4"), ("heights", "<f4"), ("numbers", "<i4")):
            if path is None:
                arrays[name] = np.zeros(count, kind)
            else:
                file = path.with_name(f"{path.name}.{name}.npy")
                arrays[name] = np.lib.format.open_memmap(file, "w+", np.dtype(kind), (count,))
                reserve_room(file)
        return cls(**arrays, factor=np.ones(3))

    def with_left_out(self, left_out: LeftOut, heights: np.ndarray) -> Answer:
        """Return the answer about all points of a file: those left out are noise and of no thing.

        Args:
            left_out: The points that are left out.
            heights: (rows,) meters of those above the terrain that are not far from the place.
        """
        return Answer(
            left_out.spread(self.classes, NOISE, NOISE),
            left_out.spread(self.scores, 0.0, 0.0),
            left_out.spread(self.heights, heights, 0.0),
            left_out.spread(self.numbers, 0, 0),
            self.factor,
        )


@dataclass(frozen=True)
class Seen:
    """A tile with what lies around it, as model and ground describe it, the tile's own points first.

    Attributes:
        points: (points, 3) on the map, in meters, which are computed where they are read.
        classes: (points,) codes of ASPRS.
        scores: (points,) their probabilities.
        heights: (points,) meters above the ground.
        count: Number of the tile's own points.
        bounds: (2, 3) lowest and highest coordinates of these, in meters.
        ground: The ground that the model's features are measured from.
        terrain: The surface through the points of class 2, above which heights are.
        spacing: Usual distance of neighboring points, seen from above.
        factor: (3,) length of a unit of the file in meters.
    """

    points: PlacedPoints
    classes: np.ndarray
    scores: np.ndarray
    heights: np.ndarray
    count: int
    bounds: np.ndarray
    ground: GroundSurface
    terrain: Terrain
    spacing: float
    factor: np.ndarray


class Place:
    """Tiles of one place, whose things have one number each.

    A tree belongs to the tile that has its top; its points in other tiles get its number there, too. Blocks of
    buildings are joined over all tiles.

    Args:
        counts: Points of each tile.
        smoothing: As of `number_trees`.
        evenness: As of `number_trees`.
        least_height: Height in meters from which on vegetation is a tree.
        least_area: Square meters from which on roofs are a building.
        folder: Where answers are kept until they are written; None keeps them in memory.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        smoothing: float | None = None,
        evenness: float = EVENNESS,
        least_height: float = 2.0,
        least_area: float = 10.0,
        folder: Path | None = None,
    ):
        paths = [None if folder is None else folder / f"tile{number}" for number in range(len(counts))]
        self.answers = [Answer.empty(count, path) for count, path in zip(counts, paths, strict=True)]
        self.trees: list[Thing] = []
        self.smoothing = smoothing
        self.evenness = evenness
        self.least_height = least_height
        self.least_area = least_area
        self._roofs = BlockCells(_CELL)
        # (rows, places on the map) of the roof points of each tile
        self._roof_points: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, tile: int, seen: Seen, around: Sequence[Around] = ()) -> None:
        """Take a tile as it was seen, number its trees, and keep its roofs."""
        own = slice(seen.count)
        answer = self.answers[tile]
        answer.classes[:] = seen.classes[own]
        answer.scores[:] = seen.scores[own]
        answer.heights[:] = seen.heights[own]
        answer.factor = seen.factor
        if seen.spacing <= _WIDEST_SPACING:
            self._number_trees(tile, seen, around)
        else:
            warnings.warn(
                f"{seen.spacing**-2:.2g} points a square meter are too few to tell trees apart: none is numbered",
                stacklevel=2,
            )
        roofs = np.flatnonzero(seen.classes[own] == BUILDING)
        if len(roofs):
            keys = np.empty(len(roofs), np.int64)
            for part in blocks(len(roofs)):
                rows = roofs[part]
                places = seen.points[rows]
                self._roofs.add(places, seen.heights[rows], seen.scores[rows])
                keys[part] = self._roofs.keys_of(places)
            self._roof_points[tile] = (roofs.astype(np.int32), keys)

    def _number_trees(self, tile: int, seen: Seen, around: Sequence[Around]) -> None:
        is_crown = are_crowns(seen.classes, seen.heights)
        if not is_crown.any():
            return
        # (others,) tile and row of each point behind the tile's own
        tiles = np.concatenate([np.zeros(0, np.int32), *(np.full(len(a.rows), a.tile, np.int32) for a in around)])
        rows = np.concatenate([np.zeros(0, np.int64), *(a.rows for a in around)])
        index = MapIndex(seen.points)
        width = _region_width(seen.spacing)
        for low, high in _regions(seen.bounds[:, :2], width):
            near = index.within(low - BUFFER, high + BUFFER)
            near = near[is_crown[near]]
            if not len(near):
                continue
            points = seen.points[near]
            found = number_trees(points, seen.heights[near], smoothing=self.smoothing, evenness=self.evenness)
            # Its top decides which tile, and which region of it, has a tree.
            tops = points[found.tops]
            is_own = ((tops[:, :2] >= low) & (tops[:, :2] < high)).all(axis=1)
            is_own &= near[found.tops] < seen.count
            is_own &= seen.heights[near[found.tops]] >= self.least_height
            numbers = found.numbers
            of_tile, of_row = np.full(len(near), tile), near.copy()
            behind = near >= seen.count
            of_tile[behind] = tiles[near[behind] - seen.count]
            of_row[behind] = rows[near[behind] - seen.count]
            # Points that a tree of another tile or region has already stay with it.
            for other in np.unique(of_tile):
                of_other = of_tile == other
                taken = self.answers[other].numbers[of_row[of_other]] > 0
                numbers[of_other] = np.where(taken, 0, numbers[of_other])
            counts = np.bincount(numbers, minlength=len(is_own) + 1)
            kept = np.flatnonzero(is_own & (counts[1:] > 0))
            place = np.zeros(len(is_own) + 1, np.int32)
            place[1 + kept] = len(self.trees) + 1 + np.arange(len(kept))
            numbers = place[numbers]
            is_numbered = numbers > 0
            numbered = near[is_numbered]
            numbers = numbers[is_numbered]
            of_tile, of_row = of_tile[is_numbered], of_row[is_numbered]
            for other in np.unique(of_tile):
                of_other = of_tile == other
                self.answers[other].numbers[of_row[of_other]] = numbers[of_other]
            scores = found.scores[kept][numbers - len(self.trees) - 1]
            codes = np.full(len(numbers), HIGH)
            self.trees += things_of(
                points[is_numbered], seen.heights[numbered], numbers, scores, codes, {HIGH: "tree"}, blocks=()
            )
            return_free_memory()

    def things(self) -> list[Thing]:
        """Return all things, and give the roofs of blocks their numbers; called once, after the last tile."""
        buildings = self._roofs.blocks(self.least_area)
        first = len(self.trees) + 1
        for tile, (rows, keys) in self._roof_points.items():
            numbers = self._roofs.of_keys(keys)
            is_kept = numbers >= 0
            self.answers[tile].numbers[rows[is_kept]] = first + numbers[is_kept]
        found = list(self.trees)
        if buildings:
            # By the middles of their cells
            cells = np.concatenate([block.cells for block in buildings]) + _CELL / 2
            outlines = outlines_of(cells, np.array([len(block.cells) for block in buildings]), _CELL)
            for number, (block, outline) in enumerate(zip(buildings, outlines, strict=True)):
                x, y = block.cells.mean(axis=0) + _CELL / 2
                area = len(block.cells) * _CELL**2
                sizes = (block.ground, block.height, area, block.points, block.score)
                found.append(Thing(first + number, "building", BUILDING, x, y, *sizes, outline.ring))
        factor = self.answers[0].factor
        in_unit_of_file = []
        for thing in found:
            outline = None if thing.outline is None else thing.outline / factor[:2]
            x, y, ground = (float(value) for value in np.array([thing.x, thing.y, thing.ground]) / factor)
            in_unit_of_file.append(replace(thing, x=x, y=y, ground=ground, outline=outline))
        return in_unit_of_file


def _regions(bounds: np.ndarray, width: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield lower and upper corners of squares that cover an area, by its lowest and highest place (2, 2)."""
    low, high = np.floor(bounds / width)
    for x in np.arange(low[0], high[0] + 1):
        for y in np.arange(low[1], high[1] + 1):
            corner = np.array([x, y]) * width
            yield corner, corner + width


def _region_width(spacing: float) -> float:
    """Return how wide the squares are in which trees are looked for at a time: where points are dense, less."""
    return max(REGION / 4, min(REGION, np.sqrt(_REGION_POINTS) * spacing - 2 * BUFFER))


def scores_of(things: Sequence[Thing]) -> np.ndarray:
    """Return how sure things are by their numbers, (things + 1,) float32; 0 for the number 0, which is none."""
    scores = np.zeros(len(things) + 1, np.float32)
    for thing in things:
        scores[thing.number] = thing.score
    return scores


def joined(cloud: PointCloudData, around: Sequence[Around], columns: Sequence[str] = ()) -> PointCloudData:
    """Return a tile with the points around it behind its own."""
    if not around:
        return cloud
    offset = np.zeros(3) if cloud.offset is None else cloud.offset
    others = [other.cloud for other in around]
    points = [cloud.points]
    for other in others:
        shift = (np.zeros(3) if other.offset is None else other.offset) - offset
        points.append((other.points + shift).astype(cloud.points.dtype))
    arrays: dict[str, Any] = {"points": np.concatenate(points)}
    for name in ATTRIBUTES.values():
        values = [getattr(part, name) for part in (cloud, *others)]
        # What a neighbor lacks, the model would miss.
        if all(own is not None for own in values):
            arrays[name] = np.concatenate(values)
    further = {}
    for name in columns:
        further[name] = np.concatenate([(part.further or {})[name] for part in (cloud, *others)])
    units: dict[str, Any] = {"meters_per_unit": cloud.meters_per_unit, "meters_per_height": cloud.meters_per_height}
    units |= {"offset": cloud.offset, "in_degrees": cloud.in_degrees}
    whole = PointCloudData(**arrays, further=further or None, **units)
    # Codes of a byte, which the constructor would make eight.
    labels = [part.labels for part in (cloud, *others) if part.labels is not None]
    whole.labels = np.concatenate(labels, dtype=np.uint8, casting="unsafe")
    return whole


def are_crowns(classes: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Return which points (points,) may be of trees."""
    return np.isin(classes, VEGETATION) & (heights > _LEAST_CROWN)


def by_height(codes: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Return codes (points,) in which vegetation is low, medium or high by its height above the ground."""
    of_height = np.array(VEGETATION)[np.digitize(heights, HEIGHTS)]
    return np.where(np.isin(codes, VEGETATION), of_height, codes).astype(np.uint8)


def check_place(bounds: np.ndarray, classes: np.ndarray) -> None:
    """Raise an error for what is no place seen from above, such as a room or an object.

    Args:
        bounds: (2, 3) lowest and highest coordinates in meters.
        classes: (points,) codes of ASPRS.
    """
    width, depth = (bounds[1] - bounds[0])[:2]
    if min(width, depth) < _LEAST_EXTENT:
        raise PointCloudError(
            f"{width:.1f} × {depth:.1f} m; an inventory needs a place seen from above, of {_LEAST_EXTENT:g} m at least"
        )
    share = float((classes == GROUND).mean())
    if share < LEAST_GROUND:
        raise PointCloudError(f"{share:.2%} of its points are ground; an inventory needs a place seen from above")
