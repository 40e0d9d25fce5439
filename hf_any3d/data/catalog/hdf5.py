"""Load HDF5 files whose arrays have one entry for each cloud, such as those of ScanObjectNN and ModelNet40."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Array2D, ClassLabel, DatasetDict, Features, IterableDatasetDict, List, Value

from hf_any3d.data.catalog.folder_layout import SPLIT_NAMES
from hf_any3d.data.catalog.parquet import Files, flat
from hf_any3d.data.files import PointCloudFileError
from hf_any3d.data.files.hdf5 import open_hdf5, texts_of_hdf5
from hf_any3d.data.options import COLUMNS, one_of
from hf_any3d.data.parquet import License, PublishedDataset, load_published
from hf_any3d.data.parquet.reading import hdf5_source, read_lines
from hf_any3d.registry import HDF5
from hf_any3d.utils.messages import listed

NAMES_OF_CLASSES = ("label_names", "class_names", "shape_names", "classes")
"""Names of the arrays, attributes and text files beside the HDF5 files that name the classes."""

# Columns of points that are read on demand.
_FURTHER = ("normals", "colors", "labels")
# Of a mask, -1 is the background, and all others belong to the object.
_MASK, _BACKGROUND = "mask", -1
# Channels of a cloud; an array with as many points first has them in another order.
_FEW = 16


class _Array(NamedTuple):
    """An array of an HDF5 file: its name there, its shape, and whether its numbers are whole."""

    name: str
    shape: tuple[int, ...]
    is_whole: bool


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    data_files: Files | Mapping[str, Files] | None = None,
    label_names: Sequence[str] | None = None,
    columns: Sequence[str] = (),
    **conversion: Any,
) -> DatasetDict | IterableDatasetDict:
    """Read HDF5 files of many clouds, as those of ScanObjectNN and ModelNet40; needs the package h5py.

    A file has an array of the clouds (clouds, points, 3 or more), named `data`, `points` or the like, and perhaps one
    of their classes, `label` (clouds,) or (clouds, 1). Labels (clouds, points) are those of points, the column
    `labels`. Points are read as stored.

    Args:
        data_dir: a folder with such files, or one file. The names of files or of their folders give the split, such as
            `training_objectdataset.h5`, `ply_data_test0.h5` or `test/a.h5`; so do lists such as `train_files.txt`.
            Without such names all are the training split.
        data_files: instead, a file, files, or a mapping from split to file or files.
        label_names: names of the classes in the order of their numbers. By default those that the files have as an
            array or an attribute `label_names`, or a text file beside them, such as `shape_names.txt`, with a name a
            line; otherwise numbers.
        columns: further columns to read: "normals", "colors" or "labels", one per point. A `mask`, as in ScanObjectNN,
            becomes labels of background and object.
        conversion: `cache_dir`, `on_error` and `streaming` of `hf_any3d.data.parquet.load_published`.
    """
    if (data_dir is None) == (data_files is None):
        raise ValueError(f"data_dir is {data_dir!r} and data_files is {data_files!r}; pass exactly one of them")
    for column in columns:
        one_of("column", column, _FURTHER)
    if data_dir is not None:
        splits = files_by_split(Path(data_dir))
    elif isinstance(data_files, Mapping):
        splits = {split: [Path(file) for file in flat(files)] for split, files in data_files.items()}
    else:
        splits = {"train": [Path(file) for file in flat(data_files or ())]}
    files = [file for some in splits.values() for file in some]
    absent = next((file for file in files if not file.is_file()), None)
    if absent is not None:
        raise FileNotFoundError(f"{absent}: no such file")
    arrays = {file: _arrays_of(file, columns) for file in files}
    features = _features(arrays, list(label_names or _names_of(files[0])))
    # The arrays of the first file; where another one lacks them, the error names it.
    kinds = {array.name: column for column, array in arrays[files[0]].items()}
    row = partial(_row, features=features, has_mask=_MASK in kinds)
    sources = {split: hdf5_source(some, kinds, row) for split, some in splits.items()}
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    dataset = PublishedDataset("hdf5", "", "", License(""), "", {}, "", "")
    return load_published(dataset, root, sources, features, options=kinds, **conversion)


def labels_of_points(place: Path) -> bool:
    """Return whether the labels of HDF5 files are those of points, by the first file."""
    splits = files_by_split(place)
    return "labels" in _arrays_of(next(iter(splits.values()))[0], ())


def files_by_split(place: Path) -> dict[str, list[Path]]:
    """Return the HDF5 files of a folder, or the one at a path, by split.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a name gives no split while others do, or there are files of several data sets.
    """
    if place.is_file():
        return {_split_of(place.name) or "train": [place]}
    files = [path for path in sorted(place.rglob("*"), key=_in_order) if path.suffix.lower() in HDF5]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(place).parts)]
    if not files:
        raise FileNotFoundError(f"{place}: no HDF5 file ({', '.join(HDF5)}) in this folder")
    by_list = _listed_files(files)
    if by_list:
        return by_list
    found: dict[str | None, list[Path]] = {}
    for file in files:
        # The name of the file itself comes first, then those of its folders, from the innermost on.
        parts = reversed(file.relative_to(place).parts)
        found.setdefault(next(filter(None, map(_split_of, parts)), None), []).append(file)
    unknown = found.pop(None, [])
    if not found:
        return {"train": unknown}
    if unknown:
        raise ValueError(
            f"{unknown[0]}: its name gives no split, as those of others do; rename it, or pass "
            'data_files={"train": …, "test": …}'
        )
    kinds = sorted({_without_split(file.relative_to(place)) for file in files if _split_of(file.name)})
    if len(kinds) > 1:
        raise ValueError(
            f"{place}: files of several data sets, {listed(kinds)}; pass those of one, as "
            'data_files={"train": …, "test": …}'
        )
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+|[0-9]+", name.lower())


def _in_order(path: Path) -> list[tuple[int, str]]:
    # By number, as 10 comes before 2 in the order of names.
    return [(int(word) if word.isdigit() else 0, word) for word in _words(path.as_posix())]


def _split_of(name: str) -> str | None:
    """Return the split that a file or a folder is named after; None if it is after none or two."""
    splits = {SPLIT_NAMES[word] for word in _words(name) if word in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None


def _without_split(path: Path) -> str:
    """Return the words of a path without those of splits and the number of a part at its end.

    A number that is joined to its word, such as scale75, is a part of the name.
    """
    names = []
    for part in path.with_suffix("").parts:
        words = re.findall("[a-z0-9]+", part.lower())
        plain = [word for word in words if word.rstrip("0123456789") not in {"", *SPLIT_NAMES}]
        names.append("_".join(plain))
    return "/".join(name for name in names if name) or "data"


def _listed_files(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Return files by the lists beside them, `train_files.txt` and `test_files.txt`; nothing without such lists.

    Lists name files as they lay on another machine, so that only the last part of a path counts.
    """
    found: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(file.parent for file in files):
        by_name = {file.name: file for file in files if file.parent == folder}
        for word in ("train", "validation", "val", "test"):
            list_file = folder / f"{word}_files.txt"
            if not list_file.is_file():
                continue
            for line in read_lines(list_file):
                name = line.replace("\\", "/").rpartition("/")[2]
                if name not in by_name:
                    raise FileNotFoundError(f"{list_file}: names {name}, which is not beside it")
                found.setdefault(SPLIT_NAMES[word], []).append(by_name[name])
    return found


