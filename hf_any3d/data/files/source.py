"""The input of the readers: the bytes of a file within limits, and the errors for files and clouds."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from hf_any3d.hub.names import why_absent
from hf_any3d.utils.messages import cut, cut_middle, listed, printable


class PointCloudError(ValueError):
    """A point cloud with invalid content, such as no points or NaN coordinates."""


class NoPointsError(PointCloudError):
    """A sound point cloud without points, such as an empty tile.

    A program that reads many files may skip these and stop at the others.
    """

    def __init__(self, reason: str = "has no points"):
        super().__init__(reason)


class PointCloudFileError(PointCloudError):
    """A file that cannot be read as a point cloud; names the file, what was seen and what is allowed."""


class _NoPointsFileError(PointCloudFileError, NoPointsError):
    """A sound file without points, as both of its bases are caught."""


class ArgumentError(ValueError):
    """An argument that does not fit the file, such as a name that is taken."""


@contextmanager
def file_errors(name: object, kind: str | None = None) -> Iterator[None]:
    """Convert errors about content to a PointCloudFileError that starts with the name of the file.

    With `kind`, the format that is read inside, any error is one of a damaged file: readers check what would otherwise
    be a wrong answer, and leave the rest to numpy and Python.
    """
    try:
        yield
    # The first has its name already; a wrong argument, a missing package, or a warning made an error, is no fault of
    # the file.
    except (PointCloudFileError, ArgumentError, ImportError, Warning):
        raise
    except PointCloudError as error:
        # The error without a name is left out, what caused it stays.
        raise file_error(name, error) from error.__cause__
    except MemoryError:
        raise PointCloudFileError(f"{name}: needs more memory than is available") from None
    except Exception as error:
        if kind is None:
            raise
        # Errors of Python quote bytes as its literals.
        reason = cut(re.sub(r"\bb(?=['\"])", "", f"{type(error).__name__}: {error}"), _QUOTED)
        raise file_error(name, f"damaged, incomplete or invalid {kind} ({reason})") from error


def file_error(name: object, reason: object) -> PointCloudFileError:
    """Return an error with the file's name; long values that the reason quotes are cut in the middle."""
    text = printable(f"{name}: {cut_middle(str(reason), 2 * _QUOTED)}")
    return _NoPointsFileError(text) if isinstance(reason, NoPointsError) else PointCloudFileError(text)


def tell_left_out(name: object, names: Iterable[str], why: str) -> None:
    """Warn once of what a reader finds in a file and a cloud cannot hold, or a writer in a cloud and a file cannot.

    Args:
        name: The file.
        names: What is left out, as the file or the cloud calls it; nothing is said without any.
        why: Such as "OBJ has no place for them".
    """
    text = _names_and_reason(names, why)
    if text:
        warnings.warn(printable(f"{name}: {LEFT_OUT}{text}"), stacklevel=3)


def _names_and_reason(names: Iterable[str], why: str) -> str:
    """Return such as "intensity, time (OBJ has no place for them)"; "" without names."""
    # Each once, in the order of the file
    unique = list(dict.fromkeys(names))
    if not unique:
        return ""
    # A damaged file may have any number of names of any length.
    return f"{listed([cut(name, _LONGEST_NAME) for name in unique], _MOST_NAMED)} ({why})"


@contextmanager
def nothing_is_lost() -> Iterator[None]:
    """Give no warnings about data that a cloud cannot hold while the file is read for a copy that keeps them."""
    token = _IS_KEPT.set(True)
    try:
        yield
    finally:
        _IS_KEPT.reset(token)


_IS_KEPT: ContextVar[bool] = ContextVar("is_kept", default=False)
_QUOTED = 200
_MOST_NAMED, _LONGEST_NAME = 20, 100  # of what is left out
LEFT_OUT = "ignored: "
"""Beginning of a warning about what a cloud has no place for, which leaves no doubt about the cloud."""

VARIABLE = "HF_ANY3D_READ_LIMITS"
"""Environment variable with limits for all readers, such as `points=300000000,expansion=100`."""

FREE_BYTES = 128 << 20
"""Decoded size that is always allowed, however small the file."""


