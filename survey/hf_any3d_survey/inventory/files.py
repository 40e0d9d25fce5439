"""Inventory of files: copies with heights and numbers of things, a table of things, and rasters of a place."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pyproj import CRS
from pyproj.exceptions import CRSError

from hf_any3d.data.far_points import FarPoints, distance_in_words, far_groups, without_far_points
from hf_any3d.data.files import PointCloudData, PointCloudError, PointCloudFileError, file_errors
from hf_any3d.data.files.coordinate_systems import CoordinateSystem
from hf_any3d.data.files.labels import check_labels_fit, write_labels
from hf_any3d.data.files.las import has_no_points, system_of
from hf_any3d.data.files.source import NoPointsError
from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.data.las_classes import UNCLASSIFIED
from hf_any3d.data.options import one_of
from hf_any3d.tasks.segmentation.steps import part_of
from hf_any3d.utils.atomic_files import check_outputs, temporary_folder
from hf_any3d.utils.messages import listed, printable
from hf_any3d_survey.inventory.place import MARGIN, NOISE, Around, Place, Seen, are_crowns, joined, noise_of_file
from hf_any3d_survey.inventory.rasters import Raster, canopy_raster, open_mosaic, terrain_raster
from hf_any3d_survey.inventory.steps import InventorySteps
from hf_any3d_survey.inventory.tables import check_table, write_table
from hf_any3d_survey.inventory.things import Thing
from hf_any3d_survey.inventory.trees import TreeChoice, choose_by
from hf_any3d_survey.local_features.map_index import PlacedPoints, blocks, bounds_of_all

HEIGHT, NUMBER, SCORE = "HeightAboveGround", "PredInstance", "PredScore"
"""Columns of copies: PDAL's name for heights, and the field's for numbers of things."""
CHANGED = ("unclassified", "all", "none")
"""Points whose class is written: those that have none, all, or none."""
EDGE_ARRAYS = ("points", *ATTRIBUTES.values())
_SAME_UNIT = 1e-5


@dataclass(frozen=True)
class Outputs:
    """Paths of what is written of an inventory.

    Attributes:
        copies: Path of the copy of each tile; None for no copies.
        table: Path of the table of things, .csv, .geojson or .gpkg.
        terrain: Path of a GeoTIFF with elevations of the ground.
        canopy: Path of a GeoTIFF with the highest heights above the ground.
        classes: Points whose class is written, one of `CHANGED`.
        number: Column of the numbers.
    """

    copies: Sequence[Path] | None = None
    table: Path | None = None
    terrain: Path | None = None
    canopy: Path | None = None
    classes: str = "unclassified"
    number: str = NUMBER

    @property
    def columns(self) -> tuple[str, str, str]:
        """Names of the new columns of copies."""
        return HEIGHT, self.number, SCORE

    def check(self, files: Sequence[str], coordinate_system: str | None, copies: Mapping[str, Path]) -> None:
        """Check, before any work, that all can be written; `copies` has the path of the copy of each file."""
        one_of("classes", self.classes, CHANGED)
        named = {"table": self.table, "terrain": self.terrain, "canopy": self.canopy}
        named |= {f"the copy of {file}": path for file, path in copies.items()}
        check_outputs({name: path for name, path in named.items() if path is not None}, files)
        for file in files:
            if file not in copies:
                continue
            with file_errors(file):
                check_labels_fit(
                    file, copies[file], codes=range(2, 8), columns=self.columns, keeps_class=self.classes == "none"
                )
        if self.table is not None:
            check_table(self.table, coordinate_system)


@dataclass(frozen=True)
class Found:
    """Things that an inventory has found, the points of each tile, and the files of these tiles."""

    things: list[Thing]
    points: list[int]
    files: list[str]


@dataclass(frozen=True)
class _Tile:
    """A tile of a place while others are looked at.

    Attributes:
        path: Its file.
        count: Number of its points, without those far from all others.
        unit: Length of a unit in meters.
        height: The same of heights.
        bounds: (2, 2) lowest and highest places on the map, in its unit.
        has_class: (points,) which points of the file have a class, as packed bits.
        is_noise: (points,) which points have a class of noise, of those without the far ones, as packed bits.
        far: Points that are far from all others; None for none.
        edge: File with its points that others may see; None for a place of one tile.
        cloud: The points, where there is but one tile.
    """

    path: str
    count: int
    unit: float
    height: float
    bounds: np.ndarray
    has_class: np.ndarray
    is_noise: np.ndarray
    far: FarPoints | None
    edge: Path | None
    cloud: PointCloudData | None = None


def take_inventory(
    pipe: InventorySteps,
    files: Sequence[str | os.PathLike],
    outputs: Outputs,
    *,
    unit: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **asked: Any,
) -> Found:
    """Find what stands in tiles that are one place, and write it.

    A tile is in memory at a time, with the points of its neighbors within 40 m. Copies are written at the end, each
    whole or not at all, when all numbers are known. Tiles without points, and small ones far from all others, are left
    out with a warning. So are points far from all others of their tile: in copies they are noise (7).

    Args:
        pipe: The pipeline.
        files: Paths of the tiles.
        outputs: What is written.
        unit: Unit of files that say none.
        progress: Called with a line for each tile that is begun.
        **asked: Further arguments of the pipeline's calls, such as `smoothing`.

    Raises:
        PointCloudFileError: A file cannot be read, has no ground, or has a column of that name already; tiles have
            different units or coordinate systems; or none has points.
    """
    given = [os.fspath(file) for file in files]
    copies = dict(zip(given, outputs.copies or (), strict=False))
    paths = _with_points(given)
    system = _one_system(paths)
    outputs.check(paths, system, copies)
    with ExitStack() as stack:
        folder = None
        if len(paths) > 1:
            folder = stack.enter_context(temporary_folder())
        tiles = _without_far(_look_at_edges(pipe, paths, unit, folder, progress))
        place = Place([tile.count for tile in tiles], folder=folder, **asked)
        rasters: dict[str, Any] = {}
        for number, tile in enumerate(tiles):
            progress(tile.path)
            with file_errors(tile.path):
                cloud = tile.cloud
                if cloud is None:
                    cloud = pipe.open(tile.path, unit)
                    if tile.far is not None:
                        cloud = without_far_points(cloud, tile.far)
                around = _around(tiles, number)
                seen = pipe.look(
                    joined(cloud, around, pipe.feature_extractor.columns), len(cloud), Path(tile.path).stem
                )
                # What a person or a program calls noise stands nowhere.
                noise = np.unpackbits(tile.is_noise, count=tile.count).astype(bool)
                seen.classes[: tile.count][noise] = NOISE
            place.add(number, seen, around)
            for name, path, least_cell in (("terrain", outputs.terrain, 1.0), ("canopy", outputs.canopy, 0.5)):
                if path is None:
                    continue
                if name not in rasters:
                    cell = max(least_cell, round(seen.spacing, 1)) / tile.unit
                    bounds = _bounds_of(tiles, cell)
                    rasters[name] = cell, stack.enter_context(open_mosaic(path, bounds, cell, system))
                cell, mosaic = rasters[name]
                mosaic.add(_raster(name, seen, cell))
            del cloud, seen
        things = place.things()
        scores = np.zeros(len(things) + 1, np.float32)
        for thing in things:
            scores[thing.number] = thing.score
        for number, tile in enumerate(tiles):
            if tile.path not in copies:
                continue
            answer = place.answers[number]
            if tile.far is not None:
                answer = answer.with_far(tile.far)
            labels = None if outputs.classes == "none" else answer.classes.astype(np.int64)
            if labels is not None and outputs.classes == "unclassified":
                # Negative ones keep the class that they have.
                labels[np.unpackbits(tile.has_class, count=len(labels)).astype(bool)] = -1
            values = (answer.heights, answer.numbers, scores[answer.numbers])
            columns = dict(zip(outputs.columns, values, strict=True))
            write_labels(tile.path, copies[tile.path], labels, columns=columns)
        if outputs.table is not None:
            write_table(outputs.table, things, system)
        points = [tile.count if tile.far is None else len(tile.far.is_far) for tile in tiles]
        return Found(things, points, [tile.path for tile in tiles])


def _with_points(paths: Sequence[str]) -> list[str]:
    """Return the files that have points; a warning tells of the others.

    Raises:
        PointCloudFileError: None has any.
    """
    empty = [path for path in paths if has_no_points(path)]
    return _tell_of_empty(paths, empty)


def _tell_of_empty(paths: Sequence[str], empty: Sequence[str]) -> list[str]:
    if empty and len(empty) == len(paths):
        names = empty[0] if len(empty) == 1 else f"{empty[0]} and {len(empty) - 1} more"
        raise PointCloudFileError(f"{names}: has no points; expected a tile with points")
    for path in empty:
        warnings.warn(printable(f"{path}: has no points, and is left out"), stacklevel=4)
    return [path for path in paths if path not in empty]


def _one_system(paths: Sequence[str]) -> str | None:
    """Return the system of x and y of tiles of one place, that of the first which names one.

    Raises:
        PointCloudFileError: Two tiles have different systems.
    """
    known: list[tuple[str, CoordinateSystem]] = []
    for path in paths:
        own = system_of(path)
        for other, system in known:
            if _in_one_dialect(own).differs_from(_in_one_dialect(system)):
                raise PointCloudFileError(
                    f"{path}: its coordinate system is {own}, and that of {other} is {system}; expected one in all "
                    "tiles of a place: inventory those of each by themselves, or reproject them"
                )
        if str(own) and all(own != system for _, system in known):
            known.append((path, own))
    without = [path for path in paths if not str(system_of(path))]
    if known and without:
        text = f"{listed(without, 3)}: no coordinate system; taken for that of {known[0][0]}, {known[0][1]}"
        warnings.warn(printable(text), stacklevel=3)
    return next((system.flat for _, system in known if system.flat is not None), None)


@cache
def _in_one_dialect(system: CoordinateSystem) -> CoordinateSystem:
    """Return a system with its x and y as PROJ writes them; as it is where PROJ does not know it.

    Some files have a number of EPSG and no text, and each dialect has its own units and signs of parameters.
    """
    if system.flat is None:
        return system
    try:
        return replace(system, flat=CRS.from_user_input(system.flat).to_wkt("WKT1_GDAL"))
    except CRSError:
        return system


def _without_far(tiles: Sequence[_Tile]) -> list[_Tile]:
    """Return the tiles of a place without small ones that are far from all others; a warning tells of those."""
    if len(tiles) == 1:
        return list(tiles)
    boxes = np.array([tile.bounds * tile.unit for tile in tiles])
    is_far, gaps = far_groups(np.array([tile.count for tile in tiles]), boxes[:, 0], boxes[:, 1])
    for number in np.flatnonzero(is_far).tolist():
        tile = tiles[number]
        away = distance_in_words(gaps[number])
        text = f"{tile.path}: its {tile.count:,} points lie {away} away from all other tiles; it is left out"
        warnings.warn(printable(text), stacklevel=3)
    return [tile for tile, far in zip(tiles, is_far, strict=True) if not far]


def _raster(name: str, seen: Seen, cell: float) -> Raster:
    """Return the terrain or canopy of a tile's own points, in the units of its file."""
    # What is noise hangs in the air, and covers no ground.
    rows = np.flatnonzero(seen.classes[: seen.count] != NOISE)
    points = seen.points.part(rows)
    unit, _, unit_of_heights = seen.factor
    if name == "terrain":
        lengths = {"meters_per_unit": unit, "meters_per_height": unit_of_heights}
        return terrain_raster(seen.ground, points, cell=cell, **lengths)
    on_map = PlacedPoints(points.given, points.factor / seen.factor, points.origin / seen.factor)
    return canopy_raster(on_map, seen.heights[rows], cell)


