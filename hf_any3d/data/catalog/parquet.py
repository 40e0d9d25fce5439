"""Load local Parquet files with a column of points."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import DatasetDict, load_dataset

logger = logging.getLogger(__name__)

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> words in the name of a file or folder that denote it, as on the hub."""
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\.parquet")

Files = str | os.PathLike | Sequence[str | os.PathLike]


def load(
    data_dir: str | os.PathLike | None = None, *, data_files: Files | Mapping[str, Files] | None = None, **options: Any
) -> DatasetDict:
    """Read Parquet files.

    Args:
        data_dir: a folder whose Parquet files are read, including those of folders in it. Names give the split, as in
            `train.parquet`, `test-00000-of-00001.parquet` or `data/validation.parquet`. Without such names all files
            are the training split. Other files are ignored with a warning.
        data_files: instead, a file, files, or a mapping from split to file or files.
        options: further arguments of `datasets.load_dataset`, such as `cache_dir`.

    Raises:
        ValueError: neither or both of `data_dir` and `data_files`; files with different class names; a folder where
            only some names give a split.
        FileNotFoundError: a file that does not exist, or a folder without Parquet files.
    """
    if (data_dir is None) == (data_files is None):
        raise ValueError(f"data_dir is {data_dir!r} and data_files is {data_files!r}; expected exactly one of them")
    if data_dir is not None:
        data_files = files_by_split(Path(data_dir))
    files = [Path(path) for path in _flat(data_files or ())]
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
    """Return the Parquet files of a folder and its subfolders by the split in their names.

    Raises:
        ValueError: only some names give a split.
        FileNotFoundError: no Parquet file.
    """
    there = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    there = [path for path in there if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = [path for path in there if path.suffix == ".parquet"]
    if not files:
        raise FileNotFoundError(f"{folder}: no Parquet file in this folder")
    if others := [path.relative_to(folder).as_posix() for path in there if path.suffix != ".parquet"]:
        rest = f" and {len(others) - 5} more" if len(others) > 5 else ""
        logger.warning("%s: ignored files other than Parquet: %s%s", folder, ", ".join(others[:5]), rest)
    split_of = {path: _split_of(path.relative_to(folder)) for path in files}
    unnamed = [path for path, split in split_of.items() if split is None]
    if len(unnamed) == len(files):
        return {"train": files}
    if unnamed:
        named = next(path for path, split in split_of.items() if split is not None)
        raise ValueError(
            f"{unnamed[0]}: its name gives no split, that of {named.name} does; rename or remove it, or pass "
            "data_files"
        )
    order = [*SPLIT_WORDS, *sorted({split for split in split_of.values() if split is not None} - set(SPLIT_WORDS))]
    splits = {split: [path for path in files if split_of[path] == split] for split in order}
    return {split: some for split, some in splits.items() if some}


def _split_of(path: Path) -> str | None:
    """Return the split in the name of the innermost folder that has one, or of the file."""
    if shard := _SHARD.fullmatch(path.name):
        return next((split for split, words in SPLIT_WORDS.items() if shard[1] in words), shard[1])
    # From the inside out: a folder above may have such a word by chance.
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
