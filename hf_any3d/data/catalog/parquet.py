"""Local Parquet files with a column of points."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet
from datasets import DatasetDict, load_dataset

Files = str | os.PathLike | Sequence[str | os.PathLike]


def load(
    data_dir: str | os.PathLike | None = None, *, data_files: Files | Mapping[str, Files] | None = None, **options
) -> DatasetDict:
    """Read Parquet files.

    Args:
        data_dir: a folder; file names say the split, as `train.parquet`, `test-00000-of-00001.parquet` or
            `data/validation.parquet`. Without such names all files are the training split.
        data_files: instead, a file, files, or a mapping from split to file or files.
        options: further arguments of `datasets.load_dataset`, such as `cache_dir`.

    Raises:
        ValueError: neither or both of `data_dir` and `data_files`; files whose labels stand for different classes.
        FileNotFoundError: a file that does not exist, or a folder without Parquet files.
    """
    if (data_dir is None) == (data_files is None):
        raise ValueError(f"data_dir is {data_dir!r} and data_files is {data_files!r}; expected exactly one of them")
    if data_files is None:
        files = sorted(path for path in Path(data_dir).rglob("*.parquet") if path.is_file())
        if not files:
            raise FileNotFoundError(f"{data_dir}: no Parquet file in this folder")
        _check_classes(files)
        return load_dataset("parquet", data_dir=os.fspath(data_dir), **options)
    files = [Path(path) for path in _flat(data_files)]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
    _check_classes(files)
    if isinstance(data_files, Mapping):
        data_files = {split: [os.fspath(path) for path in _flat(some)] for split, some in data_files.items()}
    else:
        data_files = [str(path) for path in files]
    return load_dataset("parquet", data_files=data_files, **options)


def _flat(data_files: Files | Mapping[str, Files]) -> Iterator[str | os.PathLike]:
    if isinstance(data_files, (str, os.PathLike)):
        yield data_files
        return
    for some in data_files.values() if isinstance(data_files, Mapping) else data_files:
        yield from _flat(some)


def _check_classes(files: list[Path]) -> None:
    """Refuse files with other class names: `datasets` would silently read their labels with the first file's names."""
    first: tuple[Path, list[str]] | None = None
    for path in files:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get("label", {}).get("names")
        if names is None:
            continue
        if first is None:
            first = path, names
        elif names != first[1]:
            raise ValueError(f"the classes of {path} are {names}, those of {first[0]} {first[1]}; expected the same")
