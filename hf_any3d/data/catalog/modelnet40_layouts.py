"""Where the clouds of ModelNet40 lie in each of its layouts."""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from datasets import Value

from hf_any3d.data.conversion import Benchmark, SplitSource
from hf_any3d.data.conversion.arrays import read_lines, read_table
from hf_any3d.data.conversion.hdf5_rows import hdf5_source
from hf_any3d.data.files import PointCloudError, PointCloudFileError, read_point_cloud
from hf_any3d.data.files.restricted_pickle import read_pickle

SPLITS = ("train", "test")
FILE = Value("string")
_MARKS = {
    "txt": "*/*_[0-9][0-9][0-9][0-9].txt",
    "h5": "ply_data_train*.h5",
    "pickle": "modelnet40_*pts_fps.dat",
    "off": "*/train/*.off",
}


def is_there(layout: str, folder: Path) -> bool:
    """Whether a folder has what only this layout has."""
    return next(folder.glob(_MARKS[layout]), None) is not None


def _text_sources(benchmark: Benchmark, folder: Path, *, normals: bool) -> dict[str, SplitSource]:
    lists = {split: folder / f"modelnet40_{split}.txt" for split in SPLITS}
    names_file = folder / "modelnet40_shape_names.txt"
    benchmark.require([names_file, *lists.values()], folder)
    check_class_names(benchmark, names_file)

    def read(path: Path) -> Iterator[Mapping[str, object]]:
        table = read_table(path, columns=6)
        yield {**points_and_normals(table), "label": path.parent.name, "file": path.stem}

    sources = {}
    for split, file in lists.items():
        models = read_lines(file)
        for number, model in enumerate(models, 1):
            # The class is what stands before the last underscore: flower_pot_0001.
            if model.rpartition("_")[0] not in benchmark.class_names or "/" in model:
                raise ValueError(f"{file}: line {number} is {model[:60]!r}; expected a class and a number, chair_0001")
        paths = [folder / model.rpartition("_")[0] / f"{model}.txt" for model in models]
        missing = [path for path in paths if not path.is_file()]
        there = sorted(set(paths) - set(missing))
        sources[split] = SplitSource(paths, read, [file, *there], num_rows=len(paths), missing=missing)
    return sources


def check_class_names(benchmark: Benchmark, path: Path) -> None:
    """Refuse a list of class names that are not the published ones: its line numbers are the labels."""
    found = read_lines(path)
    if tuple(found) != benchmark.class_names:
        pairs = zip(found, benchmark.class_names, strict=False)
        number = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(benchmark.class_names)))
        seen = found[number] if number < len(found) else "missing"
        wanted = benchmark.class_names[number] if number < len(benchmark.class_names) else "nothing"
        raise ValueError(f"{path}: class {number} is {seen}; expected {wanted}")


def _mesh_sources(
    benchmark: Benchmark, folder: Path, *, normals: bool, num_points: int, seed: int
) -> dict[str, SplitSource]:
    def read(path: Path) -> Iterator[Mapping[str, object]]:
        mesh = read_point_cloud(path)
        # Seeded by its own name, a model gives the same points whatever lies beside it.
        generator = np.random.default_rng([seed, zlib.crc32(path.stem.encode())])
        try:
            cloud = mesh.sample_surface(num_points, generator)
        except PointCloudError as error:
            raise PointCloudFileError(f"{path}: {error}") from None
        row = {"points": cloud.points, "label": path.parents[1].name, "file": path.stem}
        yield {**row, "normals": cloud.normals} if normals else row

    sources = {}
    for split in SPLITS:
        files = [path for name in benchmark.class_names for path in sorted((folder / name / split).glob("*.off"))]
        if not files:
            raise benchmark.not_found(f"{folder}: no meshes in the folders {split} of the classes")
        sources[split] = SplitSource(files, read, files, num_rows=len(files))
    return sources


def _hdf5_sources(benchmark: Benchmark, folder: Path, *, normals: bool) -> dict[str, SplitSource]:
    columns = {"data": "points", "label": "label"}
    if normals:
        columns["normal"] = "normals"
    sources = {}
    for split in SPLITS:
        found = {int(re.sub(r"\D", "", path.stem) or 0): path for path in folder.glob(f"ply_data_{split}*.h5")}
        numbered = range(max(found, default=0) + 1)
        benchmark.require([folder / f"ply_data_{split}{number}.h5" for number in numbered], folder)
        sources[split] = hdf5_source([found[number] for number in numbered], columns)
    return sources


def _pickle_sources(benchmark: Benchmark, folder: Path, *, normals: bool, num_points: int) -> dict[str, SplitSource]:
    files = {split: folder / f"modelnet40_{split}_{num_points}pts_fps.dat" for split in SPLITS}
    benchmark.require(files.values(), folder)
    return {split: pickle_source(file) for split, file in files.items()}


def pickle_source(file: Path) -> SplitSource:
    """Clouds of a pickled cache: a list of arrays (points, 6) and a list of their labels.

    Raises:
        PointCloudFileError: a damaged file, or one of another content.
    """
    value = read_pickle(file)
    try:
        clouds, labels = value
        sound = isinstance(clouds, list) and len(clouds) == len(labels)
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise PointCloudFileError(f"{file}: holds no list of clouds and as long a list of labels")

    def read(number: int) -> Iterator[Mapping[str, object]]:
        try:
            yield {**points_and_normals(clouds[number]), "label": labels[number]}
        except PointCloudError as error:
            raise PointCloudFileError(f"{describe(number)}: {error}") from None

    def describe(number: int) -> str:
        return f"{file}, cloud {number}"

    return SplitSource(range(len(clouds)), read, [file], num_rows=len(clouds), describe=describe)


def points_and_normals(table: object) -> dict[str, np.ndarray]:
    """Take xyz and normals apart.

    Raises:
        PointCloudError: no array (points, 3) or (points, 6).
    """
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[1] not in (3, 6):
        shape = getattr(table, "shape", type(table).__name__)
        raise PointCloudError(f"a cloud of shape {shape}; expected (points, 6), xyz and normal")
    row = {"points": table[:, :3]}
    return row if table.shape[1] == 3 else {**row, "normals": table[:, 3:]}


SOURCES: dict[str, Callable[..., dict[str, SplitSource]]] = {
    "txt": _text_sources,
    "h5": _hdf5_sources,
    "pickle": _pickle_sources,
    "off": _mesh_sources,
}
"""Layout -> where the rows of each split come from, given the benchmark, the folder and the options."""
