"""Arrays in HDF5 files, read in bounded pieces. The package h5py is needed for them alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import PointCloudFileError
from .tables import listed, shorten

if TYPE_CHECKING:
    import h5py

# Deflate cannot do better than 1032 to 1; what claims more holds nothing.
_MAX_RATIO = 1040


@contextmanager
def open_hdf5(path: str | os.PathLike, required: Sequence[str] = ()) -> Iterator[dict[str, "h5py.Dataset"]]:
    """Open the arrays at the top of an HDF5 file.

    Args:
        path: the file.
        required: arrays that must be there.

    Yields:
        Name -> array on disk; a slice of it reads that slice.

    Raises:
        ImportError: h5py is not installed; says how to get it.
        PointCloudFileError: no such file, a damaged one, a required array is missing, or an array claims more numbers
            than the file can hold or takes them from other files.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path}: HDF5 files need the package h5py; pip install hf-any3d[files]") from error
    path = Path(path)
    if not path.is_file():
        raise PointCloudFileError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    # A damaged file can fail anywhere in the library.
    except Exception as error:
        raise PointCloudFileError(f"{path}: no sound HDF5 file ({str(error)[:120]})") from None
    with file:
        arrays = _arrays(file, path)
        missing = [name for name in required if name not in arrays]
        if missing:
            raise PointCloudFileError(f"{path}: no array {missing[0]!r}; found {listed(sorted(arrays))}")
        yield arrays


def _arrays(file: "h5py.File", path: Path) -> dict[str, "h5py.Dataset"]:
    import h5py

    size = path.stat().st_size
    arrays = {}
    try:
        for name in file:
            # Other links lead to other files.
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                continue
            array = file[name]
            if not isinstance(array, h5py.Dataset):
                continue
            if array.is_virtual or array.external:
                raise PointCloudFileError(
                    f"{path}: array {shorten(name)} lies in other files; expected its numbers in this one"
                )
            if array.shape is None or array.dtype.kind not in "fiub":
                continue
            claimed = array.size * array.dtype.itemsize
            if claimed > size * _MAX_RATIO:
                raise PointCloudFileError(f"{path}: array {shorten(name)} claims {claimed} bytes in a file of {size}")
            arrays[name] = array
    except PointCloudFileError:
        raise
    except Exception as error:
        raise PointCloudFileError(f"{path}: no sound HDF5 file ({str(error)[:120]})") from None
    return arrays


def read_slice(array: "h5py.Dataset", rows: range, path: str | os.PathLike):
    """Read rows `rows` of an array.

    Raises:
        PointCloudFileError: they are damaged.
    """
    try:
        return array[rows.start : rows.stop]
    except Exception as error:
        raise PointCloudFileError(
            f"{path}: rows {rows.start} to {rows.stop - 1} of {array.name!r} are damaged ({str(error)[:120]})"
        ) from None
