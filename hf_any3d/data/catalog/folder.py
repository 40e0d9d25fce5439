"""A folder of point files and meshes; the folder's name is the label, as in imagefolder."""

import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, NamedSplit, Value
from datasets.exceptions import DatasetGenerationError

from hf_any3d.data.catalog.layout import LabelledFile, find_labelled_files
from hf_any3d.data.files import PointCloudError, PointCloudFileError, read_point_cloud, supported_file_types
from hf_any3d.data.resampling import resample_index

logger = logging.getLogger(__name__)

COLUMN_TYPES = {"points": "float32", "normals": "float32", "colors": "uint8"}
COMPANIONS = {".mtl", ".bin", ".png", ".jpg", ".jpeg", ".tga", ".txt", ".md", ".json", ".csv"}
"""Endings of files that lie beside models and are no clouds themselves; others are mentioned when passed over."""


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    num_points: int | None = None,
    mesh_points: int = 2048,
    columns: Sequence[str] = (),
    seed: int = 0,
    on_error: str = "raise",
    **options,
) -> DatasetDict:
    """Read a folder of clouds.

    Args:
        data_dir: the folder: `class/file`, `split/class/file` or `class/split/file`, where the files may be of any
            readable format, also mixed.
        num_points: draw this many points of every file, so that all clouds have one size; None keeps all points of
            point files and draws `mesh_points` from the surface of meshes.
        mesh_points: points of a mesh when `num_points` is None.
        columns: "normals" and "colors" are read too where they are named here; every file must have them then.
        seed: decides which points are drawn, for each file on its own.
        on_error: "raise" stops at a file that cannot be read; "skip" leaves it out with a warning.
        options: `cache_dir` and `keep_in_memory` of `datasets.Dataset.from_generator`.

    Returns:
        Splits with `points` (Array2D float32, in the units of the file), `label` (ClassLabel, names in alphabetical
        order), `file` (path inside the folder), and the columns asked for: `normals` float32, `colors` uint8. Without
        folders of splits, all is `train`.

    Raises:
        ValueError: an unreadable file, a layout that says no class, or splits whose classes differ.
        FileNotFoundError: no such folder, or no clouds in it.
    """
    if data_dir is None:
        raise ValueError("data_dir is None; expected the folder with the clouds")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
    for name, value in (("num_points", num_points), ("mesh_points", mesh_points)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    if unknown := sorted(set(columns) - {"normals", "colors"}):
        raise ValueError(f"columns has {unknown[0]!r}; expected 'normals' or 'colors'")

    root = Path(data_dir)
    splits, others = find_labelled_files(root, {f".{file_type}" for file_type in supported_file_types()})
    if passed_over := sorted(set(others) - COMPANIONS):
        logger.warning("%s: passed over files of types %s", root, ", ".join(passed_over))
    features = Features(
        {
            **{name: Array2D((num_points, 3), COLUMN_TYPES[name]) for name in ("points", *columns)},
            "label": ClassLabel(names=_classes(root, splits)),
            "file": Value("string"),
        }
    )
    loaded = DatasetDict()
    for split, files in splits.items():
        arguments = {
            "root": str(root),
            # Sizes and times of the files are part of the arguments, so that a changed file is read anew.
            "stamps": tuple((str(file.path), file.label, *_stamp(file.path)) for file in files),
            "columns": ("points", *columns),
            "num_points": num_points,
            "mesh_points": mesh_points,
            "seed": seed,
            "skip": on_error == "skip",
        }
        try:
            loaded[split] = Dataset.from_generator(
                _rows, features=features, gen_kwargs=arguments, split=NamedSplit(split), **options
            )
        except DatasetGenerationError as error:
            raise (error.__cause__ or error) from None
    return loaded


def _classes(root: Path, splits: dict[str, list[LabelledFile]]) -> list[str]:
    first = "train" if "train" in splits else next(iter(splits))
    classes = {file.label for file in splits[first]}
    for split, files in splits.items():
        if unknown := sorted({file.label for file in files} - classes):
            raise ValueError(f"{root}: split {split} has classes {unknown} that split {first} does not have")
    return sorted(classes)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _rows(root: str, stamps: tuple, skip: bool, seed: int, **settings) -> Iterator[dict]:
    none_read = True
    for path, label, _, _ in stamps:
        name = Path(path).relative_to(root).as_posix()
        # Seeded by its own name, a file gives the same points whatever lies beside it.
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        try:
            row = _read(path, generator, **settings)
        except PointCloudError as error:
            if not skip:
                raise
            logger.warning("left out %s", error)
            continue
        none_read = False
        yield {**row, "label": label, "file": name}
    if none_read:
        raise ValueError(
            f"{root}: none of the {len(stamps)} files of a split could be read, the first is {stamps[0][0]}"
        )


def _read(
    path: str, generator: np.random.Generator, columns: Sequence[str], num_points: int | None, mesh_points: int
) -> dict[str, np.ndarray]:
    cloud = read_point_cloud(path)
    if cloud.is_mesh:
        try:
            cloud = cloud.sample_surface(num_points or mesh_points, generator)
        except PointCloudError as error:
            raise PointCloudFileError(f"{path}: {error}") from None
        index = slice(None)
    else:
        index = slice(None) if num_points is None else resample_index(len(cloud), num_points, generator)
    row = {}
    for name in columns:
        values = getattr(cloud, name)
        if values is None:
            raise PointCloudFileError(f"{path}: the file has no {name}; leave them out of columns, or the file")
        if name == "colors":
            values = (values * 255).round()
        row[name] = values[index].astype(COLUMN_TYPES[name])
    return row
