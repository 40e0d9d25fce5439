"""The files in which few-shot folds of ModelNet40 come: published pickles, Parquet, or JSON with names of shapes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet
from datasets import Dataset
from datasets.table import InMemoryTable

from hf_any3d.data.benchmarks import SplitSource
from hf_any3d.data.benchmarks.arrays import read_table
from hf_any3d.data.catalog.modelnet40_layouts import points_and_normals
from hf_any3d.data.files import PointCloudError, PointCloudFileError
from hf_any3d.data.files.restricted_pickle import read_pickle

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Shape:
    """A shape of a fold.

    Attributes:
        label: its class within the fold.
        original: its class of ModelNet40.
        read: gives its points and normals (num_points, 3 or 6).
        file: where the points lie, when that is not the fold's own file.
    """

    label: int
    original: int
    read: Callable[[], object]
    file: Path | None = None


def fold_sources(
    files: Sequence[Path], shapes: Mapping[str, Sequence[Shape]], way: int, class_names: Sequence[str]
) -> tuple[dict[str, SplitSource], list[str]]:
    """Check the labels of a fold.

    Args:
        files: of the fold.
        shapes: of each split.
        way: how many classes it must have.
        class_names: of ModelNet40.

    Returns:
        Where the rows of each split come from, and the names of the fold's classes in the order of its labels.

    Raises:
        PointCloudFileError: labels that do not stand for `way` different classes.
    """
    originals: dict[int, int] = {}
    for shape in (shape for split in SPLITS for shape in shapes[split]):
        label, original = shape.label, shape.original
        if not 0 <= label < way or not 0 <= original < len(class_names):
            last = len(class_names) - 1
            raise PointCloudFileError(
                f"{files[0]}: label {label} of class {original}; expected 0 to {way - 1} of classes 0 to {last}"
            )
        if originals.setdefault(label, original) != original:
            raise PointCloudFileError(
                f"{files[0]}: label {label} stands for classes {originals[label]} and {original}; expected one"
            )
    if len(set(originals.values())) != way:
        raise PointCloudFileError(f"{files[0]}: {len(set(originals.values()))} classes; expected {way}")
    names = [class_names[originals[label]] for label in range(way)]
    return {split: _source(files, split, shapes[split]) for split in SPLITS}, names


def _source(files: Sequence[Path], split: str, shapes: Sequence[Shape]) -> SplitSource:
    def read(number: int):
        shape = shapes[number]
        try:
            columns = points_and_normals(shape.read())
        except PointCloudFileError:
            raise
        except PointCloudError as error:
            raise PointCloudFileError(f"{describe(number)}: {error}") from None
        yield {**columns, "label": shape.label, "original_label": shape.original}

    def describe(number: int) -> str:
        return f"{files[0]}, {split} {number}"

    elsewhere = sorted({shape.file for shape in shapes if shape.file is not None})
    missing = [file for file in elsewhere if not file.is_file()]
    stamped = [*files, *(file for file in elsewhere if file not in missing)]
    return SplitSource(range(len(shapes)), read, stamped, len(shapes), describe, missing)


def pickled_shapes(path: Path) -> dict[str, list[Shape]]:
    """Read a published fold: a dict of lists of (points, label, original label).

    Raises:
        PointCloudFileError: a damaged file, or one of another content.
    """
    value = read_pickle(path)
    if not isinstance(value, dict) or not all(isinstance(value.get(split), list) for split in SPLITS):
        raise PointCloudFileError(f"{path}: expected a dict with lists 'train' and 'test'")
    shapes: dict[str, list[Shape]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for number, item in enumerate(value[split]):
            try:
                cloud, label, original = item
                shapes[split].append(Shape(_whole(label), _whole(original), partial(_itself, cloud)))
            except (TypeError, ValueError):
                text = f"{path}: {split} {number} is not (points, label, original label)"
                raise PointCloudFileError(text) from None
    return shapes


def parquet_shapes(files: Mapping[str, Path]) -> dict[str, list[Shape]]:
    """Read a fold that was written by `Dataset.to_parquet`, one file a split.

    Raises:
        PointCloudFileError: a damaged file, or one without the columns of a fold.
    """
    shapes = {}
    for split, path in files.items():
        try:
            rows = Dataset(InMemoryTable(pyarrow.parquet.read_table(path))).with_format("numpy")
            labels = [(_whole(row["label"]), _whole(row["original_label"])) for row in rows.remove_columns("points")]
        # A damaged file can fail anywhere in the library.
        except Exception as error:
            text = f"{path}: no sound fold ({type(error).__name__}: {str(error)[:80]})"
            raise PointCloudFileError(text) from None
        shapes[split] = [Shape(*pair, partial(_row_of, rows, number)) for number, pair in enumerate(labels)]
    return shapes


def named_shapes(path: Path, folder: Path, class_names: Sequence[str]) -> dict[str, list[Shape]]:
    """Read a fold that only names its shapes: `{"train": [["chair_0001", 0], ...], "test": [...]}`.

    Args:
        path: the fold.
        folder: ModelNet40 as text.
        class_names: of ModelNet40.

    Raises:
        PointCloudFileError: no such JSON, or a name without a class.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        named = {split: [(str(name), _whole(label)) for name, label in value[split]] for split in SPLITS}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PointCloudFileError(
            f"{path}: no sound fold ({type(error).__name__}); expected lists 'train' and 'test' of [name, label]"
        ) from None
    shapes: dict[str, list[Shape]] = {split: [] for split in SPLITS}
    for split, some in named.items():
        for name, label in some:
            kind = name.rpartition("_")[0]
            if kind not in class_names or "/" in name:
                raise PointCloudFileError(f"{path}: {split} names {name[:60]!r}; expected such as chair_0001")
            file = folder / kind / f"{name}.txt"
            shapes[split].append(Shape(label, class_names.index(kind), partial(read_table, file, columns=6), file))
    return shapes


def _itself(cloud: object) -> object:
    return cloud


def _row_of(rows: Dataset, number: int) -> np.ndarray:
    try:
        row = rows[number]
        return row["points"] if "normals" not in row else np.concatenate([row["points"], row["normals"]], axis=1)
    # Damaged lists come out of the library as whatever fails first.
    except Exception as error:
        raise PointCloudError(f"damaged points ({type(error).__name__}: {str(error)[:80]})") from None


def _whole(value: object) -> int:
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "iu":
        raise ValueError("no whole number")
    return int(number.reshape(()))
