"""The input of the readers: the bytes of a file within limits, and the errors for files and clouds."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import BinaryIO, cast


class PointCloudError(ValueError):
    """A point cloud with invalid content, such as no points or NaN coordinates."""


class PointCloudFileError(PointCloudError):
    """A file that cannot be read as a point cloud; names the file, what was seen and what is allowed."""


@contextmanager
def file_errors(name: object) -> Iterator[None]:
    """Convert errors about content to a PointCloudFileError that starts with the name of the file."""
    try:
        yield
    except PointCloudFileError:
        raise
    except PointCloudError as error:
        raise file_error(name, error) from None


def file_error(name: object, error: PointCloudError) -> PointCloudFileError:
    """Return the error of a file's content with the file's name; long values that it quotes are cut in the middle."""
    reason = str(error)
    if len(reason) > 2 * _QUOTED:
        reason = f"{reason[:_QUOTED]} … {reason[-_QUOTED:]}"
    return PointCloudFileError(f"{name}: {reason}")


_QUOTED = 200
VARIABLE = "HF_ANY3D_READ_LIMITS"
"""Environment variable with limits for all readers, such as `points=300000000,expansion=100`."""

FREE_BYTES = 128 << 20
"""Decoded size that is always allowed, however small the file."""


@dataclass(frozen=True)
class ReadLimits:
    """Limits of the content of one file, checked before memory is allocated. The defaults allow 100 M points.

    Attributes:
        points: points or vertices.
        faces: triangles, after polygons have been cut.
        bytes: size of the file, with those it refers to, and of its decoded arrays.
        expansion: how many times larger than the file its arrays may be, beyond the first 128 MB (`FREE_BYTES`).
            Real compressed scans expand 2 to 20 times, decompression bombs hundreds of times.

    Raises:
        ValueError: a limit below 1.
    """

    points: int = 100_000_000
    faces: int = 200_000_000
    bytes: int = 8 << 30
    expansion: int = 32

    def __post_init__(self):
        for entry in fields(self):
            value = getattr(self, entry.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"ReadLimits: {entry.name} is {value!r}; expected a whole number from 1")

    @classmethod
    def current(cls) -> "ReadLimits":
        """Return the defaults, with the changes in the environment variable HF_ANY3D_READ_LIMITS.

        Raises:
            ValueError: the variable has something other than `name=number`, separated by commas.
        """
        text, changes = os.environ.get(VARIABLE, ""), {}
        names = [entry.name for entry in fields(cls)]
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, number = (piece.strip() for piece in part.partition("="))
            if name not in names or not number.isdecimal() or not number.isascii() or len(number) > 18:
                raise ValueError(f"{VARIABLE} has {part!r}; expected {', '.join(names)}, each with = and a number")
            changes[name] = int(number)
        return cls(**changes)

    def check(self, *, points: int = 0, faces: int = 0, decoded: int = 0, stored: int | None = None) -> None:
        """Raise an error beyond the limits.

        Args:
            points: number of points that the file declares or has.
            faces: number of triangles.
            decoded: bytes of the arrays to be created.
            stored: bytes of the file; None if there is none.

        Raises:
            PointCloudError: names the limit and how to raise it.
        """
        for name, value in (("points", points), ("faces", faces), ("bytes", decoded)):
            if value > getattr(self, name):
                raise self._refusal(name, f"{value} {name}; at most {getattr(self, name)}")
        if stored is not None and decoded > max(FREE_BYTES, self.expansion * stored):
            text = f"{stored} bytes expand to {decoded}; at most {self.expansion} times as many"
            raise self._refusal("expansion", text)

    @staticmethod
    def _refusal(name: str, text: str) -> PointCloudError:
        return PointCloudError(f"{text} are read (pass limits=ReadLimits({name}=…) or set {VARIABLE}={name}=…)")


MAX_REFERENCES = 256
"""Files that one may refer to."""
# A file is sparse if it says to be this many times larger than what is stored; file systems compress less.
_SPARSE, _LOOKED_AT = 32, 1 << 16


@dataclass(frozen=True)
class Source:
    """The content of one file.

    Attributes:
        name: its name in errors and warnings.
        data: its bytes.
        file_type: its type in small letters, without a dot.
        folder: folder of files that it refers to, or None if it was not read from a path.
        limits: limits of its content.
    """

    name: str
    data: bytes
    file_type: str
    folder: Path | None = None
    limits: ReadLimits = field(default_factory=ReadLimits.current)
    _warned: set[str] = field(default_factory=set, repr=False, compare=False)
    _references: dict[str, Path | None] = field(default_factory=dict, repr=False, compare=False)
    _neighbors: dict[Path, bytes] = field(default_factory=dict, repr=False, compare=False)

    def warn(self, text: str) -> None:
        """Warn about this file, once for each text."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(f"{self.name}: {text}", UserWarning, stacklevel=4)

    def warn_of_rest(self, rest: bytes) -> None:
        """Warn of data after those that the header declares, unless they only fill up the file."""
        if rest.strip(b"\0 \t\r\n"):
            self.warn(f"{len(rest)} bytes after the data that the header declares are left out")

    def check(self, *, points: int = 0, faces: int = 0, decoded: int = 0) -> None:
        """Raise an error beyond the limits; see `ReadLimits.check`."""
        stored = len(self.data) + sum(map(len, self._neighbors.values()))
        self.limits.check(points=points, faces=faces, decoded=decoded, stored=stored)

    def neighbor(self, reference: str) -> bytes | None:
        """Read a file that this one refers to; return None unless it is in the same folder or below.

        Later references to the same file return the same bytes.

        Raises:
            PointCloudError: too many references, or files beyond the limits.
        """
        if reference not in self._references:
            if len(self._references) == MAX_REFERENCES:
                raise PointCloudError(f"refers to more than {MAX_REFERENCES} files; expected at most that many")
            self._references[reference] = self._path_of(reference)
        path = self._references[reference]
        if path is None:
            return None
        try:
            if path not in self._neighbors:
                self.limits.check(decoded=sum(map(len, self._neighbors.values())) + path.stat().st_size)
                self._neighbors[path] = path.read_bytes()
            return self._neighbors[path]
        except OSError:
            return None

    def _path_of(self, reference: str) -> Path | None:
        return None if self.folder is None else path_of_reference(self.folder, reference)