def _bounds_of(tiles: Sequence[_Tile], cell: float) -> tuple[float, float, float, float]:
    """Return the least and greatest places of all tiles, at multiples of a cell."""
    low = np.min([tile.bounds[0] for tile in tiles], axis=0)
    high = np.max([tile.bounds[1] for tile in tiles], axis=0)
    left, bottom = (np.floor(low / cell) * cell).tolist()
    right, top = ((np.floor(high / cell) + 1) * cell).tolist()
    return left, bottom, right, top


def _look_at_edges(
    pipe: InventorySteps,
    paths: Sequence[str],
    unit: str | None,
    folder: Path | None,
    progress: Callable[[str], None],
) -> list[_Tile]:
    """Read each tile once, and keep its points near its border, if there are others."""
    tiles: list[_Tile] = []
    empty: list[str] = []
    for number, path in enumerate(paths):
        if folder is not None:
            progress(f"{path}: its borders")
        with file_errors(path):
            try:
                whole = pipe.open(path, unit)
            except NoPointsError:
                empty.append(path)
                continue
            length = whole.meters_per_unit or 1.0
            height = whole.meters_per_height or length
            for what, own, first in (
                ("unit", length, tiles[0].unit if tiles else length),
                ("unit of heights", height, tiles[0].height if tiles else height),
            ):
                if abs(own / first - 1) > _SAME_UNIT:
                    raise PointCloudError(
                        f"a {what} of {own:g} m, and {tiles[0].path} has one of {first:g} m; expected one in all "
                        "tiles of a place"
                    )
        has_class = np.zeros(len(whole), bool)
        if whole.labels is not None:
            has_class = ~np.isin(whole.labels, [*UNCLASSIFIED])
        has_class = np.packbits(has_class)
        cloud, far = pipe.feature_extractor.split_far(whole, Path(path).stem)
        del whole
        noise = noise_of_file(cloud)
        is_noise = np.packbits(noise)
        offset = np.zeros(3) if cloud.offset is None else cloud.offset
        points = PlacedPoints(cloud.points, np.ones(3), offset)
        bounds = bounds_of_all(points)[:, :2]
        cloud.labels = None
        facts = (path, len(cloud), length, height, bounds, has_class, is_noise, far)
        if folder is None:
            return [_Tile(*facts, None, cloud)]
        margin = MARGIN / length
        is_edge = np.empty(len(cloud), bool)
        for block in blocks(len(cloud)):
            flat = points[block][:, :2]
            is_edge[block] = ((flat < bounds[0] + margin) | (flat > bounds[1] - margin)).any(axis=1)
        # Noise of a neighbor stands nowhere, either.
        rows = np.flatnonzero(is_edge & ~noise)
        part = part_of(cloud, rows)
        arrays = {name: values for name in EDGE_ARRAYS if (values := getattr(part, name)) is not None}
        further = {f"further {name}": (part.further or {})[name] for name in pipe.feature_extractor.columns}
        edge = folder / f"edge{number}.npz"
        stored: dict[str, Any] = {**arrays, **further, "rows": rows}
        stored["offset"] = offset
        np.savez(edge, **stored)
        tiles.append(_Tile(*facts, edge))
    _tell_of_empty(paths, empty)
    return tiles