@dataclass(frozen=True)
class ReadLimits:
    """Limits of the content of one file, checked before memory is allocated."""

    points: int = 100_000_000  # or vertices
    faces: int = 200_000_000  # triangles, after polygons have been cut
    bytes: int = 8 << 30  # of the file, with those it refers to, and of its decoded arrays
    # How many times larger than the file its arrays may be, beyond the first 128 MB (`FREE_BYTES`). Real compressed
    # scans expand 2 to 20 times.
    expansion: int = 32

    @classmethod
    def current(cls) -> "ReadLimits":
        """Return the defaults, with the changes in the environment variable HF_ANY3D_READ_LIMITS."""
        pairs = (part.partition("=") for part in os.environ.get(VARIABLE, "").split(",") if part.strip())
        return cls(**{name.strip(): int(number) for name, _, number in pairs})

    def check(self, *, points: int = 0, faces: int = 0, decoded: int = 0, stored: int | None = None) -> None:
        """Raise an error beyond the limits; `decoded` are the bytes of arrays to be created, `stored` of the file."""
        # Rounded up, so that just above the limit is too much
        expanded = 0 if stored is None or decoded <= FREE_BYTES else -(-decoded // max(stored, 1))
        limited = {"points": points, "faces": faces, "bytes": decoded, "expansion": expanded}
        for name, value in limited.items():
            most = getattr(self, name)
            if value > most:
                what = f"times the {stored} bytes of the file" if name == "expansion" else name
                raise PointCloudError(
                    f"{value} {what}; at most {most} are read (pass limits=ReadLimits({name}=…) or set "
                    f"{VARIABLE}={name}=…)"
                )


MAX_REFERENCES = 256
"""Files that one may refer to."""


@dataclass(frozen=True)
class Source:
    """The content of one file."""

    name: str  # in errors and warnings
    data: bytes
    file_type: str  # in small letters, without a dot
    folder: Path | None = None  # of files that it refers to; None if it was not read from a path
    limits: ReadLimits = field(default_factory=ReadLimits.current)
    label_field: str | None = None  # name of the column that labels are read from; None for the usual ones
    columns: tuple[str, ...] = ()  # names of further columns that are read
    fields: frozenset[str] | None = None  # of the cloud that are read beside points and `columns`; None for all
    _label_fields: set[str] = field(default_factory=set, repr=False, compare=False)  # that it was found as
    _columns: dict[str, None] = field(default_factory=dict, repr=False, compare=False)  # in which it was looked for
    _of_points: dict[str, None] = field(default_factory=dict, repr=False, compare=False)  # columns of points
    _twice: dict[str, str] = field(default_factory=dict, repr=False, compare=False)  # name of columns -> where
    _warned: set[str] = field(default_factory=set, repr=False, compare=False)
    _left_out: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)  # reason -> names
    _references: dict[str, Path | None] = field(default_factory=dict, repr=False, compare=False)
    _neighbors: dict[Path, bytes] = field(default_factory=dict, repr=False, compare=False)

    def note_columns(self, names: Iterable[str], where: str = "") -> None:
        """Note which of the names of all columns that are looked at next are there twice; see `check_once`.

        Args:
            names: Each as often as it is there.
            where: What has them, such as "line 1: ", for the error.
        """
        self._twice.clear()
        self._twice.update((name, where) for name, count in Counter(names).items() if count > 1)

    def check_once(self, names: Iterable[str]) -> None:
        """Check that columns that are read have names of their own; of two of one name, either may be meant.

        Raises:
            PointCloudError: A name is there twice; names the first one. Columns that are not read may have any names.
        """
        for name in names:
            if name in self._twice:
                raise PointCloudError(f"{self._twice[name]}two columns are called {cut(name, 40)!r}; rename one")

    def chosen_label(self, names: Iterable[str]) -> str | None:
        """Return which of these names of columns was chosen for the labels; None if none was, or it is not there.

        A name in other letters, such as `Class` for `class`, is the one that is meant, if there is one such alone.
        """
        if self.label_field is None:
            return None
        names = list(names)
        self._columns.update(dict.fromkeys(names))
        chosen = _column_called(self.label_field, names)
        if chosen is not None:
            self.check_once([chosen])
            self._label_fields.add(chosen)
        return chosen

    @property
    def chosen_fields(self) -> set[str]:
        """Names of the columns that labels are read from by choice, and nothing else is."""
        return {*self._label_fields}

    def wants(self, field: str) -> bool:
        """Return whether a field of the cloud is read."""
        return self.fields is None or field in self.fields

    def further_columns(self, names: Iterable[str]) -> dict[str, str]:
        """Return the further columns that are read and are among these names: as they are asked for -> in the file."""
        names = list(names)
        found = {wanted: _column_called(wanted, names) for wanted in self.columns}
        there = {wanted: name for wanted, name in found.items() if name is not None}
        self.check_once(there.values())
        return there

    def further_columns_of_points(self, names: Iterable[str]) -> dict[str, str]:
        """Return `further_columns` of names that points have, and note the names for the error of one that is missing.

        Raises:
            PointCloudError: A column is read as labels by choice, or two of those asked for are one.
        """
        names = list(names)
        self._of_points.update(dict.fromkeys(names))
        found = self.further_columns(names)
        labels = sorted({*found.values()} & self.chosen_fields)
        if labels:
            raise PointCloudError(f"column {labels[0]!r} holds the labels (label_field); leave it out of columns")
        if len({*found.values()}) < len(found):
            raise PointCloudError(f"columns {', '.join(found)}: two of them name the same column; list it once")
        return found

    def check_columns_found(self, further: Mapping[str, np.ndarray] | None) -> None:
        """Check that the columns that were asked for were read, and have a value somewhere."""
        for name in self.columns:
            if further is None or name not in further:
                raise PointCloudError(no_column(name, self._of_points))
            are_missing = ~np.isfinite(further[name])
            if are_missing.all():
                raise PointCloudError(f"column {name!r} has no value at any point; choose another column")
            if are_missing.any():
                self.warn(f"{are_missing.sum():,} of {len(are_missing):,} points have no value in attribute {name!r}")

    def check_label_found(self, *, has_labels: bool) -> None:
        """Check that the column that was chosen for the labels is there, and that labels were read from it."""
        if self.label_field is None:
            return
        if not self._columns:
            raise PointCloudError(f"has no named columns; label_field {self.label_field!r} needs names")
        if not self._label_fields:
            there = _shown(self._columns)
            raise PointCloudError(f"no column {self.label_field!r} for the labels; there are {there}")
        if not has_labels:
            raise PointCloudError(f"column {self.label_field!r} has no labels; use integers or words")

    def warn(self, text: str) -> None:
        """Warn about this file, once for each text."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(printable(f"{self.name}: {text}"), stacklevel=4)

    def leave_out(self, names: Iterable[str], why: str = "a point cloud cannot store them") -> None:
        """Note by name what the file has and a cloud cannot hold; `tell_left_out` warns of it after the last part."""
        self._left_out.setdefault(why, []).extend(names)

    def tell_left_out(self) -> None:
        """Warn once of all that was noted by `leave_out`, with each reason once."""
        told = [text for why, names in self._left_out.items() if (text := _names_and_reason(names, why))]
        if told and not _IS_KEPT.get():
            self.warn(f"{LEFT_OUT}{'; '.join(told)}")

    def warn_of_rest(self, rest: bytes) -> None:
        """Warn of data after those that the header declares, unless they only fill up the file."""
        if rest.strip(b"\0 \t\r\n"):
            self.warn(f"{len(rest)} bytes after the data that the header declares are ignored")

    def check(self, *, points: int = 0, faces: int = 0, decoded: int = 0) -> None:
        """Raise an error beyond the limits; see `ReadLimits.check`."""
        # What a file refers to may make up most of its content.
        stored = len(self.data) + sum(map(len, self._neighbors.values()))
        self.limits.check(points=points, faces=faces, decoded=decoded, stored=stored)

    def neighbor(self, reference: str) -> bytes | None:
        """Read a file that this one refers to; return None unless it is in the same folder or below.

        Later references to the same file return the same bytes.
        """
        if reference not in self._references:
            if len(self._references) == MAX_REFERENCES:
                raise PointCloudError(f"refers to more than {MAX_REFERENCES} files; expected at most that many")
            # References that lead nowhere count as well.
            self._references[reference] = None if self.folder is None else path_of_reference(self.folder, reference)
        path = self._references[reference]
        if path is None:
            return None
        try:
            if path not in self._neighbors:
                # The sum of all such files, before the next one is read
                self.limits.check(decoded=sum(map(len, self._neighbors.values())) + path.stat().st_size)
                self._neighbors[path] = path.read_bytes()
            return self._neighbors[path]
        except OSError:
            return None


def no_column(name: str, names: Iterable[str]) -> str:
    """Return the text of an error about a column that is not among those that points have."""
    there = _shown(names)
    return f"no column {name!r} of the points; there {f'are {there}' if there else 'is none with a name'}"


def _shown(names: Iterable[str]) -> str:
    # A damaged file may have any number of names of any length.
    return ", ".join([cut(name, _LONGEST_NAME) for name in names][:_MOST_NAMED])


def _column_called(wanted: str, names: Sequence[str]) -> str | None:
    """Return the one of the names that is meant, if need be in other letters, such as `Class` for `class`."""
    if wanted in names:
        return wanted
    similar = [name for name in names if name.lower() == wanted.lower()]
    return similar[0] if len(similar) == 1 else None


def path_of_reference(folder: Path, reference: str) -> Path | None:
    """Return the path of a file that one in a folder refers to; None unless it is there or below."""
    # A NUL would end the path in calls of the system, and nothing is ever downloaded.
    if not reference or "\0" in reference or "://" in reference:
        return None
    try:
        folder = folder.resolve()
        # Links are followed before the comparison, or one could lead out of the folder.
        path = (folder / reference).resolve()
        return path if path.is_relative_to(folder) and path.is_file() else None
    # A loop of links raises either of the first two, depending on the version of Python.
    except (OSError, RuntimeError, ValueError):
        return None


def open_source(
    source: str | os.PathLike | bytes | BinaryIO,
    file_type: str | None,
    allowed: tuple[str, ...],
    limits: ReadLimits | None = None,
    label_field: str | None = None,
    columns: Sequence[str] = (),
    fields: Iterable[str] | None = None,
    find_type: Callable[[str, Path | bytes], str] | None = None,
) -> Source:
    """Read a path, bytes or a binary file object.

    The file type is one of `allowed`; by default it is the ending of the path or of the file object's name. Where that
    is none of them, `find_type` returns the type by the name and the file or its bytes.
    """
    limits = ReadLimits.current() if limits is None else limits
    path = None
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = f"<{len(source)} bytes>"
    elif hasattr(source, "read"):
        name = str(getattr(source, "name", "<file object>"))
    else:
        name = os.fspath(cast(str, source))
        path = Path(name)
    name = printable(name)
    with file_errors(name, "file"):
        if path is not None:
            # A device or pipe could be endless.
            if not path.is_file():
                if path.exists():
                    raise PointCloudError("a directory or device; pass a file")
                raise PointCloudError(why_absent(path, "file"))
        kind = (file_type or os.path.splitext(name)[1]).lower().removeprefix(".")
        # The type is looked for in the content only where neither caller nor name tells it.
        look = None if file_type or kind in allowed else find_type
        if look is None and kind not in allowed:
            raise PointCloudError(f"file type {kind or 'unknown'}; expected one of {', '.join(allowed)}")
        if path is not None:
            # Before reading: a file of another program should not cost gigabytes.
            if look is not None and path.stat().st_size:
                kind = look(name, path)
            limits.check(decoded=path.stat().st_size)
            data = path.read_bytes()
        elif hasattr(source, "read"):
            data = bytes(cast(BinaryIO, source).read())
        else:
            data = bytes(cast(bytes, source))
        # File objects tell their size only after they are read.
        limits.check(decoded=len(data))
        if not data:
            raise PointCloudError("the file is empty")
        if look is not None and path is None:
            kind = look(name, data)
        # What a clone without Git LFS has in place of a large file
        if data.startswith(b"version https://git-lfs"):
            raise PointCloudError("a Git LFS pointer; run `git lfs pull`")
    folder = None if path is None else path.parent
    wanted = None if fields is None else frozenset(fields)
    return Source(name, data, kind, folder, limits, label_field, tuple(columns), wanted)
