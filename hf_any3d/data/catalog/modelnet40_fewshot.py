"""ModelNet40 few-shot: ten folds each of 5 or 10 classes with 10 or 20 training shapes per class."""

import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, IterableDatasetDict
from datasets.table import InMemoryTable

from hf_any3d.data.catalog import modelnet40
from hf_any3d.data.catalog.modelnet40 import points_and_normals
from hf_any3d.data.files import PointCloudError, PointCloudFileError, file_errors
from hf_any3d.data.files.restricted_pickle import read_pickle
from hf_any3d.data.parquet import PublishedDataset, SplitSource, load_published
from hf_any3d.data.parquet.reading import read_table
from hf_any3d.utils.messages import cut

SPLITS = ("train", "test")
WAYS, SHOTS, FOLDS = (5, 10), (10, 20), 10
TEST_SHAPES = 20  # of each class

DATASET = PublishedDataset(
    name="modelnet40_fewshot",
    description="Few-shot episodes of ModelNet40: some of its classes, a few shapes of each to learn from.",
    homepage="https://github.com/charusharma1991/SSL_PointClouds",
    license=modelnet40.LICENSE,
    citation="""@inproceedings{sharma2020self,
  title = {Self-Supervised Few-Shot Learning on Point Clouds},
  author = {Sharma, Charu and Kaul, Manohar},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2020}
}
"""
    + modelnet40.CITATION,
    expected_counts={
        f"{way}way_{shot}shot": {"train": way * shot, "test": way * TEST_SHAPES} for way in WAYS for shot in SHOTS
    },
    origin=(
        "Get the folds (ModelNetFewshot) by the link in the data notes of Point-BERT, "
        "https://github.com/Julie-tang00/Point-BERT/blob/master/DATASET.md, and pass their folder as data_dir"
    ),
    layout="""  ModelNetFewshot/5way_10shot/0.pkl, ..., 9.pkl                      as published
  ModelNetFewshot/5way_10shot/0-train.parquet, 0-test.parquet, ...   the same rows as Parquet
  ModelNetFewshot/5way_10shot/0.json, ...   {"train": [["chair_0001", 0], ...], "test": [...]}
  and likewise 5way_20shot, 10way_10shot, 10way_20shot""",
    class_names=modelnet40.CLASS_NAMES,
)


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    way: int = 5,
    shot: int = 10,
    fold: int = 0,
    normals: bool = False,
    modelnet_dir: str | os.PathLike | None = None,
    **conversion: Any,
) -> DatasetDict | IterableDatasetDict:
    """Read one fold.

    Rows have `points` (num_points, 3) as in the files, neither centered nor scaled; `label`, 0 to `way` - 1 with the
    names of the fold's classes; and `original_label`, the class of ModelNet40.

    Args:
        data_dir: the folder with `{way}way_{shot}shot`, or the one above `ModelNetFewshot`. A fold is
            `{fold}-train.parquet` and `{fold}-test.parquet`, `{fold}.json` or the published `{fold}.pkl`, which is
            read without Python's unpickler; the first that exists is read. `splits[split].to_parquet(...)` converts a
            loaded fold to the first kind.
        way: number of classes.
        shot: training shapes per class; there are 20 test shapes per class.
        fold: number of the fold, 0 to 9.
        normals: read the column `normals` too.
        modelnet_dir: the folder of ModelNet40 in layout "txt", for JSON, which only names the shapes.
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.parquet.load_published`.

    Source: Sharma and Kaul, "Self-Supervised Few-Shot Learning on Point Clouds".
    """
    root = DATASET.root(data_dir)
    variant = f"{way}way_{shot}shot"
    folder = root / variant
    if not folder.is_dir() and (root / "ModelNetFewshot" / variant).is_dir():
        folder = root / "ModelNetFewshot" / variant
    files, shapes = _fold(folder, fold, modelnet_dir)
    # Labels of a fold number its own classes, so each must stand for one class of ModelNet40.
    pairs = sorted({(shape.label, shape.original) for split in SPLITS for shape in shapes[split]})
    labels = [label for label, _ in pairs]
    originals = [original for _, original in pairs]
    # No label may be missing, no class unknown or behind two labels.
    if labels != list(range(way)) or len({*originals} & {*range(len(DATASET.class_names))}) != way:
        raise PointCloudFileError(f"{files[0]}: {pairs[:20]}; expected labels 0 to {way - 1}, each of one class")
    sources = {split: _source(files, split, shapes[split]) for split in SPLITS}
    features = Features({"points": Array2D((None, 3), "float32")})
    if normals:
        features["normals"] = Array2D((None, 3), "float32")
    features["label"] = ClassLabel(names=[DATASET.class_names[original] for original in originals])
    features["original_label"] = DATASET.class_label()
    options = {"fold": fold, "normals": normals}
    return load_published(DATASET, folder, sources, features, variant=variant, options=options, **conversion)


