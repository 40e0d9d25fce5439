"""From what the caller passes to the bytes a reader works on."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import PointCloudFileError


@dataclass(frozen=True)
class Source:
    """The content of one file.

    Attributes:
        name: what errors and warnings call the file.
        data: its bytes.
        file_type: its type in small letters, without a dot.
        folder: where files that it refers to may lie, or None when it was not read from a path.
    """

    name: str
    data: bytes
    file_type: str
    folder: Path | None = None

    def warn(self, text: str) -> None:
        """Warn about this file."""
        warnings.warn(f"{self.name}: {text}", UserWarning, stacklevel=4)

    def neighbor(self, reference: str) -> bytes | None:
        """Read a file that this one refers to, if it lies in the same folder or below, else give None."""
        if self.folder is None or not reference or "\0" in reference or "://" in reference:
            return None
        try:
            folder = self.folder.resolve()
            path = (folder / reference).resolve()
            if not path.is_relative_to(folder) or not path.is_file():
                return None
            return path.read_bytes()
        except (OSError, RuntimeError, ValueError):
            return None


def open_source(
    source: str | os.PathLike | bytes | BinaryIO, file_type: str | None, allowed: tuple[str, ...]
) -> Source:
    """Read a path, bytes or an open binary file.

    Args:
        source: a path, the bytes of a file, or a binary file object.
        file_type: such as "ply"; by default the ending of the path or of the file object's name.
        allowed: the known types.

    Returns:
        The content with its name and type.

    Raises:
        PointCloudFileError: if the file is missing, empty, a directory, a URL or of an unknown type.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data, folder = f"<{len(source)} bytes>", bytes(source), None
    elif hasattr(source, "read"):
        name, folder = str(getattr(source, "name", "<file object>")), None
        data = None
    elif isinstance(source, (str, os.PathLike)):
        name, data, folder = os.fspath(source), None, Path(source).parent
    else:
        raise TypeError(f"source: {type(source).__name__}; expected a path, bytes or a binary file object")
    kind = _file_type(name, file_type, allowed, known_ending=not isinstance(source, (bytes, bytearray, memoryview)))
    if data is None:
        data = _read_object(source, name) if folder is None else _read_path(Path(source), name)
    if not data:
        raise PointCloudFileError(f"{name}: the file is empty; expected a {kind} file")
    if data.startswith(b"version https://git-lfs"):
        raise PointCloudFileError(
            f"{name}: a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
        )
    return Source(name, data, kind, folder)


def _file_type(name: str, file_type: str | None, allowed: tuple[str, ...], known_ending: bool) -> str:
    kind = file_type if file_type is not None else os.path.splitext(name)[1] if known_ending else ""
    kind = kind.lower().removeprefix(".")
    if kind in allowed:
        return kind
    if "://" in name:
        raise PointCloudFileError(f"{name}: a URL; download the file and pass its path")
    if known_ending and file_type is None and os.path.isdir(name):
        raise PointCloudFileError(f"{name}: a directory; expected a file")
    seen = f"file type {kind!r}" if kind else "no file type"
    hint = "" if file_type is not None else " (or pass file_type=)"
    raise PointCloudFileError(f"{name}: {seen}; expected one of {', '.join(allowed)}{hint}")


def _read_object(file: BinaryIO, name: str) -> bytes:
    data = file.read()
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise PointCloudFileError(f"{name}: the file object gives {type(data).__name__}; open it in binary mode, 'rb'")
    return bytes(data)


def _read_path(path: Path, name: str) -> bytes:
    if "://" in name:
        raise PointCloudFileError(f"{name}: a URL; download the file and pass its path")
    try:
        if path.is_dir():
            raise PointCloudFileError(f"{name}: a directory; expected a file")
        # A device or pipe could go on for ever.
        if path.exists() and not path.is_file():
            raise PointCloudFileError(f"{name}: not a regular file")
        return path.read_bytes()
    except FileNotFoundError:
        raise PointCloudFileError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, PointCloudFileError):
            raise
        raise PointCloudFileError(f"{name}: cannot be read ({error})") from error
