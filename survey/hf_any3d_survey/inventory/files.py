"""Inventory of files: copies with heights and numbers of things, a table of things, and rasters of a place."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudError, file_errors
from hf_any3d.data.files.coordinate_systems import name_of_system
from hf_any3d.data.files.labels import check_labels_fit, write_labels
from hf_any3d.data.options import one_of
from hf_any3d.utils.atomic_files import check_outputs, temporary_folder
from hf_any3d.utils.messages import shown_path
from hf_any3d_survey.inventory.checkpoints import read_checkpoints
from hf_any3d_survey.inventory.first_looks import FirstLooks
from hf_any3d_survey.inventory.left_out import split_left_out
from hf_any3d_survey.inventory.lengths import METERS, LengthUnit
from hf_any3d_survey.inventory.place import NOISE, Answer, Place, are_crowns, joined, scores_of
from hf_any3d_survey.inventory.rasters import (
    Raster,
    canopy_bands,
    canopy_raster,
    open_mosaic,
    terrain_bands,
    terrain_raster,
)
from hf_any3d_survey.inventory.report import About, PlaceReport, check_report, write_report
from hf_any3d_survey.inventory.seen import Seen
from hf_any3d_survey.inventory.shelf import Shelf
from hf_any3d_survey.inventory.steps import InventorySteps
from hf_any3d_survey.inventory.tables import check_table, write_table
from hf_any3d_survey.inventory.things import Thing
from hf_any3d_survey.inventory.tile_files import TileFile, look_at_tiles, system_of_place, with_points
from hf_any3d_survey.inventory.trees import TreeChoice, choose_by
from hf_any3d_survey.local_features.map_index import PlacedPoints

HEIGHT, NUMBER, SCORE = "HeightAboveGround", "PredInstance", "PredScore"
"""Columns of copies: PDAL's name for heights, and the field's for numbers of things."""
CHANGED = ("unclassified", "all", "none")
"""Points whose class is written: those that have none, all, or none."""


@dataclass(frozen=True)
class Outputs:
    """Paths of what is written of an inventory.

    Attributes:
        copies: Path of the copy of each tile; None for no copies.
        table: Path of the table of things, .csv, .geojson or .gpkg.
        terrain: Path of a GeoTIFF with elevations of the ground.
        canopy: Path of a GeoTIFF with the highest heights above the ground.
        report: Path of the report, .html or .json.
        checkpoints: Path of places with known elevations, at which the ground is judged in the report.
        classes: Points whose class is written, one of `CHANGED`.
        number: Column of the numbers.
    """

    copies: Sequence[Path] | None = None
    table: Path | None = None
    terrain: Path | None = None
    canopy: Path | None = None
    report: Path | None = None
    checkpoints: Path | None = None
    classes: str = "unclassified"
    number: str = NUMBER

    @property
    def columns(self) -> tuple[str, str, str]:
        """Names of the new columns of copies."""
        return HEIGHT, self.number, SCORE

    def check(self, files: Sequence[str], coordinate_system: str | None, copies: Mapping[str, Path]) -> None:
        """Check, before any work, that all can be written; `copies` has the path of the copy of each file."""
        one_of("classes", self.classes, CHANGED)
        named = {"table": self.table, "terrain": self.terrain, "canopy": self.canopy, "report": self.report}
        named |= {f"the copy of {file}": path for file, path in copies.items()}
        check_outputs({name: path for name, path in named.items() if path is not None}, files)
        for file in files:
            if file not in copies:
                continue
            with file_errors(file):
                check_labels_fit(
                    file, copies[file], codes=range(1, 8), columns=self.columns, keeps_class=self.classes == "none"
                )
        if self.table is not None:
            check_table(self.table, coordinate_system)
        if self.report is not None:
            check_report(self.report)
        elif self.checkpoints is not None:
            raise ValueError(f"{self.checkpoints}: checkpoints need a report; add --report FILE")


@dataclass(frozen=True)
class Found:
    """Things that an inventory has found, the points of each tile, and the files of these tiles."""

    things: list[Thing]
    points: list[int]
    files: list[str]


def take_inventory(
    pipe: InventorySteps,
    files: Sequence[str | os.PathLike],
    outputs: Outputs,
    *,
    unit: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
    command: str = "",
    **asked: Any,
) -> Found:
    """Find the trees and buildings of the tiles of one place, and write them.

    A tile is in memory at a time, with the points of its neighbors within 40 m; what is found waits in files. Copies
    are written at the end, each whole or not at all, when all numbers are known. Tiles without points, and small ones
    far from all others, are left out with a warning. So are points far from all others of their tile: in copies they
    are noise (7).

    Args:
        pipe: The pipeline.
        files: Paths of the tiles.
        outputs: What is written.
        unit: Unit of files that say none.
        progress: Called with a line for each tile that is begun.
        command: Command line that asks for it, which the report repeats; see `hf_any3d.utils.messages.shown_command`.
        **asked: Further arguments of the pipeline's calls, such as `smoothing`.

    Raises:
        PointCloudFileError: A file cannot be read, has no ground, or has a column of that name already; tiles have
            different units or coordinate systems; or none has points.
    """
    given = [os.fspath(file) for file in files]
    copies = dict(zip(given, outputs.copies or (), strict=False))
    paths = with_points(given)
    system = system_of_place(paths)
    outputs.check(paths, system, copies)
    checkpoints = None if outputs.checkpoints is None else read_checkpoints(outputs.checkpoints, system)
    with ExitStack() as stack:
        folder = None
        if len(paths) > 1:
            folder = stack.enter_context(temporary_folder())
        shelf = Shelf(folder)
        tiles = look_at_tiles(pipe, paths, unit, shelf, progress)
        looks = FirstLooks(tiles, shelf)
        for tile in tiles:
            progress(f"labeling {tile.path}")
            with file_errors(tile.path):
                _look_first(pipe, tile, tiles, looks, keeps=outputs.classes != "all")
        left_out_heights: dict[int, np.ndarray] = {}
        place = Place(folder=folder, **asked)
        length_unit = LengthUnit.of(tiles[0].height)
        rasters = _Rasters(outputs, tiles, system, length_unit, stack)
        report = None if outputs.report is None else PlaceReport(tiles, checkpoints)
        for number, tile in enumerate(tiles):
            progress(f"measuring {tile.path}")
            with file_errors(tile.path):
                seen, seen_before = looks.second(pipe, number)
            place.add(number, seen, seen_before)
            rasters.add(tile, seen)
            if report is not None:
                report.add(tile, seen, seen_before)
            if tile.left_out is not None:
                left_out_heights[number] = tile.left_out.heights_above(seen.terrain, seen.factor)
            del seen
        things = place.things()
        scores = scores_of(things)
        for number, tile in enumerate(tiles):
            if tile.path in copies:
                answer = place.answer_of(number)
                if tile.left_out is not None:
                    answer = answer.with_left_out(tile.left_out, left_out_heights[number])
                _write_copy(tile, copies[tile.path], answer, scores, outputs, length_unit)
        if outputs.table is not None:
            write_table(outputs.table, things, system, length_unit)
        if outputs.report is not None and report is not None:
            report.correct(place.rejected)
            settings = {"unit": unit, **place.settings, "classes": outputs.classes, "number_field": outputs.number}
            about = About(
                files=[tile.path for tile in tiles],
                left_out=_left_out(given, paths, tiles),
                model=shown_path(pipe.model.name_or_path),
                settings=settings,
                command=command,
                coordinate_system=None if system is None else name_of_system(system),
                map_unit_m=tiles[0].unit,
                elevation_unit_m=abs(tiles[0].height),
            )
            write_report(outputs.report, report.content(things, about, place.doubts))
        return Found(things, [tile.total for tile in tiles], [tile.path for tile in tiles])


def _look_first(
    pipe: InventorySteps, tile: TileFile, tiles: Sequence[TileFile], looks: FirstLooks, *, keeps: bool
) -> None:
    """Label a tile by what is around it; with `keeps`, points that have a class keep it."""
    cloud = tile.open()
    count = len(cloud)
    around, copies = tile.around(cloud, tiles)
    kept = cloud.labels if keeps else None
    cloud = joined(cloud, around, pipe.feature_extractor.columns)
    looks.add(pipe.label(cloud, count, kept), cloud, around, copies)


def _left_out(given: Sequence[str], with_points: Sequence[str], tiles: Sequence[TileFile]) -> dict[str, str]:
    """Return the files that are no tiles of a place, with the reason."""
    used = {tile.path for tile in tiles}
    reasons = {}
    for path in given:
        if path not in with_points:
            reasons[path] = "has no points"
        elif path not in used:
            reasons[path] = "far from all other tiles, or has no usable points"
    return reasons


def _write_copy(
    tile: TileFile, target: Path, answer: Answer, scores: np.ndarray, outputs: Outputs, unit: LengthUnit
) -> None:
    """Write the copy of a tile; `scores` (things + 1,) are those of things by their numbers."""
    labels = None
    if outputs.classes != "none":
        labels = tile.labels_of(answer, keeps=outputs.classes == "unclassified")
    # As PDAL and lidR have it: z and heights in one unit, whose difference is the elevation of the ground. Of depths
    # it is the sum, as heights above the ground stay heights.
    heights = answer.heights if unit.length == METERS.length else (answer.heights / unit.length).astype(np.float32)
    values = (heights, answer.numbers, scores[answer.numbers])
    write_labels(tile.path, target, labels, columns=dict(zip(outputs.columns, values, strict=True)))


class _Rasters:
    """GeoTIFFs of a place, to which its tiles are added; the first one decides how wide cells are."""

    def __init__(
        self, outputs: Outputs, tiles: Sequence[TileFile], system: str | None, unit: LengthUnit, stack: ExitStack
    ):
        # Name -> path, least width of a cell in meters, and bands
        asked = {
            "terrain": (outputs.terrain, 1.0, terrain_bands(unit.name)),
            "canopy": (outputs.canopy, 0.5, canopy_bands(unit.name)),
        }
        self.asked = {name: facts for name, facts in asked.items() if facts[0] is not None}
        self.unit = unit
        self.tiles = tiles
        self.system = system
        self.stack = stack
        # Name -> width of a cell in the unit of the files, and the open file
        self.open: dict[str, tuple[float, Any]] = {}

    def add(self, tile: TileFile, seen: Seen) -> None:
        """Add a tile."""
        for name, (path, least_cell, bands) in self.asked.items():
            if name not in self.open:
                cell = max(least_cell, round(seen.spacing, 1)) / tile.unit
                mosaic = open_mosaic(path, _bounds_of(self.tiles, cell), cell, self.system, bands)
                self.open[name] = cell, self.stack.enter_context(mosaic)
            cell, mosaic = self.open[name]
            mosaic.add(_raster(name, seen, cell, self.unit))


def _bounds_of(tiles: Sequence[TileFile], cell: float) -> tuple[float, float, float, float]:
    """Return the least and greatest places of all tiles, at multiples of a cell."""
    low = np.min([tile.bounds[0] for tile in tiles], axis=0)
    high = np.max([tile.bounds[1] for tile in tiles], axis=0)
    left, bottom = (np.floor(low / cell) * cell).tolist()
    right, top = ((np.floor(high / cell) + 1) * cell).tolist()
    return left, bottom, right, top


def _raster(name: str, seen: Seen, cell: float, unit: LengthUnit) -> Raster:
    """Return the terrain or canopy of a tile's own points, on its map and in a unit of lengths."""
    # What is noise hangs in the air, and covers no ground.
    is_seen = seen.classes != NOISE
    if name == "terrain":
        points = seen.points.part(np.flatnonzero(is_seen[: seen.count]))
        lengths = {"meters_per_unit": seen.factor[0], "meters_per_height": unit.length * unit.up}
        return terrain_raster(seen.terrain, points, cell=cell, **lengths)
    # Those of neighbors, too, so that a border is no gap.
    rows = np.flatnonzero(is_seen)
    points = seen.points.part(rows)
    on_map = PlacedPoints(points.given, points.factor / seen.factor, points.origin / seen.factor)
    return canopy_raster(on_map, seen.heights[rows] / unit.length, cell, seen.bounds[:, :2] / seen.factor[:2])