@dataclass(frozen=True)
class Shape:
    """A shape of a fold: its class there and in ModelNet40.

    `read` returns a row, or points and normals (num_points, 3 or 6); `file` is theirs, if not the fold's own.
    """

    label: int
    original: int
    read: Callable[[], Any]
    file: Path | None = None


def _fold(
    folder: Path, fold: int, modelnet_dir: str | os.PathLike | None
) -> tuple[list[Path], dict[str, list[Shape]]]:
    """Return the files of a fold and its shapes, from the first of its three forms that exists."""
    shapes: dict[str, list[Shape]] = {split: [] for split in SPLITS}
    tables = {split: folder / f"{fold}-{split}.parquet" for split in SPLITS}
    # A fold of which only one split was converted is read from another form.
    if all(path.is_file() for path in tables.values()):
        for split, path in tables.items():
            with file_errors(path, "fold"):
                rows = Dataset(InMemoryTable(pyarrow.parquet.read_table(path))).with_format("numpy")
                # Labels are few and checked at once; clouds are read when their rows are.
                labels = cast("Iterable[dict[str, Any]]", rows.remove_columns("points"))
                for number, row in enumerate(labels):
                    # `partial` keeps this row's number, where a closure would take the last one of the loop.
                    read = partial(rows.__getitem__, number)
                    shapes[split].append(Shape(_whole(row["label"]), _whole(row["original_label"]), read))
        return list(tables.values()), shapes
    path = folder / f"{fold}.json"
    if path.is_file():
        return [path], _named_shapes(path, modelnet_dir)
    path = folder / f"{fold}.pkl"
    if path.is_file():
        with file_errors(path, "fold"):
            # Without Python's unpickler, which would run code of the file
            content = read_pickle(path)
            for split in SPLITS:
                for cloud, label, original in content[split]:
                    shapes[split].append(Shape(_whole(label), _whole(original), partial(np.asarray, cloud)))
        return [path], shapes
    raise DATASET.not_found(f"{folder}: no {fold}.pkl, {fold}.json or {fold}-train.parquet and -test.parquet")


def _named_shapes(path: Path, modelnet_dir: str | os.PathLike | None) -> dict[str, list[Shape]]:
    """Return the shapes of a fold as JSON, split -> list of name and label, whose clouds are in ModelNet40."""
    if modelnet_dir is None:
        raise ValueError(f"modelnet_dir is None; expected ModelNet40 as text, since {path} only names its shapes")
    _, clouds = modelnet40.find_layout(Path(modelnet_dir), ("txt",))
    shapes: dict[str, list[Shape]] = {split: [] for split in SPLITS}
    with file_errors(path, "fold"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for split in SPLITS:
            for name, label in content[split]:
                # The class is what precedes the last underscore: flower_pot_0001.
                class_name = name.rpartition("_")[0]
                # A slash could lead out of the folder.
                if class_name not in DATASET.class_names or "/" in name:
                    raise PointCloudError(f"{split} names {cut(name, 60)!r}; expected such as chair_0001")
                file = clouds / class_name / f"{name}.txt"
                original = DATASET.class_names.index(class_name)
                read = partial(read_table, file, columns=6)
                shapes[split].append(Shape(_whole(label), original, read, file))
    return shapes


def _source(files: Sequence[Path], split: str, shapes: Sequence[Shape]) -> SplitSource:
    def read(number: int) -> Iterator[Mapping[str, Any]]:
        shape = shapes[number]
        with file_errors(describe(number), "fold"):
            cloud = shape.read()
            # Rows of Parquet have points and normals in columns of their own.
            if isinstance(cloud, dict):
                cloud = np.concatenate([cloud[name] for name in ("points", "normals") if name in cloud], axis=1)
            columns = points_and_normals(cloud)
        yield {**columns, "label": shape.label, "original_label": shape.original}

    def describe(number: int) -> str:
        return f"{files[0]}, {split} {number}"

    # Clouds that a fold in JSON names are files of ModelNet40.
    elsewhere = sorted({shape.file for shape in shapes if shape.file is not None})
    missing = [file for file in elsewhere if not file.is_file()]
    # Clouds in other files are part of the cache key too.
    stamped = [*files, *(file for file in elsewhere if file not in missing)]
    return SplitSource(range(len(shapes)), read, stamped, len(shapes), describe, missing)


def _whole(value: object) -> int:
    """Convert a label, which may be an array of one number, and is an error if it is none or not whole."""
    # `operator.index` takes no floating point number, not even a whole one.
    return operator.index(np.asarray(value).reshape(()).item())
