"""Files of visitors: how large they may be, and what was read of them or why it could not be."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hf_any3d.data.files import PointCloudData, PointCloudFileError, read_point_cloud
from hf_any3d.data.files.isolated_reading import SECONDS, read_apart

LARGEST_UPLOAD = 50 * 2**20
"""Maximum size of a file in bytes."""
AT_ONCE = 2
"""Number of files read at the same time."""


def read_upload(path: str | os.PathLike, seconds: float = SECONDS, columns: Sequence[str] = ()) -> PointCloudData:
    """Read a visitor's file, with further columns by name, in a process that is killed after so many seconds."""
    size = os.path.getsize(path)
    if size > LARGEST_UPLOAD:
        raise PointCloudFileError(f"{path}: {size:,} bytes; expected at most {LARGEST_UPLOAD:,}")
    return read_apart(path, seconds, columns)


class Uploads:
    """The file that a visitor uploaded last, read without the model."""

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self.columns = columns
        self._read: tuple[str, PointCloudData | Exception] | None = None

    def read(self, path: str | os.PathLike) -> None:
        """Read a visitor's file in a process of its own; `cloud_of` then returns the result or raises the error."""
        try:
            self._read = (os.fspath(path), read_upload(path, columns=self.columns))
        except (ValueError, OSError) as error:
            self._read = (os.fspath(path), error)

    def cloud_of(self, source: str | os.PathLike | PointCloudData) -> PointCloudData:
        """Return a shape, the result of `read` for a file, or another file's content."""
        # Taken once: what was read belongs to one shape.
        read = self._read
        self._read = None
        if isinstance(source, PointCloudData):
            return source
        try:
            if read is None or read[0] != os.fspath(source):
                return read_point_cloud(source, columns=self.columns)
            if isinstance(read[1], Exception):
                raise read[1]
            return read[1]
        except (ValueError, OSError) as error:
            raise ValueError(error_message(error, source)) from error


def error_message(error: Exception, source: str | os.PathLike) -> str:
    """Return an error message with the name of the file, but without the folder of uploads."""
    name = os.path.basename(source)
    # Visitors are not told where uploads are stored.
    message = str(error).replace(os.fspath(source), name)
    return message if name in message else f"{name}: {message}"
