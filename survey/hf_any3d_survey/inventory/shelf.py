"""Arrays that are not needed at the moment, in files, so that memory does not grow with the tiles of a place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hf_any3d.utils.atomic_files import reserve_room


class Shelf:
    """Keeps arrays by the names of what they belong to.

    Args:
        folder: Where they are kept; None keeps them in memory, as they are.
    """

    def __init__(self, folder: Path | None):
        self._folder = folder
        # Arrays in memory, and the types and shapes of those in files, by names
        self._here: dict[str, dict[str, np.ndarray]] = {}
        self._files: dict[str, dict[str, Path]] = {}

    def put(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays by their own names, which are kept under one name.

        Raises:
            OSError: The disk is full; it names the file.
        """
        self._here.setdefault(name, {})
        for own, values in arrays.items():
            if self._folder is None:
                self._here[name][own] = values
            else:
                self.room(name, own, values.dtype, values.shape)[:] = values

    def room(self, name: str, own: str, kind: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of this type and shape that is kept, to be written into.

        Raises:
            OSError: The disk is full; it names the file.
        """
        here = self._here.setdefault(name, {})
        # Nothing can be mapped of an empty file.
        if self._folder is None or not np.prod(shape):
            here[own] = np.zeros(shape, kind)
            return here[own]
        files = self._files.setdefault(name, {})
        # Names of columns may have any character.
        files[own] = self._folder / f"{name}.{len(files)}.npy"
        return _new_file(files[own], kind, shape)

    def get(self, name: str) -> dict[str, np.ndarray]:
        """Return arrays by their own names; what is written into them is kept.

        Those of files are mapped: memory holds what is read of them, until they are deleted.
        """
        mapped = {own: np.load(path, mmap_mode="r+") for own, path in self._files.get(name, {}).items()}
        return {**self._here[name], **mapped}


def _new_file(path: Path, kind: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of this type and shape that is a new file, whose room on the disk is taken.

    Raises:
        OSError: The disk is full; it names the file.
    """
    try:
        room = np.lib.format.open_memmap(path, "w+", kind, shape)
    except OSError as error:
        # One about the size names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    reserve_room(path)
    return room
