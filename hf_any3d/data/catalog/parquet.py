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
        raise ValueError(f"data_dir is {data_dir!r} and data_files is {data_files!r}; expected exactly one of them")
    if data_dir is not None:
        folder = Path(data_dir)
        there = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        there = [path for path in there if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
        files = [path for path in there if path.suffix == ".parquet"]
        if others := [path.relative_to(folder).as_posix() for path in there if path.suffix != ".parquet"]:
            rest = f" and {len(others) - 5} more" if len(others) > 5 else ""
            logger.warning("%s: ignored files other than Parquet: %s%s", folder, ", ".join(others[:5]), rest)
        base = os.fspath(folder.absolute())
        patterns = DataFilesDict.from_patterns(get_data_patterns(base), base, allowed_extensions=[".parquet"])
        data_files = {str(split): [os.fspath(path) for path in paths] for split, paths in patterns.items() if paths}
        counts = Counter(path for paths in data_files.values() for path in paths)
        if wrong := [path for path in files if counts[os.fspath(path.absolute())] != 1]:
            raise ValueError(f"{wrong[0]}: its name gives no split, or two; rename it, or pass data_files")
    files = [Path(path) for path in _flat(data_files or ())]
    # `datasets` would silently read the labels of all files with the first one's names.
    named: tuple[Path, list[str]] | None = None
    for path in files:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get("label", {}).get("names")
        if names is not None and names != (named := named or (path, names))[1]:
            raise ValueError(f"the classes of {path} are {names}, those of {named[0]} {named[1]}; expected the same")
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
