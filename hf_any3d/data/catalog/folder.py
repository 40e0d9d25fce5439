"""A folder of point files and meshes; the folder's name is the label, as in imagefolder."""

import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, NamedSplit, Value
from datasets.exceptions import DatasetGenerationError

from hf_any3d.data.catalog.layout import find_labelled_files
from hf_any3d.data.files import READERS, read_point_cloud
from hf_any3d.data.resampling import resample_index
from hf_any3d.data.surface import sample_surface

logger = logging.getLogger(__name__)

COMPANIONS = {".mtl", ".bin", ".png", ".jpg", ".jpeg", ".tga", ".txt", ".md", ".json", ".csv"}
"""Endings of files that lie beside models and are no clouds themselves; others are mentioned when passed over."""


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    num_points: int | None = None,
    mesh_points: int = 2048,
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
        seed: decides which points are drawn, for each file on its own.
        on_error: "raise" stops at a file that cannot be read; "skip" leaves it out with a warning.
        options: `cache_dir` and `keep_in_memory` of `datasets.Dataset.from_generator`.

    Returns:
        Splits with `points` (Array2D float32), `label` (ClassLabel, names in alphabetical order) and `file` (path
        inside the folder). Without folders of splits, all is `train`.

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
    root = Path(data_dir)
    splits, others = find_labelled_files(root, set(READERS))
    passed_over = sorted(set(others) - COMPANIONS)
    if passed_over:
        logger.warning("%s: passed over files of types %s", root, ", ".join(passed_over))
    first = "train" if "train" in splits else next(iter(splits))
    classes = sorted({file.label for file in splits[first]})
    for split, files in splits.items():
        unknown = sorted({file.label for file in files} - set(classes))
        if unknown:
            raise ValueError(f"{root}: split {split} has classes {unknown} that split {first} does not have")
    features = Features(
        {"points": Array2D((num_points, 3), "float32"), "label": ClassLabel(names=classes), "file": Value("string")}
    )
    loaded = {}
    for split, files in splits.items():
        # Sizes and times of the files are part of the arguments, so that a changed file is read anew.
        stamps = tuple((str(file.path), file.label, *_stamp(file.path)) for file in files)
        arguments = {
            "root": str(root),
            "stamps": stamps,
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
        if len(loaded[split]) == 0:
            raise ValueError(f"{root}: none of the {len(files)} files of split {split} could be read")
    return DatasetDict(loaded)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _rows(root: str, stamps: tuple, num_points: int | None, mesh_points: int, seed: int, skip: bool) -> Iterator[dict]:
    for path, label, _, _ in stamps:
        name = Path(path).relative_to(root).as_posix()
        # Seeded by its own name, a file gives the same points whatever lies beside it.
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        try:
            points = _read(path, num_points, mesh_points, generator)
        except (ValueError, OSError) as error:
            if not skip:
                raise
            logger.warning("left out %s: %s", path, error)
            continue
        yield {"points": points, "label": label, "file": name}


def _read(path: str, num_points: int | None, mesh_points: int, generator: np.random.Generator) -> np.ndarray:
    cloud = read_point_cloud(path)
    points = np.asarray(cloud.points, dtype=np.float32)
    if len(points) == 0 or not np.isfinite(points).all():
        raise ValueError(f"{path}: {'no points' if len(points) == 0 else 'NaN or infinite coordinates'}")
    if cloud.faces is not None and len(cloud.faces):
        try:
            return sample_surface(points, cloud.faces, num_points or mesh_points, generator)[0]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if num_points is None:
        return points
    return points[resample_index(len(points), num_points, generator)]
