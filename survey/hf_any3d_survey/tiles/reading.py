"""Read labeled tiles, and tell what is wrong with them before anything is learned."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hf_any3d.data.class_rule import NO_CODES, ClassRule
from hf_any3d.data.far_points import split_far_points
from hf_any3d.data.files import PointCloudData, PointCloudError, file_errors, read_point_cloud
from hf_any3d.data.files.label_words import common_names, with_words
from hf_any3d.data.files.point_cloud import _bounds, row_blocks
from hf_any3d.data.files.source import NoPointsError
from hf_any3d.data.las_classes import ASPRS_CLASSES, CURRENT, UNCLASSIFIED, Kind, kind_of, names_of
from hf_any3d.data.units import taken_for_meters, with_unit
from hf_any3d.evaluation.labels import points_that_count
from hf_any3d.registry import FORMATS
from hf_any3d.utils.messages import listed, printable
from hf_any3d_survey.processor import RETURNS

OWN_SHARE = 0.01
"""Share of the labeled points from which on a code of the user's own is a class by itself: whoever marks cars in LAS
has no other codes for them. Surveys have stray ones, such as 64 for cranes, 0.07 % of the points of French tiles."""
_SELDOM_MISSED = (*UNCLASSIFIED, 7, 18)
NEAR = 100.0
"""Meters between tiles up to which they are of one place: also neighbors with a gap show the same houses and trees."""
_LAS = (".las", ".laz")
_MEASURED = {"intensity": "intensity", "rgb": "colors", "normals": "normals"}
# What points have, as messages say it.
_WORDS = {"returns": "returns", "intensity": "intensities", "rgb": "colors", "normals": "normals"}
_DIGEST_STEP = 1e-5  # of the extent
_MIXERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
POINTS, FACES = "points", "faces"
"""What labels are of; vertices are points."""


@dataclass(frozen=True)
class TileFacts:
    """Knowledge of a tile without its points.

    Attributes:
        path: Its file.
        points: Number of points.
        codes: Code of a class -> points.
        measured: What points have: "returns", "intensity", "rgb", "normals".
        bounds: (2, 3) lowest and highest coordinates in the file's unit.
        meters: Length of a unit in meters; None if the file does not say it.
        high: The same of heights, where it is another one.
        face_codes: Code of a class -> faces.
        is_mesh: Whether it has faces.
        up_axis: Axis that points up, if the file says it.
        table: What the codes are; see `PointCloudData.label_codes`.
        not_counted: Points that are withheld, or synthetic among measured ones; their codes are not among the others.
        left_out: Code of a class that is not learned -> points, or faces.
        words: Names of the codes, where the file has words for its classes.
        digest: Checksum of the points: copies have the same.
    """

    path: Path
    points: int
    codes: Counter[int]
    measured: frozenset[str]
    bounds: np.ndarray
    meters: float | None
    high: float | None
    face_codes: Counter[int] = field(default_factory=Counter)
    is_mesh: bool = False
    up_axis: str | None = None
    table: str | None = None
    not_counted: int = 0
    left_out: Counter[int] = field(default_factory=Counter)
    words: tuple[str, ...] | None = None
    digest: str = ""

    @property
    def is_las(self) -> bool:
        """True if the format is that of airborne scans."""
        return self.path.suffix.lower() in _LAS

    @property
    def box(self) -> np.ndarray:
        """Lowest and highest x and y in meters, (2, 2)."""
        return self.bounds[:, :2] * (self.meters or 1.0)


def tile_files(paths: Sequence[str | os.PathLike], split: str = "train") -> list[Path]:
    """Return the files of folders and files, each once, in order; of folders with splits those of one."""
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            # Datasets with splits must not be learned with their test files.
            folder = path / split if (path / split).is_dir() else path
            inside = sorted(file for file in folder.rglob("*") if file.suffix[1:].lower() in FORMATS)
            if not inside:
                raise ValueError(f"{path}: no files of points; expected .las, .laz, .ply, .pcd, .npz, … with labels")
        elif path.is_file():
            inside = [path]
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
        # By the resolved path, so that a link to a tile is not a second one; shown as it was given.
        files |= {file.resolve(): file for file in inside}
    return list(files.values())


def read_tile(
    path: Path,
    label_field: str | None = None,
    words: Sequence[str] | None = None,
    unit: str | None = None,
    columns: Sequence[str] = (),
    is_place: bool = True,
) -> PointCloudData:
    """Read a tile without its invalid points; one of few points, without labels or without extent is an error.

    Points that are far from all others of a place are left out with a warning.

    Args:
        path: Its file.
        label_field: Column that labels are read from; see `read_point_cloud`.
        words: Classes of all files by their numbers, where files name them by words.
        unit: One of `hf_any3d.data.units.LENGTHS`, that of files that say none.
        columns: Further columns; see `read_point_cloud`.
        is_place: Whether it may be a scan of a place; objects, whose size says nothing, are read whole.
    """
    cloud = read_point_cloud(path, on_invalid="drop", label_field=label_field, columns=columns)
    cloud = with_words(cloud, words, path)
    cloud = with_unit(cloud, unit)
    with file_errors(path):
        cloud.check_usable()
    if is_place:
        cloud, _ = split_far_points(cloud, path)
    if cloud.labels is None and cloud.face_labels is None:
        what = "neither vertices nor faces have" if cloud.is_mesh else "its points have no"
        raise PointCloudError(f"{path}: {what} labels; expected a class for each")
    # A cloud without extent has no surroundings, and would be divided by 0.
    if not np.ptp(cloud.points, axis=0).any():
        raise PointCloudError(f"{path}: all {len(cloud)} points are equal; expected an object with an extent")
    return cloud


def refuse_without_points(files: Sequence[Path], errors: Sequence[Exception]) -> None:
    """Raise an error if no file has points, by the errors of reading them; a few empty tiles are left out."""
    if len(errors) == len(files) and all(isinstance(error, NoPointsError) for error in errors):
        where = files[0] if len(files) == 1 else f"{files[0].parent}: none of {len(files)} files"
        raise ValueError(f"{where} has points" if len(files) > 1 else f"{where}: has no points")


def look_at(path: Path, cloud: PointCloudData) -> TileFacts:
    """Collect the facts about a tile."""
    fields = {name: getattr(cloud, field) for name, field in _MEASURED.items()}
    # 0 everywhere stands for what nobody has measured.
    measured = {name for name, values in fields.items() if values is not None and values.any()}
    if cloud.is_mesh:
        # Faces tell them.
        measured.add("normals")
    total = cloud.number_of_returns
    # Where every pulse came back once, returns say nothing.
    if getattr(cloud, RETURNS[0]) is not None and total is not None and total.max() > 1:
        measured.add("returns")
    # In double precision: coordinates of maps have more digits than float32.
    bounds = np.stack([cloud.points.min(axis=0), cloud.points.max(axis=0)]).astype(np.float64)
    if cloud.offset is not None:
        bounds += cloud.offset
    counts = points_that_count(cloud)
    return TileFacts(
        path,
        len(cloud),
        _counted(None if cloud.labels is None else cloud.labels[counts]),
        frozenset(measured),
        bounds,
        cloud.meters_per_unit,
        cloud.meters_per_height,
        _counted(cloud.face_labels),
        cloud.is_mesh,
        cloud.up_axis,
        cloud.label_codes,
        int((~counts).sum()),
        words=cloud.label_names,
        digest=digest_of(cloud.points),
    )


def digest_of(points: np.ndarray) -> str:
    """Return a checksum of points (points, 3) that does not depend on their order, place and size.

    Formats split off offsets of their own, and have units of their own.
    """
    low, high = (ends.astype(np.float64) for ends in _bounds(points))
    step = max(float((high - low).max()), float(np.finfo(np.float32).tiny)) * _DIGEST_STEP
    total = np.uint64(0)
    for rows in row_blocks(len(points)):
        cells = np.rint((points[rows] - low) / step).astype(np.uint64)
        mixed = (cells * _MIXERS).sum(axis=1, dtype=np.uint64)
        mixed ^= mixed >> np.uint64(29)
        # Of whole numbers that overflow, as hashes do
        total += (mixed * _MIXERS[0]).sum(dtype=np.uint64)
    return f"{len(points)}-{int(total):x}"


def _counted(labels: np.ndarray | None) -> Counter[int]:
    if labels is None:
        return Counter()
    codes, counts = np.unique(labels, return_counts=True)
    return Counter(dict(zip(codes.tolist(), counts.tolist(), strict=True)))


def what_is_labeled(tiles: Sequence[TileFacts]) -> str:
    """Return whether points or faces are learned, faces where all files have labels of both.

    Numbers of vertices in one file and of faces in another may be of different classes, which is an error.
    """
    if all(tile.face_codes for tile in tiles):
        return FACES
    if all(tile.codes for tile in tiles):
        return POINTS
    # Some file has no labels of points, and another none of faces.
    of_faces = next(tile.path for tile in tiles if not tile.codes)
    of_points = next(tile.path for tile in tiles if not tile.face_codes)
    raise ValueError(f"{of_faces}: labels are of faces, but in {of_points.name} of vertices; expected one of both")


def with_codes_of(tile: TileFacts, labeled: str) -> TileFacts:
    """Return the facts with the codes of faces in place of those of points, if faces are learned."""
    return replace(tile, codes=tile.face_codes) if labeled == FACES else tile


def with_common_words(tiles: Sequence[TileFacts]) -> list[TileFacts]:
    """Return the facts with one list of words for all tiles, whose numbers are the codes; as they are without words.

    Raises:
        ValueError: Classes are words in one tile, and numbers in another one.
    """
    words = common_names(tile.words for tile in tiles)
    if not words:
        return list(tiles)
    numbered = [tile for tile in tiles if tile.words is None]
    if numbered:
        worded = next(tile for tile in tiles if tile.words is not None)
        raise ValueError(
            f"{numbered[0].path}: labels are numbers, but words in {worded.path.name}; expected one of both"
        )
    common = []
    for tile in tiles:
        # Not labeled points keep their negative number.
        codes = {code: words.index((tile.words or ())[code]) if code >= 0 else code for code in tile.codes}
        counts = Counter({codes[code]: count for code, count in tile.codes.items()})
        common.append(replace(tile, codes=counts, words=words))
    return common


def with_one_table(tiles: Sequence[TileFacts]) -> tuple[list[TileFacts], list[str]]:
    """Return the facts with a table of codes for each tile, and a remark on codes that are taken for those of LAS.

    Classes are joined by their codes, so that in one folder with LAS they mean what LAS says in other files, too.
    """
    others = [tile.path.name for tile in tiles if tile.table is None]
    if not 0 < len(others) < len(tiles):
        return list(tiles), []
    remark = f"classes: those of {listed(others, 3)} are taken for codes of LAS, as the other files are LAS"
    return [replace(tile, table=tile.table or CURRENT) for tile in tiles], [remark]


def with_learned_codes(tiles: Sequence[TileFacts], rule: ClassRule) -> list[TileFacts]:
    """Return the facts with the codes that are learned, apart from those that are left out."""
    tiles = [_parted(tile, {code for code in tile.codes if rule.is_ignored(code, tile.table)}) for tile in tiles]
    # A few points with a code of the user's own are no class, unless they are named.
    codes = sum((tile.codes for tile in tiles), Counter())
    own = {code for tile in tiles for code in tile.codes if rule.is_own(code, tile.table)}
    few = {code for code in own if codes[code] < OWN_SHARE * codes.total()}
    return [_parted(tile, few) for tile in tiles]


def _parted(tile: TileFacts, left_out: set[int]) -> TileFacts:
    """Return the facts with some codes among those that are left out."""
    learned = Counter({code: count for code, count in tile.codes.items() if code not in left_out})
    return replace(tile, codes=learned, left_out=tile.left_out + tile.codes - learned)


def told_codes(tiles: Sequence[TileFacts], rule: ClassRule) -> list[str]:
    """Return remarks on points whose class is not learned although it was not named, and on how to learn it."""
    remarks = []
    flagged = sum(tile.not_counted for tile in tiles)
    if flagged:
        share = _percent(flagged, sum(tile.points for tile in tiles))
        remarks.append(f"not learned: {flagged:,} points with the flag withheld or synthetic, {share} of all")
    left_out = sum((tile.left_out for tile in tiles), Counter())
    # Who gives codes to ignore, or has numbers without a meaning, knows what is left out.
    if rule.ignored is not None or not left_out or all(tile.table is None for tile in tiles):
        return remarks
    total = left_out.total() + sum(tile.codes.total() for tile in tiles)
    # The largest first
    codes = [code for code, _ in left_out.most_common()]
    named = [f"{code} {_meaning(code, tiles)}, {_percent(left_out[code], total)}" for code in codes]
    # What is most likely missed: the largest of those that are not simply unclassified or noise
    missed = next((code for code in codes if code not in _SELDOM_MISSED), codes[0])
    others = ",".join(map(str, sorted({*codes} - {missed}))) or NO_CODES
    learn = f"--ignore {others} learns {missed}" + ("" if others == NO_CODES else f", --ignore {NO_CODES} all")
    return [*remarks, f"not learned: class {'; '.join(named)} of the labels; {learn}"]


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.2g} %"


def _meaning(code: int, tiles: Sequence[TileFacts]) -> str:
    """Return what a code is called in the first of the tiles whose class is left out."""
    table = next((tile.table for tile in tiles if code in tile.left_out), None)
    if table is None:
        return "without a meaning"
    kind = kind_of(code, table)
    if kind is Kind.OWN:
        return "user-defined"
    if kind is Kind.FLAGGED:
        return f"withheld {ASPRS_CLASSES[code & 31]}"
    return names_of(table).get(code, "reserved")


def units_of(tiles: Sequence[TileFacts]) -> list[str]:
    """Return remarks on units of scans of places that are converted, or taken for meters."""
    remarks = []
    unknown = [tile.path.name for tile in tiles if tile.meters is None]
    if unknown:
        remarks.append(taken_for_meters(unknown, len(tiles)))
    for what, lengths in (
        ("coordinates", [tile.meters for tile in tiles]),
        ("heights", [tile.high for tile in tiles]),
    ):
        feet = [tile.path.name for tile, length in zip(tiles, lengths, strict=True) if length not in (None, 1.0)]
        if feet:
            shown = ", ".join(feet[:3])
            remarks.append(f"units: {what} of {len(feet)} of {len(tiles)} tiles are in feet, and converted ({shown})")
    return remarks


def usable_measures(
    tiles: Sequence[TileFacts], wanted: Sequence[str], may_lack: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Return which of the `wanted` measures all tiles have, and remarks on those that only some have.

    Of those that scans `may_lack`, one tile that has them is enough.
    """
    used = []
    remarks = []
    for name in wanted:
        without = [tile.path.name for tile in tiles if name not in tile.measured]
        if not without or (name in may_lack and len(without) < len(tiles)):
            used.append(name)
        # If no file has it, nothing is missing.
        elif len(without) < len(tiles):
            has = "has" if len(without) == 1 else "have"
            remarks.append(f"{_WORDS[name]}: not used, as {listed(without, 3)} {has} none")
    return used, remarks


