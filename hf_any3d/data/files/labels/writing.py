"""`write_labels`: which files can hold labels, what is checked before any work, and who writes them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hf_any3d.data.files.contents import Look, type_under_other_ending
from hf_any3d.data.files.labels.columns import Column, class_column, further_columns
from hf_any3d.data.files.source import ArgumentError, PointCloudFileError, file_errors
from hf_any3d.registry import FORMATS
from hf_any3d.utils.atomic_files import atomic_write
from hf_any3d.utils.messages import printable

# Ending -> module with `copy_of(file, name, columns, file_type, target)`, and the endings that its copies may have.
_WRITERS = {
    "las": ("las", ("las", "laz")),
    "laz": ("las", ("laz", "las")),
    "ply": ("ply", ("ply",)),
    "pcd": ("pcd", ("pcd",)),
    "npz": ("npz", ("npz",)),
    "npy": ("npz", ("npy",)),
    "csv": ("text", ("csv",)),
    "txt": ("text", ("txt",)),
    "asc": ("text", ("asc",)),
    "xyz": ("text", ("xyz",)),
}
_WITH_FACES = ("ply", "npz")
# Why files of the other types take no labels, and what to do instead
_REASONS = {
    "e57": "E57 stores points in checksummed pages; convert it to .las or .ply first",
    "obj": "OBJ cannot store labels; convert it to .ply first",
    "off": "OFF cannot store labels; convert it to .ply first",
    "stl": "STL cannot store labels; convert it to .ply first",
    "glb": "glTF has no standard labels; convert it to .ply first",
    "gltf": "glTF has no standard labels; convert it to .ply first",
    "pnts": "its properties belong to a tileset; convert it to .ply first",
    "pts": "the columns of .pts are fixed; convert it to .xyz or .ply first",
}
_SWEEPS = "the columns of such a sweep are fixed; convert it to .ply or .npz first"


def copy_endings(source: str | os.PathLike) -> tuple[str, ...]:
    """Return the endings that labeled copies of a file may have, none if it cannot hold labels; by its ending."""
    return _WRITERS[kind][1] if (kind := _ending(source)) in _WRITERS else ()


def write_labels(
    source: str | os.PathLike | bytes | BinaryIO,
    path: str | os.PathLike | BinaryIO,
    labels: Any,
    *,
    scores: Any = None,
    unknown: Any = None,
    objects: Any = None,
    columns: Mapping[str, Any] | None = None,
    face_labels: Any = None,
    field: str | None = None,
    codes: Mapping[int, int] | Sequence[int] | None = None,
    file_type: str | None = None,
) -> None:
    """Write a copy of a point file in which only the class of each point changed.

    Points, their order, all other columns, records, comments and the coordinate system are those of the file, byte by
    byte. The copy is written whole or not at all. LAS and LAZ are read and written in pieces. `read_point_cloud` reads
    the labels of the copy.

    | file | class | `scores`, `unknown`, `objects` |
    |---|---|---|
    | `.las`, `.laz` | `classification`, or the dimension `field` | dimensions score, unknown, object |
    | `.ply` | the property that is read as labels, else `scalar_Classification` | `scalar_Score` and so on |
    | `.pcd` | the field that is read as labels, else `label` | further fields |
    | `.npz` | the array, field or column that is read as labels, else an array `labels` | further arrays |
    | `.npy` | the field or column that is read as labels, else a field `label` | further fields |
    | text | the column that is read as labels, else a last one, `Classification` | further columns |

    Rows of text without names of columns get a line `#x y z Classification` where nothing else would tell the reader
    what is written: scores, more than 64 labels, and points without one. A COPC is refused, unless the path ends with
    `.plain.laz` or `.las`: the copy then has its points and no octree.

    Args:
        source: The file that was labeled: its path, its bytes, or a binary file object.
        path: Where the copy is written, never the file itself: with the ending of the file, or .las for .laz and the
            other way round. A binary file object that can be read and written may be given, too.
        labels: (points,) whole numbers, for all points of the file or for those that `read_point_cloud` returns:
            points that it leaves out, and those with a negative label, keep the class that they have, and have -1 (0
            in LAS) in a new column. None leaves the class of all points as it is.
        scores: (points,) probability of each label.
        unknown: (points,) how unlike the training each point is.
        objects: (points,) number of the object that each point belongs to, from 1; 0 for none.
        columns: (points,) whole numbers or float32 of new columns by their names, such as "HeightAboveGround"; a name
            that the file has already is an error.
        face_labels: (faces,) labels of the triangles that `read_point_cloud` returns, for meshes in .ply.
        field: Name of the dimension, property, field, array or column for the class, instead of the usual one; it
            may exist already, but not as what a point is, such as a coordinate, a color or an intensity.
        codes: Code to write for each label, such as `[2, 5, 6]`; by default labels are written as they are.
        file_type: Ending of the file, for bytes and file objects.

    Raises:
        PointCloudFileError: The file is damaged, cannot hold labels or these codes, or has another number of points.
        ValueError: Arrays do not fit, `field` is taken, or `path` is the file itself or has another ending.
        OSError: The copy cannot be written, as when the disk is full; nothing of it is left.

    Example:
        ```python
        write_labels("street.laz", "labeled.laz", labels, codes=[2, 5, 6])
        ```
    """
    # Labels as an array, since None stands for those that are still to come.
    written = further_columns(scores, unknown, objects, columns or {})
    if labels is not None:
        written.insert(0, class_column(np.asarray(labels), field, codes))
    if not written:
        raise ValueError("labels is None and nothing else is to be written; pass labels or columns")
    faces = None if face_labels is None else class_column(face_labels, field, codes)
    with ExitStack() as stack:
        # All checks come before the target is touched.
        copy, name = _opened(source, path, written, faces, file_type, stack)
        file: Any = path
        if not hasattr(path, "write"):
            unfinished = stack.enter_context(atomic_write(path))  # pyright: ignore[reportArgumentType]
            # Readable too, since waveforms of LAS are read back once they are written
            file = stack.enter_context(open(unfinished, "w+b"))
        target = _Target(file)
        try:
            with file_errors(name, "file whose points can be labeled"):
                copy.write(target)
        except PointCloudFileError:
            # A full disk is no fault of the file that is read.
            if target.error is not None:
                raise target.error from None
            raise


def check_labels_fit(
    source: str | os.PathLike | bytes | BinaryIO,
    path: str | os.PathLike | BinaryIO,
    *,
    codes: Iterable[int] | None = None,
    scores: bool = False,
    unknown: bool = False,
    objects: bool = False,
    columns: Sequence[str] = (),
    keeps_class: bool = False,
    field: str | None = None,
    file_type: str | None = None,
) -> None:
    """Check, before labels are computed, that `write_labels` can write them; see there for arguments and errors.

    Only headers are read. `codes` are those that may occur, `columns` the names of new columns, and the others say
    whether there will be such columns; with `keeps_class` there is none for the class.
    """
    # Columns without values stand for those to come: names, types and codes can be checked already.
    written = [] if keeps_class else [class_column(None, field, None if codes is None else list(codes))]
    # False stands for no such column, True for one that is still to come.
    written += further_columns(scores or None, unknown or None, objects or None, dict.fromkeys(columns, True))
    with ExitStack() as stack:
        _opened(source, path, written, None, file_type, stack)


def _opened(
    source: Any, path: Any, columns: list[Column], faces: Column | None, file_type: str | None, stack: ExitStack
) -> tuple[Any, str]:
    """Return the copy of an opened file, which is not written yet, and the file's name."""
    kind = (file_type or _ending(source)).lower().removeprefix(".")
    name = printable(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else "<file>"
    # A file object has no ending: its copy is of the file's own type.
    is_stream = hasattr(path, "write")
    new_kind = kind if is_stream else _ending(path)
    target = name if is_stream else printable(os.fspath(path))
    if kind not in _WRITERS:
        if kind not in FORMATS and os.path.isfile(source):
            # What is no file of points has no place for labels either.
            _, refusal = type_under_other_ending(Look.into(source), name)
            if refusal:
                raise ValueError(f"{name}: {refusal}")
        known = ", ".join(f".{ending}" for ending in _WRITERS)
        reason = _REASONS.get(kind, _SWEEPS if kind in ("bin", "kitti", "nuscenes") else f"expected {known}")
        raise ValueError(f"{name}: cannot write labels to a .{kind} file: {reason}")
    # LAS and LAZ may be written as each other, all others as themselves.
    module, endings = _WRITERS[kind]
    if faces is not None and kind not in _WITH_FACES:
        raise ValueError(f"face_labels: a .{kind} file has no faces; expected None")
    if new_kind not in endings:
        allowed = " or ".join(f".{ending}" for ending in endings)
        raise ValueError(f"{target}: expected the ending {allowed} for a copy of {name}")
    names = [column.name for column in columns]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ArgumentError(f"field is {twice[0]!r}, which is written beside the class; choose another name")
    if isinstance(source, (bytes, bytearray, memoryview)):
        file = io.BytesIO(source)
    elif hasattr(source, "read"):
        file = source
    else:
        # The same file by another name, such as a link, counts as well.
        if not is_stream and Path(path).exists() and os.path.samefile(source, path):
            raise ValueError(f"{os.fspath(path)} is the input file, which is never overwritten; give another path")
        file = stack.enter_context(open(source, "rb"))
    with file_errors(name, f".{kind} file whose points can be labeled"):
        writer = import_module(f"{__package__}.{module}")
        return writer.copy_of(file, name, columns, faces, new_kind, target), name


class _Target:
    """The file that is written; it keeps the first error of its disk, which others would take for one of the input."""

    def __init__(self, file: Any):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes."""
        return self._noted(self.file.write, data)

    def seek(self, *place: int) -> int:
        """Move; what is in the buffer is written first."""
        return self._noted(self.file.seek, *place)

    def flush(self) -> None:
        """Write what is in the buffer."""
        self._noted(self.file.flush)

    def _noted(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            self.error = self.error or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _ending(source: Any) -> str:
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else str(getattr(source, "name", ""))
    return os.path.splitext(name)[1].lower().removeprefix(".")