def learn_numbers(
    pipe: InventorySteps, path: str | os.PathLike, number: str = NUMBER, unit: str | None = None
) -> TreeChoice:
    """Choose smoothing and evenness by a scan whose tree numbers were corrected by hand.

    Args:
        pipe: The pipeline.
        path: The scan.
        number: Its column of numbers, whole ones from 1; 0, or less, for none.
        unit: Unit of a file that says none.

    Returns:
        `smoothing` and `evenness` of further calls, and how well they agree with the numbers.

    Raises:
        PointCloudFileError: The scan cannot be read, has no such column, or no number in it.
    """
    with file_errors(path):
        cloud = pipe.open(path, unit, (number,))
        cloud, _ = split_left_out(cloud, pipe.feature_extractor.split_far, Path(path).stem)
        if cloud is None:
            raise PointCloudError("all points are noise or withheld")
        numbers = np.nan_to_num((cloud.further or {})[number]).astype(np.int64)
        seen = pipe.look(cloud, Path(path).stem)
        crowns = np.flatnonzero(are_crowns(seen.classes, seen.heights))
        if not (numbers[crowns] > 0).any():
            raise PointCloudError(f"column {number!r} has no tree numbers")
        return choose_by(seen.points[crowns], seen.heights[crowns], numbers[crowns], around=seen.points[:])
