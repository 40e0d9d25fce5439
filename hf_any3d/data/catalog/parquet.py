"""Load local Parquet files with a column of points."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import DatasetDict, load_dataset
from datasets.data_files import DataFilesDict, get_data_patterns

from hf_any3d.utils.messages import listed

logger = logging.getLogger(__name__)

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
    """
    if (data_dir is None) == (data_files is None):
        raise ValueError(f"data_dir is {data_dir!r} and data_files is {data_files!r}; pass exactly one of them")
    if data_dir is not None:
        data_files = _files_by_split(Path(data_dir))
    paths = [Path(path) for path in flat(data_files or ())]
    # `datasets` would silently read all labels with the names of the first file.
    first: tuple[Path, list[str]] | None = None
    for path in paths:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
        # The features that `datasets` stores in the schema
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get("label", {}).get("names")
        # Files of other programs have no names of classes.
        if names is None:
            continue
        first = first or (path, names)
        if names != first[1]:
            raise ValueError(f"the classes of {path} are {names}, those of {first[0]} {first[1]}; expected the same")
    if isinstance(data_files, Mapping):
        plain = {split: [os.fspath(path) for path in flat(files)] for split, files in data_files.items()}
    else:
        plain = [str(path) for path in paths]
    return load_dataset("parquet", data_files=plain, **options)


def _files_by_split(folder: Path) -> dict[str, list[str]]:
    """Return the Parquet files of a folder by split, as `datasets` reads their names; each has to be in one split."""
    visible = []
    for path in sorted(folder.rglob("*")):
        # Hidden files and folders belong to other programs, such as caches.
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden:
            visible.append(path)
    others = [path.relative_to(folder).as_posix() for path in visible if path.suffix != ".parquet"]
    if others:
        logger.warning("%s: ignored files other than Parquet: %s", folder, listed(others))
    # Absolute, as the paths below that `datasets` returns for it
    base = os.fspath(folder.absolute())
    patterns = DataFilesDict.from_patterns(get_data_patterns(base), base, allowed_extensions=[".parquet"])
    splits = {str(split): [os.fspath(path) for path in paths] for split, paths in patterns.items() if paths}
    # A file in no split would be left out without a word, and one in two would be learned and judged.
    counts = Counter(path for paths in splits.values() for path in paths)
    for path in visible:
        if path.suffix == ".parquet" and counts[os.fspath(path.absolute())] != 1:
            raise ValueError(f"{path}: its name gives no split, or two; rename it, or pass data_files")
    return splits


def flat(data_files: Files | Mapping[str, Files]) -> Iterator[str | os.PathLike]:
    """Yield the single files."""
    if isinstance(data_files, (str, os.PathLike)):
        yield data_files
        return
    for files in data_files.values() if isinstance(data_files, Mapping) else data_files:
        yield from flat(files)
