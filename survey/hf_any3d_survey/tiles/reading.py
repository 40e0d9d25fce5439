"""Read labeled tiles, and collect what is known of each without its points."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_any3d.data.checks.left_out_points import count_left_out
from hf_any3d.data.files import PointCloudData, PointCloudError, file_errors, read_point_cloud
from hf_any3d.data.files.label_words import with_words
from hf_any3d.data.files.point_cloud import _bounds, row_blocks
from hf_any3d.data.files.source import NoPointsError
from hf_any3d.data.frames.far_points import split_far_points
from hf_any3d.data.frames.units import with_unit
from hf_any3d.evaluation.labels import points_that_count
from hf_any3d.hub.names import no_such
from hf_any3d.registry import FORMATS
from hf_any3d.utils.messages import printable
from hf_any3d_survey.processor import RETURNS

_LAS = (".las", ".laz")
_MEASURED = {"intensity": "intensity", "rgb": "colors", "normals": "normals"}
_DIGEST_STEP = 1e-5  # of the extent
_MIXERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)


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
        not_counted: Reason -> points that are withheld, or synthetic among measured ones; their codes are not among
            the others.
        left_out: Code of a class that is not learned -> points, or faces.
        words: Names of the codes, where the file has words for its classes.
        digest: Checksum of the points: copies have the same.
        ground_scale: Length on the ground of a meter on the map. Boxes are on the map, where neighbors touch.
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
    not_counted: Counter[str] = field(default_factory=Counter)
    left_out: Counter[int] = field(default_factory=Counter)
    words: tuple[str, ...] | None = None
    digest: str = ""
    ground_scale: float = 1.0

    @property
    def is_las(self) -> bool:
        """True if the format is that of airborne scans."""
        return self.path.suffix.lower() in _LAS

    @property
    def box(self) -> np.ndarray:
        """Lowest and highest x and y in meters on the map, (2, 2)."""
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
                raise ValueError(f"{path}: no point files; expected labeled .las, .laz, .ply, .pcd, .npz, … files")
        elif path.is_file():
            inside = [path]
        else:
            raise FileNotFoundError(no_such(path))
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
        unit: One of `hf_any3d.data.frames.units.LENGTHS`, that of files that say none.
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
        raise PointCloudError(f"{path}: {what} labels; assign a class to each")
    # A cloud without extent has no surroundings, and would be divided by 0.
    if not np.ptp(cloud.points, axis=0).any():
        raise PointCloudError(
            f"{path}: all {len(cloud)} points have the same coordinates; remove this file or export it again"
        )
    return cloud


def refuse_without_points(files: Sequence[Path], errors: Sequence[Exception]) -> None:
    """Raise an error if no file has points, by the errors of reading them; a few empty tiles are left out."""
    if len(errors) == len(files) and all(isinstance(error, NoPointsError) for error in errors):
        where = files[0] if len(files) == 1 else f"{files[0].parent}: none of {len(files)} files"
        raise ValueError(f"{where} has points" if len(files) > 1 else f"{where} has no points")


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
        count_left_out(cloud),
        words=cloud.label_names,
        digest=digest_of(cloud.points),
        ground_scale=cloud.ground_scale or 1.0,
    )


def digest_of(points: np.ndarray) -> str:
    """Return a checksum of points (points, 3) that does not depend on their order, place and size.

    Formats split off offsets of their own, and have units of their own.
    """
    low, high = (ends.astype(np.float64) for ends in _bounds(points))
    step = max(float((high - low).max()), float(np.finfo(np.float32).tiny)) * _DIGEST_STEP
    total = 0
    for rows in row_blocks(len(points)):
        cells = np.rint((points[rows] - low) / step).astype(np.uint64)
        mixed = (cells * _MIXERS).sum(axis=1, dtype=np.uint64)
        mixed ^= mixed >> np.uint64(29)
        # Arrays overflow, as hashes do; a numpy scalar would warn of it.
        total += int((mixed * _MIXERS[0]).sum(dtype=np.uint64))
    return f"{len(points)}-{total % 2**64:x}"


def _counted(labels: np.ndarray | None) -> Counter[int]:
    if labels is None:
        return Counter()
    codes, counts = np.unique(labels, return_counts=True)
    return Counter(dict(zip(codes.tolist(), counts.tolist(), strict=True)))


def told(remarks: Sequence[str]) -> None:
    """Warn of each remark once."""
    for remark in remarks:
        warnings.warn(printable(remark), stacklevel=2)