def path_of_reference(folder: Path, reference: str) -> Path | None:
    """Return the path of a file that one in a folder refers to; None unless it is there or below."""
    if not reference or "\0" in reference or "://" in reference:
        return None
    try:
        folder = folder.resolve()
        # Links are followed before the comparison, or one could lead out of the folder.
        path = (folder / reference).resolve()
        return path if path.is_relative_to(folder) and path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


def open_source(
    source: str | os.PathLike | bytes | BinaryIO,
    file_type: str | None,
    allowed: tuple[str, ...],
    limits: ReadLimits | None = None,
) -> Source:
    """Read a path, bytes or an open binary file.

    Args:
        source: a path, the bytes of a file, or a binary file object.
        file_type: such as "ply"; by default the ending of the path or of the file object's name.
        allowed: the known types.
        limits: limits of its content; by default `ReadLimits.current()`.

    Raises:
        PointCloudFileError: a file that is missing, empty, a directory, a URL or of an unknown type.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data, path = f"<{len(source)} bytes>", bytes(source), None
    elif hasattr(source, "read"):
        name, data, path = str(getattr(source, "name", "<file object>")), None, None
    elif isinstance(source, (str, os.PathLike)):
        name, data, path = os.fspath(source), None, Path(source)
    else:
        raise TypeError(f"source: {type(source).__name__}; expected a path, bytes or a binary file object")
    # Bytes of a name that are not UTF-8, which Python keeps as surrogates, are escaped.
    name = name.encode("utf-8", "backslashreplace").decode("utf-8")
    limits = ReadLimits.current() if limits is None else limits
    # Before reading: a name of a wrong type should not cost gigabytes.
    kind = _file_type(name, file_type, allowed, known_ending=data is None)
    if data is None:
        data = _read_object(cast(BinaryIO, source), name) if path is None else _read_path(path, name, limits)
    if not data:
        raise PointCloudFileError(f"{name}: the file is empty; expected a {kind} file")
    if data.startswith(b"version https://git-lfs"):
        raise PointCloudFileError(f"{name}: a Git LFS pointer, not the file; fetch the file with `git lfs pull`")
    with file_errors(name):
        limits.check(decoded=len(data))
    return Source(name, data, kind, None if path is None else path.parent, limits)


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
        raise PointCloudFileError(f"{name}: the file object returns {type(data).__name__}; open it in mode 'rb'")
    return bytes(data)


def _refuse_sparse(path: Path, status: os.stat_result) -> None:
    """Raise an error for a large file of which hardly anything is on the disk: the rest reads as zeros."""
    stored = 512 * getattr(status, "st_blocks", status.st_size)  # Windows has none
    if status.st_size <= FREE_BYTES or stored * _SPARSE >= status.st_size:
        return
    if not stored:  # some file systems do not count blocks
        with path.open("rb") as file:
            if any(file.read(_LOOKED_AT)):
                return
    raise PointCloudError(
        f"{status.st_size} bytes, of which {stored} are on the disk; expected a file that is not sparse"
    )


def _read_path(path: Path, name: str, limits: ReadLimits) -> bytes:
    if "://" in name:
        raise PointCloudFileError(f"{name}: a URL; download the file and pass its path")
    try:
        if path.is_dir():
            raise PointCloudFileError(f"{name}: a directory; expected a file")
        # A device or pipe could be endless.
        if path.exists() and not path.is_file():
            raise PointCloudFileError(f"{name}: not a regular file")
        status = path.stat()
        with file_errors(name):
            limits.check(decoded=status.st_size)
            _refuse_sparse(path, status)
        return path.read_bytes()
    except PointCloudFileError:
        raise
    except FileNotFoundError:
        raise PointCloudFileError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        raise PointCloudFileError(f"{name}: cannot be read ({error})") from error
