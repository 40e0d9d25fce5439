"""Read names, arrays and tables from the files of published datasets."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudFileError, file_errors
from hf_any3d.data.files.hdf5 import open_hdf5
from hf_any3d.data.files.npy import parse_array
from hf_any3d.data.files.source import open_source
from hf_any3d.data.files.text_numbers import normalized_lines, numbers
from hf_any3d.data.parquet.published_dataset import SplitSource
from hf_any3d.utils.messages import cut

HDF5_ROWS_AT_ONCE = 64


def read_lines(path: Path) -> list[str]:
    """Read the stripped, non-empty lines of a short text file."""
    with file_errors(path, "list of names"):
        # Without the byte order mark that some editors write, which would belong to the first name.
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def check_names(path: Path, expected: Sequence[str], what: str) -> None:
    """Refuse a list of names other than the published one, since its line numbers are the labels.

    `what` says in errors what a line names.
    """
    # Blanks between words do not matter.
    names = [" ".join(line.split()) for line in read_lines(path)]
    for number, (seen, wanted) in enumerate(zip_longest(names, expected)):
        if seen != wanted:
            raise ValueError(
                f"{path}: {what} {number} is {cut(seen or 'missing', 60)}; expected {wanted or 'nothing'}"
            )


def find_folder(folders: Iterable[Path], pattern: str) -> Path | None:
    """Return the first folder with a file or folder that matches a pattern."""
    return next((folder for folder in folders if next(folder.glob(pattern), None) is not None), None)


def read_npy(path: Path) -> np.ndarray:
    """Read an array written by numpy.save; nothing is unpickled."""
    source = open_source(path, "npy", ("npy",))
    with file_errors(path, "npy file"):
        return parse_array(source.data)


def read_table(path: Path, columns: int) -> np.ndarray:
    """Read lines of numbers separated by spaces or commas as (lines, columns) float64."""
    return parse_table(open_source(path, "txt", ("txt",)).data, path, columns)


def parse_table(data: bytes, path: Path, columns: int) -> np.ndarray:
    """Parse bytes read from `path` as `read_table` does."""
    with file_errors(path):
        return numbers(normalized_lines(data), columns=columns)


def hdf5_source(
    files: Sequence[Path],
    columns: Mapping[str, str],
    convert: Callable[[dict[str, np.ndarray]], Mapping[str, Any]] = dict,
) -> SplitSource:
    """Read clouds from HDF5 files, in their order, whose arrays have one entry per cloud.

    `columns` maps arrays to columns of the rows; `convert` makes the entries of one cloud a row of the dataset.
    """
    units = []
    total = 0
    for file in files:
        with open_hdf5(file, required=list(columns)) as arrays:
            # A single number has no length, and no entry for each cloud.
            lengths = {name: array.shape[0] if array.shape else 0 for name, array in arrays.items() if name in columns}
        count = next(iter(lengths.values()))
        if {*lengths.values()} != {count}:
            raise PointCloudFileError(f"{file}: arrays of different lengths, {lengths}")
        # Opening the file for each cloud would take longer than reading it, and a complete file may not fit in memory.
        units += [(file, range(i, min(i + HDF5_ROWS_AT_ONCE, count))) for i in range(0, count, HDF5_ROWS_AT_ONCE)]
        total += count

    def read(unit: tuple[Path, range]) -> Iterator[Mapping[str, object]]:
        file, rows = unit
        with open_hdf5(file, required=list(columns)) as arrays:
            with file_errors(f"{file}: rows {rows.start} to {rows.stop - 1}", "HDF5 file"):
                # All rows of a unit are read at once, from disk as one slice.
                values = {column: arrays[name][rows.start : rows.stop] for name, column in columns.items()}
        for i in range(len(rows)):
            yield convert({column: value[i] for column, value in values.items()})

    def describe(unit: tuple[Path, range]) -> str:
        return f"{unit[0]} from row {unit[1].start}"

    return SplitSource(units, read, files, num_rows=total, describe=describe)
