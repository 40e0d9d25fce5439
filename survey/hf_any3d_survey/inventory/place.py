"""Tiles that are one place: classes and heights of their points, and things that no border cuts.

tile ─► with the points around it ─► model of tiles ─► class, score ─┐
                                 └─► ground ─► height above it       ├─► points of crowns ─► trees over all tiles
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
from hf_any3d_survey.inventory.blocks import CELL, Block, BlockCells, corners_of, keys_of
from hf_any3d_survey.inventory.crown_points import SQUARE, CrownPoints, CrownStore
from hf_any3d_survey.inventory.crowns import step_of_density
from hf_any3d_survey.inventory.doubt import find_tree_doubts
from hf_any3d_survey.inventory.left_out import LeftOut
from hf_any3d_survey.inventory.outlines import OutlineCells
from hf_any3d_survey.inventory.roofs import (
    LEAST_PROBABILITY,
    are_open,
    are_plants,
    describe_blocks,
    describe_cells,
    packaged_roof_model,
)
from hf_any3d_survey.inventory.seen import Doubt, Seen
from hf_any3d_survey.inventory.shelf import Shelf
from hf_any3d_survey.inventory.things import HIGH, ROOF, Thing, trees_of
from hf_any3d_survey.inventory.trees import EVENNESS, number_trees
from hf_any3d_survey.local_features.map_index import blocks, numbered_keys

UNKNOWN, GROUND, LOW, MEDIUM, BUILDING, NOISE, HIGH_NOISE = 1, 2, 3, 4, 6, 7, 18
"""Codes of ASPRS for what stands in a place."""
VEGETATION = (LOW, MEDIUM, HIGH)
HEIGHTS = (0.5, 1.5)
"""Meters above the ground from which on vegetation is medium, and high: those of France's Lidar HD."""
MARGIN = 40.0
"""Meters around a tile within which points of others are seen: as far as ground and features reach."""
REGION, BUFFER = 150.0, SQUARE
"""Meters of the squares in which trees are looked for at a time, at most, and around them."""
_REGION_POINTS = 2_000_000
# Spacing of points in meters, 0.7 a square meter, up to which crowns are told apart.
_WIDEST_SPACING = 1.2
# Vegetation below is bushes and grass, which are of no tree.
_LEAST_CROWN = 1.0
# Width of the cells of outlines: meters at least, and spacings of points.
_OUTLINE_CELL, _SPACINGS = 0.5, 2.0
LEAST_GROUND = 0.001
"""Share of ground that any place seen from above has."""
_LEAST_EXTENT = 8.0  # meters: rooms and objects are smaller


@dataclass(frozen=True)
class Around:
    """Points of another tile: its number, their rows in it, and the points."""

    tile: int
    rows: np.ndarray
    cloud: PointCloudData


@dataclass(frozen=True)
class Copies:
    """Points of a tile that stand in an earlier one, too, as where tiles overlap; all arrays are (copies,).

    Attributes:
        rows: Their numbers in the tile.
        tiles: The earlier tile of each.
        originals: Its number there.
    """

    rows: np.ndarray
    tiles: np.ndarray
    originals: np.ndarray

    @classmethod
    def none(cls) -> Copies:
        """Return no copies."""
        return cls(*(np.zeros(0, np.int64) for _ in range(3)))


@dataclass(frozen=True)
class RoofPoints:
    """Points of roofs of a tile.

    Attributes:
        rows: (points,) their numbers in the tile.
        keys: (cells,) keys of the cells that they lie in.
        cell_of: (points,) place of the key of each among these.
        lies: (points,) whether they lie on the ground.
    """

    rows: np.ndarray
    keys: np.ndarray
    cell_of: np.ndarray
    lies: np.ndarray


@dataclass(frozen=True)
class Rejected:
    """Cells with points of a tile that were taken for roofs and are none.

    Attributes:
        middles: (cells, 2) on the map in meters.
        ground: (cells,) points that are ground.
        squares: (cells,) sum of the squares of their heights.
        canopy: (cells,) height of the highest vegetation; 0 for none.
        class_counts: (256,) points of each class.
    """

    middles: np.ndarray
    ground: np.ndarray
    squares: np.ndarray
    canopy: np.ndarray
    class_counts: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, cell_of: np.ndarray, classes: np.ndarray, heights: np.ndarray) -> Rejected:
        """Add up points (points,) by the keys of their cells (cells,)."""
        is_ground = classes == GROUND
        squares = np.where(is_ground, heights, 0).astype(np.float64) ** 2
        canopy = np.zeros(len(keys), np.float32)
        is_plant = np.isin(classes, VEGETATION)
        np.maximum.at(canopy, cell_of[is_plant], heights[is_plant])
        sums = (np.bincount(cell_of, values, len(keys)) for values in (is_ground, squares))
        return cls(corners_of(keys) + CELL / 2, *sums, canopy, np.bincount(classes, minlength=256))


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