def places_of(tiles: Sequence[TileFacts]) -> tuple[np.ndarray, list[str]]:
    """Return the number of the place of each tile, and remarks: tiles that overlap or touch are of one place.

    So are copies, wherever they lie.
    """
    place = np.arange(len(tiles))
    remarks = []
    for one in range(len(tiles)):
        for other in range(one):
            # Few tiles, so that all pairs can be looked at. Boxes (2, 2), in meters, are seen from above.
            first = tiles[one].box
            second = tiles[other].box
            # Along x and y; negative where the boxes overlap
            gaps = np.maximum(first[0] - second[1], second[0] - first[1])
            if np.linalg.norm(gaps.clip(min=0)) > NEAR and not _are_copies(tiles[one], tiles[other]):
                continue
            # Joins the places of both, so that a chain of neighbors is one place.
            place[place == place[one]] = place[other]
            if _shared(tiles[one], tiles[other]) > _LEAST_SHARED:
                names = f"{tiles[other].path.name} and {tiles[one].path.name}"
                remarks.append(f"overlap: {names}; points in both are learned twice, and never judged by each other")
    return np.unique(place, return_inverse=True)[1], remarks


def twins_of(tiles: Sequence[TileFacts], are_places: bool) -> tuple[np.ndarray, list[str]]:
    """Return the number of the group of each tile, and remarks: copies, and tiles that share ground, are one group.

    Tiles of a group must not judge each other.
    """
    group = np.arange(len(tiles))
    remarks = []
    for one in range(len(tiles)):
        for other in range(one):
            is_copy = _are_copies(tiles[one], tiles[other])
            if is_copy:
                remarks.append(f"copies: {tiles[other].path.name} and {tiles[one].path.name} have the same points")
            if is_copy or (are_places and _shared(tiles[one], tiles[other]) > _LEAST_SHARED):
                group[group == group[one]] = group[other]
    return np.unique(group, return_inverse=True)[1], remarks


def _are_copies(one: TileFacts, other: TileFacts) -> bool:
    return one.digest != "" and one.digest == other.digest


def _shared(one: TileFacts, other: TileFacts) -> float:
    """Return the share of the smaller box of two tiles, seen from above, that is in the other one."""
    sides = np.minimum(one.box[1], other.box[1]) - np.maximum(one.box[0], other.box[0])
    smaller = min(np.prod(np.ptp(tile.box, axis=0)) for tile in (one, other))
    return float(np.prod(sides.clip(0)) / max(smaller, 1e-12))


_LEAST_SHARED = 0.05


def told(remarks: Sequence[str]) -> None:
    """Warn of each remark once."""
    for remark in remarks:
        warnings.warn(printable(remark), stacklevel=2)
