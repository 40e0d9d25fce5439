"""Read labeled tiles, and tell what is wrong with them before anything is learned."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError, read_point_cloud
from hf_any3d.data.units import taken_for_meters, with_unit
from hf_any3d.processing.local_features import RETURNS
from hf_any3d.registry import FORMATS
from hf_any3d.utils.messages import printable

NEAR = 100.0
"""Meters between tiles up to which they are of one place: also neighbors with a gap show the same houses and trees."""
_LAS = (".las", ".laz")
_MEASURED = {"intensity": "intensity", "rgb": "colors", "normals": "normals"}
# What points have, as messages say it.
_WORDS = {"returns": "returns", "intensity": "intensities", "rgb": "colors", "normals": "normals"}
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

    @property
    def is_las(self) -> bool:
        """True if codes are those of ASPRS."""
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


def read_tile(path: Path, unit: str | None = None) -> PointCloudData:
    """Read a tile; one without points, without labels or without extent is an error.

    `unit`, one of `hf_any3d.data.units.LENGTHS`, is that of files that say none.
    """
    cloud = with_unit(read_point_cloud(path), unit)
    if cloud.labels is None and cloud.face_labels is None:
        what = "neither vertices nor faces have" if cloud.is_mesh else "its points have no"
        raise PointCloudError(f"{path}: {what} labels; expected a class for each")
    # A cloud without extent has no surroundings, and would be divided by 0.
    if not np.ptp(cloud.points, axis=0).any():
        raise PointCloudError(f"{path}: all {len(cloud)} points are equal; expected an object with an extent")
    return cloud


def look_at(path: Path, cloud: PointCloudData) -> TileFacts:
    """Collect the facts about a tile."""
    measured = {name for name, values in _MEASURED.items() if getattr(cloud, values) is not None}
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
    return TileFacts(
        path,
        len(cloud),
        _counted(cloud.labels),
        frozenset(measured),
        bounds,
        cloud.meters_per_unit,
        cloud.meters_per_height,
        _counted(cloud.face_labels),
        cloud.is_mesh,
        cloud.up_axis,
    )


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


def usable_measures(tiles: Sequence[TileFacts], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which of the `wanted` measures all tiles have, and remarks on those that only some have."""
    used = []
    remarks = []
    for name in wanted:
        without = [tile.path.name for tile in tiles if name not in tile.measured]
        if not without:
            used.append(name)
        # If no file has it, nothing is missing.
        elif len(without) < len(tiles):
            more = f" and {len(without) - 3} more" if len(without) > 3 else ""
            remarks.append(
                f"{_WORDS[name]}: not used, as {', '.join(without[:3])}{more} "
                f"ha{'s' if len(without) == 1 else 've'} none"
            )
    return used, remarks


def places_of(tiles: Sequence[TileFacts]) -> tuple[np.ndarray, list[str]]:
    """Return the number of the place of each tile, and remarks: tiles that overlap or touch are of one place."""
    place = np.arange(len(tiles))
    remarks = []
    for one in range(len(tiles)):
        for other in range(one):
            # Few tiles, so that all pairs can be looked at.
            apart = _distance(tiles[one], tiles[other])
            if apart > NEAR:
                continue
            # Joins the places of both, so that a chain of neighbors is one place.
            place[place == place[one]] = place[other]
            if _overlap(tiles[one], tiles[other]) > 0.05:
                names = f"{tiles[other].path.name} and {tiles[one].path.name}"
                remarks.append(f"overlap: {names}; points in both are learned twice, and never judged by each other")
    return np.unique(place, return_inverse=True)[1], remarks


def _distance(one: TileFacts, other: TileFacts) -> float:
    """Return how far the boxes of two tiles are apart, seen from above, in meters."""
    # Along x and y; negative where the boxes overlap
    gaps = np.maximum(one.box[0] - other.box[1], other.box[0] - one.box[1])
    return float(np.linalg.norm(gaps.clip(min=0)))


def _overlap(one: TileFacts, other: TileFacts) -> float:
    """Return the share of the smaller of two boxes, seen from above, that is in the other one."""
    sides = np.minimum(one.box[1], other.box[1]) - np.maximum(one.box[0], other.box[0])
    shared = np.prod(sides.clip(0))
    areas = [np.prod(np.ptp(tile.box, axis=0)) for tile in (one, other)]
    return float(shared / max(min(areas), 1e-12))


def told(remarks: Sequence[str]) -> None:
    """Warn of each remark once."""
    for remark in remarks:
        warnings.warn(printable(remark), stacklevel=2)
