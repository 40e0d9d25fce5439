"""Local Parquet files with a column of points."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet
from datasets import DatasetDict, load_dataset

logger = logging.getLogger(__name__)

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> words of a file's or folder's name that tell it, as the hub reads them."""
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\.parquet")

Files = str | os.PathLike | Sequence[str | os.PathLike]


def load(
    data_dir: str | os.PathLike | None = None, *, data_files: Files | Mapping[str, Files] | None = None, **options
) -> DatasetDict:
    """Read Parquet files.

    Args:
        data_dir: a folder, whose Parquet files are read, also those of folders in it; names say the split, as
            `train.parquet`, `test-00000-of-00001.parquet` or `data/validation.parquet`. Without such names all files
            are the training split. Other files are passed over; a warning names them.
        data_files: instead, a file, files, or a mapping from split to file or files.
        options: further arguments of `datasets.load_dataset`, such as `cache_dir`.

    Raises:
        ValueError: neither or both of `data_dir` and `data_files`; files whose labels stand for different classes;
            a folder where some names say a split and others do not.
        FileNotFoundError: a file that does not exist, or a folder without Parquet files.
    """
    if (data_dir is None) == (data_files is None):
        raise ValueError(f"data_dir is {data_dir!r} and data_files is {data_files!r}; expected exactly one of them")
    if data_files is None:
        data_files = files_by_split(Path(data_dir))
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


def files_by_split(folder: Path) -> dict[str, list[Path]]:
    """Parquet files of a folder and of those in it, by the split that their names tell.

    Raises:
        ValueError: Names that say a split beside others that say none.
        FileNotFoundError: No Parquet file.
    """
    there = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    there = [path for path in there if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = [path for path in there if path.suffix == ".parquet"]
    if not files:
        raise FileNotFoundError(f"{folder}: no Parquet file in this folder")
    if others := [path.relative_to(folder).as_posix() for path in there if path.suffix != ".parquet"]:
        rest = f" and {len(others) - 5} more" if len(others) > 5 else ""
        logger.warning("%s: passed over what is no Parquet file: %s%s", folder, ", ".join(others[:5]), rest)
    told = {path: _split_of(path.relative_to(folder)) for path in files}
    silent = [path for path, split in told.items() if split is None]
    if len(silent) == len(files):
        return {"train": files}
    if silent:
        named = next(path for path, split in told.items() if split is not None)
        raise ValueError(
            f"{silent[0]}: its name says no split, that of {named.name} does; rename or remove it, or give data_files"
        )
    known = [*SPLIT_WORDS, *sorted(set(told.values()) - set(SPLIT_WORDS))]
    splits = {split: [path for path in files if told[path] == split] for split in known}
    return {split: some for split, some in splits.items() if some}


def _split_of(path: Path) -> str | None:
    """The split that the innermost folder tells, or else the file's name."""
    if shard := _SHARD.fullmatch(path.name):
        return next((split for split, words in SPLIT_WORDS.items() if shard[1] in words), shard[1])
    for part in (*reversed(path.parts[:-1]), path.stem):
        words = set(re.split(r"[^a-zA-Z]+", part.lower()))
        if found := [split for split, known in SPLIT_WORDS.items() if words.intersection(known)]:
            return found[0]
    return None


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
