"""Rows out of HDF5 files whose arrays have one entry a cloud."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_any3d.data.conversion.description import SplitSource
from hf_any3d.data.files import PointCloudFileError
from hf_any3d.data.files.hdf5 import open_hdf5, read_slice

ROWS_AT_ONCE = 64


def hdf5_source(
    files: Sequence[Path],
    columns: Mapping[str, str],
    convert: Callable[[dict[str, np.ndarray]], Mapping[str, object]] = dict,
) -> SplitSource:
    """Read clouds from HDF5 files, one after the other.

    Args:
        files: the files, in the order of the rows.
        columns: array in the files -> column of the rows; the first entry of each array belongs to the first cloud.
        convert: makes a row of the dataset from the entries of one cloud.

    Raises:
        ImportError: h5py is not installed.
        PointCloudFileError: a damaged file, a missing array, or arrays of different lengths.
    """
    units, total = [], 0
    for file in files:
        with open_hdf5(file, required=list(columns)) as arrays:
            lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items() if name in columns}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise PointCloudFileError(
                f"{file}: arrays of different lengths: {text}; expected one entry a cloud in each"
            )
        count = next(iter(lengths.values()))
        units += [(file, range(i, min(i + ROWS_AT_ONCE, count))) for i in range(0, count, ROWS_AT_ONCE)]
        total += count

    def read(unit: tuple[Path, range]) -> Iterator[Mapping[str, object]]:
        file, rows = unit
        with open_hdf5(file, required=list(columns)) as arrays:
            values = {column: read_slice(arrays[name], rows, file) for name, column in columns.items()}
        for i in range(len(rows)):
            yield convert({column: value[i] for column, value in values.items()})

    def describe(unit: tuple[Path, range]) -> str:
        return f"{unit[0]} from row {unit[1].start}"

    return SplitSource(units, read, files, num_rows=total, describe=describe)