class Place:
    """Tiles of one place, whose things have one number each.

    Trees and blocks of buildings are found when all tiles are known, so that borders cut none. Points that stand in
    several tiles are one point, with the answer of the first of these.

    Args:
        smoothing: As of `number_trees`.
        evenness: As of `number_trees`.
        min_height: Height in meters from which on vegetation is a tree.
        min_area: Square meters from which on roofs are a building.
        folder: Where answers are kept until they are written; None keeps them in memory.

    Attributes:
        trees: The trees.
        doubts: Reasons to doubt them.
        rejected: What was taken for roofs and is none, by tiles.
    """

    def __init__(
        self,
        *,
        smoothing: float | None = None,
        evenness: float = EVENNESS,
        min_height: float = 2.0,
        min_area: float = 10.0,
        folder: Path | None = None,
    ):
        self._answers = Shelf(folder)
        # Length of a unit of each tile's file, (3,), by the numbers of tiles
        self._factors: dict[int, np.ndarray] = {}
        self.trees: list[Thing] = []
        self.doubts: list[Doubt] = []
        self.rejected: list[Rejected] = []
        self.smoothing = smoothing
        self.evenness = evenness
        self.min_height = min_height
        self.min_area = min_area
        self._roofs = BlockCells()
        # Of trees by their numbers, and of roofs by -1 - the keys of `_roofs`. The first tile decides how wide cells
        # are.
        self._outlines: OutlineCells | None = None
        self._roof_points = Shelf(folder)
        self._tiles_with_roofs: list[int] = []
        self._crowns = CrownStore(folder)
        self._copies: dict[int, Copies] = {}
        # Cells of roofs below which the ground is guessed
        self._guessed_roofs: list[np.ndarray] = []

    @property
    def settings(self) -> dict[str, float | None]:
        """Settings by their names."""
        names = ("smoothing", "evenness", "min_height", "min_area")
        return {name: getattr(self, name) for name in names}

    def add(self, tile: int, seen: Seen, copies: Copies | None = None) -> None:
        """Take a tile as it was seen, and keep its crowns and roofs; `copies` are its points that were seen before."""
        own = slice(seen.count)
        answer = {name: getattr(seen, name)[own] for name in ("classes", "scores", "heights")}
        self._answers.put(_name_of(tile), {**answer, "numbers": np.zeros(seen.count, np.int32)})
        self._factors[tile] = seen.factor
        if self._outlines is None:
            self._outlines = OutlineCells(max(_OUTLINE_CELL, _SPACINGS * seen.spacing))
        is_new = np.ones(seen.count, bool)
        if copies is not None and len(copies.rows):
            self._copies[tile] = copies
            is_new[copies.rows] = False
        if seen.spacing <= _WIDEST_SPACING:
            may_be = are_crowns(seen.classes[own], seen.heights[own])
            # Roofs may turn out to be canopies.
            may_be |= (seen.classes[own] == BUILDING) & (seen.heights[own] > _LEAST_CROWN)
            crowns = np.flatnonzero(may_be & is_new)
            is_guessed = np.concatenate(
                [
                    np.zeros(0, bool),
                    *(seen.terrain.guessed_at(seen.points[crowns[part]]) for part in blocks(len(crowns))),
                ]
            )
            self._crowns.add(tile, seen.points.part(own), seen.heights, crowns, is_guessed)
        else:
            warnings.warn(
                f"{seen.spacing**-2:.2g} points per square meter are too few to separate trees, so trees "
                "are not numbered",
                stacklevel=2,
            )
        roofs = np.flatnonzero((seen.classes[own] == BUILDING) & is_new)
        if len(roofs):
            keys, cell_of = numbered_keys(lambda part: keys_of(seen.points[roofs[part]]), len(roofs))
            lies = np.empty(len(roofs), bool)
            for part in blocks(len(roofs)):
                rows = roofs[part]
                places = seen.points[rows]
                self._roofs.add(places, seen.heights[rows], seen.scores[rows])
                lies[part] = np.abs(seen.heights[rows]) < seen.terrain.tolerance_at(places)
                of_places = keys[cell_of[part]]
                self._outlines.add(places[:, :2], -1 - of_places)
                self._guessed_roofs.append(np.unique(of_places[seen.terrain.guessed_at(places)]))
            self._roof_points.put(
                _name_of(tile, "roofs"), vars(RoofPoints(roofs.astype(np.int32), keys, cell_of, lies))
            )
            self._tiles_with_roofs.append(tile)
            cells, shapes = describe_cells(seen)
            # Those of other tiles are described there, with more of what is around them.
            is_own = np.isin(cells, keys)
            self._roofs.add_shapes(cells[is_own], shapes[is_own])

    def answer_of(self, tile: int) -> Answer:
        """Return what is known of the points of a tile; what is written into it is kept."""
        return Answer(**self._answers.get(_name_of(tile)), factor=self._factors[tile])

    def _roofs_of_tiles(self) -> Iterator[tuple[int, RoofPoints]]:
        """Yield the tiles that have roofs, with the points of these."""
        for tile in self._tiles_with_roofs:
            yield tile, RoofPoints(**self._roof_points.get(_name_of(tile, "roofs")))

    def _number_trees(self) -> None:
        """Give the trees of all tiles their numbers, square by square."""
        density = self._crowns.density
        step = step_of_density(density)
        counts = np.zeros(2, np.int64)
        for low, high in self._crowns.squares(_region_width(density)):
            near = self._crowns.within(low - BUFFER, high + BUFFER)
            near = near.part(np.isin(self._answers_of("classes", near), VEGETATION))
            found = number_trees(
                near.points,
                near.heights,
                smoothing=self.smoothing,
                evenness=self.evenness,
                around=near.around,
                step=step,
            )
            counts += len(found.tops), found.recount
            # Its top decides which square has a tree.
            tops = near.points[found.tops, :2]
            is_own = ((tops >= low) & (tops < high)).all(axis=1)
            is_own &= near.heights[found.tops] >= self.min_height
            # Points that a tree of another square has already stay with it.
            numbers = np.where(self._answers_of("numbers", near) > 0, 0, found.numbers)
            is_own &= np.bincount(numbers, minlength=len(is_own) + 1)[1:] > 0
            first = len(self.trees) + 1
            place = np.zeros(len(is_own) + 1, np.int32)
            place[1 + np.flatnonzero(is_own)] = first + np.arange(is_own.sum())
            numbers = place[numbers]
            rows = np.flatnonzero(numbers)
            self._set_numbers(near.tiles[rows], near.rows[rows], numbers[rows])
            scores = found.scores[is_own][numbers[rows] - first]
            trees = trees_of(near.points[rows], near.heights[rows], numbers[rows], scores)
            guessed = near.is_guessed[found.tops[is_own]]
            for tree, is_guessed in zip(trees, guessed.tolist(), strict=True):
                self.trees.append(replace(tree, ground_guessed=is_guessed))
            assert self._outlines is not None
            self._outlines.add(near.points[rows, :2], numbers[rows])
            return_free_memory()
        self.doubts += find_tree_doubts([tree.score for tree in self.trees], *counts.tolist())
        for doubt in self.doubts:
            warnings.warn(doubt.text, stacklevel=3)

    def _answers_of(self, name: str, points: CrownPoints) -> np.ndarray:
        """Return classes or numbers of points, (points,)."""
        values = np.zeros(len(points.rows), np.int32)
        for tile in np.unique(points.tiles).tolist():
            is_of_tile = points.tiles == tile
            values[is_of_tile] = getattr(self.answer_of(tile), name)[points.rows[is_of_tile]]
        return values

    def _set_numbers(self, tiles: np.ndarray, rows: np.ndarray, numbers: np.ndarray) -> None:
        for tile in np.unique(tiles).tolist():
            is_of_tile = tiles == tile
            self.answer_of(tile).numbers[rows[is_of_tile]] = numbers[is_of_tile]

    def things(self) -> list[Thing]:
        """Find trees and blocks of buildings, and give them numbers; called once, after the last tile."""
        # Canopies that were taken for roofs are crowns.
        found, scores = self._judge_blocks()
        self._number_trees()
        # Number of each block; 0 for those that are no buildings
        numbers = np.zeros(len(found), np.int32)
        numbers[scores > 0] = len(self.trees) + 1 + np.arange((scores > 0).sum())
        for tile, points in self._roofs_of_tiles():
            own = numbers[self._roofs.of_keys(points.keys)][points.cell_of]
            self.answer_of(tile).numbers[points.rows[own > 0]] = own[own > 0]
        self._answer_copies()
        things = self._with_outlines([*self.trees, *self._buildings(found, scores, numbers)], numbers)
        factor = self._factors[0]
        in_unit_of_file = []
        for thing in things:
            outline = tuple(ring / factor[:2] for ring in thing.outline)
            in_unit_of_file.append(replace(thing, x=thing.x / factor[0], y=thing.y / factor[1], outline=outline))
        return in_unit_of_file

    def _judge_blocks(self) -> tuple[list[Block], np.ndarray]:
        """Call the points of roofs that are none what they are.

        Returns:
            All blocks of roofs, and how probable it is that each is a building (blocks,); 0 for those that are none.
        """
        found = self._roofs.blocks()
        if not found:
            return [], np.zeros(0)
        is_large = np.array([len(block.cells) for block in found]) * CELL**2 >= self.min_area
        shapes = describe_blocks(found)
        scores = packaged_roof_model()(shapes)
        is_rejected = is_large & ((scores < LEAST_PROBABILITY) | are_open(found))
        stand_up = are_plants(shapes)
        for tile, points in self._roofs_of_tiles():
            of_cell = self._roofs.of_keys(points.keys)
            rejected = is_rejected[of_cell][points.cell_of]
            rows, block = points.rows[rejected], of_cell[points.cell_of[rejected]]
            answer = self.answer_of(tile)
            heights = answer.heights[rows]
            classes = classes_of_rejected(heights, stand_up[block], points.lies[rejected])
            answer.classes[rows] = classes
            self.rejected.append(Rejected.of(points.keys, points.cell_of[rejected], classes, heights))
        return found, np.where(is_large & ~is_rejected, scores, 0)

    def _buildings(self, found: Sequence[Block], scores: np.ndarray, numbers: np.ndarray) -> list[Thing]:
        """Return the buildings among blocks, by their scores and numbers (blocks,)."""
        if not found:
            return []
        guessed = self._roofs.of_keys(np.unique(np.concatenate(self._guessed_roofs)))
        guessed_cells = np.bincount(guessed, minlength=len(found))
        buildings = []
        for place in np.flatnonzero(numbers).tolist():
            block = found[place]
            x, y = block.cells.mean(axis=0) + CELL / 2
            area = len(block.cells) * CELL**2
            sizes = (float(block.ground), block.height, area, block.points, float(scores[place]))
            is_guessed = bool(2 * guessed_cells[place] > len(block.cells))
            buildings.append(Thing(int(numbers[place]), ROOF, BUILDING, x, y, *sizes, ground_guessed=is_guessed))
        return buildings

    def _answer_copies(self) -> None:
        """Give points that stand in several tiles the answer of the first."""
        for number, copies in self._copies.items():
            answer = self.answer_of(number)
            for tile in np.unique(copies.tiles).tolist():
                is_of_tile = copies.tiles == tile
                original = self.answer_of(tile)
                for name in ("classes", "scores", "heights", "numbers"):
                    values = getattr(original, name)[copies.originals[is_of_tile]]
                    getattr(answer, name)[copies.rows[is_of_tile]] = values

    def _with_outlines(self, things: list[Thing], of_blocks: np.ndarray) -> list[Thing]:
        """Return things with their outlines; `of_blocks` (blocks,) has the numbers of blocks."""
        if self._outlines is None:
            return things

        def numbers_of(numbers: np.ndarray) -> np.ndarray:
            new = numbers.copy()
            is_roof = numbers < 0
            if is_roof.any():
                new[is_roof] = of_blocks[self._roofs.of_keys(-1 - numbers[is_roof])]
            return new

        self._outlines.renumber(numbers_of)
        outlines = self._outlines.outlines()
        found = []
        for thing in things:
            outline = outlines[thing.number]
            found.append(replace(thing, area=outline.area, outline=outline.rings))
        return found


