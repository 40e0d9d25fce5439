"""Read arrays in HDF5 files in slices; needs the package h5py."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from hf_any3d.data.files.source import PointCloudError, ReadLimits, file_errors
from hf_any3d.data.files.text_numbers import listed
from hf_any3d.data.options import package

if TYPE_CHECKING:
    import h5py

# Names of classes are few; a list of more belongs to something else.
_MOST_NAMES = 10_000


@contextmanager
def open_hdf5(
    path: str | os.PathLike, required: Sequence[str] = (), limits: ReadLimits | None = None
) -> Iterator[dict[str, h5py.Dataset]]:
    """Open the arrays of numbers at the top of an HDF5 file.

    Yields:
        Name -> array on disk; slices of it are read.
    """
    h5py = package("h5py", "files")
    limits = ReadLimits.current() if limits is None else limits
    with ExitStack() as opened:
        # Only around the opening: what the caller raises while the file is open is no fault of the file.
        with file_errors(path, "HDF5 file"):
            limits.check(decoded=os.path.getsize(path))
            file = opened.enter_context(h5py.File(path, "r"))
            arrays = {}
            for name in file.keys():
                array = file.get(name)
                # Numbers alone, no groups, texts or references
                if isinstance(array, h5py.Dataset) and array.shape is not None and array.dtype.kind in "fiub":
                    arrays[str(name)] = array
            missing = [name for name in required if name not in arrays]
            if missing:
                raise PointCloudError(f"no array {missing[0]!r}; found {listed(sorted(arrays))}")
            # By the declared sizes, before a slice is read
            for array in arrays.values():
                limits.check(decoded=array.nbytes)
        yield arrays


def texts_of_hdf5(path: str | os.PathLike, names: Sequence[str]) -> list[str] | None:
    """Read the first list of texts that an HDF5 file has under one of `names`, as an array or an attribute, or None.

    Attributes are those of the file and of the arrays at its top.
    """
    h5py = package("h5py", "files")
    with file_errors(path, "HDF5 file"), h5py.File(path, "r") as file:
        content = [file.get(name) for name in file.keys()]
        arrays = [array for array in content if isinstance(array, h5py.Dataset)]
        for name in names:
            if isinstance(file.get(name), h5py.Dataset) and (texts := _texts(file[name])):
                return texts
            for holder in (file, *arrays):
                if name in holder.attrs and (texts := _texts(holder.attrs.get_id(name), holder.attrs[name])):
                    return texts
    return None


def _texts(stored: Any, values: Any = None) -> list[str] | None:
    """Return the texts of an array or an attribute; None for what is no list of them."""
    if len(stored.shape or ()) != 1 or not 0 < stored.shape[0] <= _MOST_NAMES or stored.dtype.kind not in "OSU":
        return None
    texts = []
    for value in stored[:] if values is None else values:
        if not isinstance(value, (str, bytes)):
            return None
        texts.append((value.decode() if isinstance(value, bytes) else value).strip())
    return texts
