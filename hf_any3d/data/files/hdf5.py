"""Read arrays in HDF5 files in slices; needs the package h5py."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_any3d.data.files.source import PointCloudFileError, ReadLimits, file_errors
from hf_any3d.data.files.text_numbers import listed, shorten

if TYPE_CHECKING:
    import h5py

# What h5py raises for damaged files.
_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)


@contextmanager
def open_hdf5(
    path: str | os.PathLike, required: Sequence[str] = (), limits: ReadLimits | None = None
) -> Iterator[dict[str, h5py.Dataset]]:
    """Open the arrays of numbers at the top of an HDF5 file.

    Args:
        path: the file.
        required: arrays that must exist.
        limits: limits of the file and each of its arrays; by default `ReadLimits.current()`.

    Yields:
        Name -> array on disk, for `read_slice`.

    Raises:
        ImportError: h5py is not installed.
        PointCloudFileError: no such file, a damaged one, a missing array, or one beyond the limits.
    """
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path}: HDF5 files need the package h5py; pip install hf-any3d[files]") from None
    path, limits = Path(path), ReadLimits.current() if limits is None else limits
    if not path.is_file():
        raise PointCloudFileError(f"{path}: no such file")
    with file_errors(path):
        limits.check(decoded=path.stat().st_size)
    try:
        file = h5py.File(path, "r")
    except _ERRORS as error:
        raise _damaged(path, "not a valid HDF5 file", error) from None
    with file:
        try:
            found = {str(name): file.get(name) for name in file.keys()}
        except _ERRORS as error:
            raise _damaged(path, "not a valid HDF5 file", error) from None
        arrays = {
            name: array
            for name, array in found.items()
            if isinstance(array, h5py.Dataset) and array.shape is not None and array.dtype.kind in "fiub"
        }
        if missing := [name for name in required if name not in arrays]:
            raise PointCloudFileError(f"{path}: no array {missing[0]!r}; found {listed(sorted(arrays))}")
        with file_errors(path):
            for array in arrays.values():
                limits.check(decoded=array.nbytes)
        yield arrays


def read_slice(array: h5py.Dataset, rows: range, path: str | os.PathLike) -> np.ndarray:
    """Read rows `rows` of an array.

    Raises:
        PointCloudFileError: damaged rows.
    """
    try:
        return array[max(rows.start, 0) : rows.stop]
    except _ERRORS as error:
        name = shorten(str(array.name).lstrip("/"))
        raise _damaged(path, f"rows {rows.start} to {rows.stop - 1} of {name} are damaged", error) from None


def _damaged(path: str | os.PathLike, what: str, error: Exception) -> PointCloudFileError:
    return PointCloudFileError(f"{path}: {what} ({shorten(str(error))})")