def classes_of_rejected(heights: np.ndarray, stand_up: np.ndarray, lies: np.ndarray) -> np.ndarray:
    """Return what points are whose block is no building.

    Args:
        heights: (points,) meters above the ground.
        stand_up: (points,) which blocks are plants; others are rocks, wires or the ground itself.
        lies: (points,) which points lie on the ground.
    """
    vegetation = by_height(np.full(len(heights), HIGH), heights)
    return np.where(stand_up, vegetation, np.where(lies, GROUND, UNKNOWN)).astype(np.uint8)


def _name_of(tile: int, what: str = "answer") -> str:
    """Return the name by which what belongs to a tile is kept."""
    return f"{what}{tile}"


def _region_width(density: float) -> float:
    """Return how wide the squares are in which trees are looked for at a time: where points are dense, less."""
    width = np.sqrt(_REGION_POINTS / max(density, 1)) - 2 * BUFFER
    return float(np.clip(width // SQUARE * SQUARE, SQUARE, REGION))


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
    names = ("meters_per_unit", "meters_per_height", "in_degrees", "ground_scale", "no_map", "offset")
    units: dict[str, Any] = {name: getattr(cloud, name) for name in names}
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
            f"{width:.1f} × {depth:.1f} m; an inventory needs an aerial scan at least {_LEAST_EXTENT:g} m wide"
        )
    share = float((classes == GROUND).mean())
    if share < LEAST_GROUND:
        raise PointCloudError(f"{share:.2%} of its points are ground; an inventory needs an aerial scan")