def _arrays_of(file: Path, columns: Iterable[str]) -> dict[str, _Array]:
    """Return column -> array of a file; errors name the arrays that are there."""
    with open_hdf5(file) as stored:
        by_name = {name.lower(): name for name in stored}
        there = listed([f"{name} {array.shape}" for name, array in stored.items()]) or "no array"

        def first(what: str, names: Sequence[str]) -> str:
            name = next((by_name[name] for name in names if name in by_name), None)
            if name is None:
                raise PointCloudFileError(f"{file}: no array of {what}, such as {names[0]!r}; found {there}")
            return name

        points = first("clouds", COLUMNS["points"])
        shape = stored[points].shape
        if len(shape) != 3 or shape[2] < 3 or shape[2] > _FEW > shape[1]:
            raise PointCloudFileError(f"{file}: {points} has shape {shape}; expected (clouds, points, 3 or more)")
        names = {"points": points}
        if not by_name.keys().isdisjoint(COLUMNS["label"]):
            label = first("labels", COLUMNS["label"])
            of_points = stored[label].shape == shape[:2] and shape[1] > 1
            if not of_points and stored[label].shape not in (shape[:1], (shape[0], 1)):
                raise PointCloudFileError(
                    f"{file}: {label} has shape {stored[label].shape}; expected ({shape[0]},) or, for labels of "
                    f"points, {shape[:2]}"
                )
            names["labels" if of_points else "label"] = label
        for column in columns:
            if column not in names:
                names[column] = first(column, [name for name in COLUMNS[column] if name not in _taken(names)])
        found = {}
        for column, name in names.items():
            array = stored[name]
            # Only labels of clouds, which are few, may be whole numbers of a type with fractions.
            is_whole = array.dtype.kind in "iub" or column == "label" and not np.mod(array[...], 1).any()
            found[column] = _Array(name, array.shape, is_whole)
        return found