def _around(tiles: Sequence[_Tile], number: int) -> list[Around]:
    """Return the points of other tiles that are near a tile."""
    own = tiles[number]
    found = []
    for other, tile in enumerate(tiles):
        margin = MARGIN / own.unit
        low, high = own.bounds[0] - margin, own.bounds[1] + margin
        if other == number or tile.edge is None or (tile.bounds[1] < low).any() or (tile.bounds[0] > high).any():
            continue
        with np.load(tile.edge) as stored:
            arrays = dict(stored)
        rows = arrays.pop("rows")
        offset = arrays.pop("offset")
        flat = arrays["points"][:, :2] + offset[:2]
        near = np.flatnonzero(((flat >= low) & (flat <= high)).all(axis=1))
        if len(near):
            further = {name.removeprefix("further "): arrays.pop(name)[near] for name in list(arrays) if " " in name}
            fields = {name: values[near] for name, values in arrays.items()}
            cloud = PointCloudData(**fields, further=further or None, offset=offset)
            found.append(Around(other, rows[near], cloud))
    return found


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
        cloud, _ = pipe.feature_extractor.split_far(cloud, Path(path).stem)
        numbers = np.nan_to_num((cloud.further or {})[number]).astype(np.int64)
        seen = pipe.look(cloud, len(cloud), Path(path).stem)
        crowns = np.flatnonzero(are_crowns(seen.classes, seen.heights))
        if not (numbers[crowns] > 0).any():
            raise PointCloudError(f"column {number!r} has no number of a tree")
        return choose_by(seen.points[crowns], seen.heights[crowns], numbers[crowns])