def _taken(names: Mapping[str, str]) -> set[str]:
    return {name.lower() for name in names.values()}


def _features(arrays: Mapping[Path, Mapping[str, _Array]], names: list[str]) -> Features:
    """Return the columns of all files; one of another number of channels is refused."""
    first, of_first = next(iter(arrays.items()))
    features = Features()
    for column, array in of_first.items():
        everywhere = [(file, found[column]) for file, found in arrays.items() if column in found]
        if column == "label":
            kind = "int64" if all(other.is_whole for _, other in everywhere) else "float32"
            features[column] = ClassLabel(names=names) if names and kind == "int64" else Value(kind)
        elif column == "labels" and array.name == _MASK:
            features[column] = List(ClassLabel(names=["background", "object"]))
        elif column == "labels":
            # Names are those of clouds where clouds have a class.
            of_points = names and "label" not in of_first
            features[column] = List(ClassLabel(names=names) if of_points else Value("int64"))
        else:
            for file, other in everywhere:
                if other.shape[2:] != array.shape[2:]:
                    raise PointCloudFileError(
                        f"{file}: {other.name} has shape {other.shape}, that of {first.name} {array.shape}; expected "
                        "equally many channels"
                    )
            sizes = {other.shape[1] for _, other in everywhere}
            # A number that is fixed is stored without the sizes of the rows.
            size = sizes.pop() if len(sizes) == 1 else None
            features[column] = Array2D((size, array.shape[2]), "float32")
    return features


def _names_of(file: Path) -> list[str]:
    """Return the names of the classes in a file, or in a text file beside it; none if there are none."""
    names = texts_of_hdf5(file, NAMES_OF_CLASSES)
    if names:
        return names
    for name in NAMES_OF_CLASSES:
        beside = [file.with_name(f"{name}.txt"), *sorted(file.parent.glob(f"*_{name}.txt"))]
        for path in filter(Path.is_file, beside):
            return read_lines(path)
    return []


def _row(values: dict[str, np.ndarray], features: Features, has_mask: bool) -> dict[str, Any]:
    row: dict[str, Any] = dict(values)
    if "label" in row:
        number = row["label"].reshape(()).item()
        row["label"] = number if features["label"].dtype == "float32" else int(number)
    if "labels" in row and has_mask:
        row["labels"] = (row["labels"] != _BACKGROUND).astype(np.int64)
    return row
