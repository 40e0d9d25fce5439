"""Labeled copies of NPZ: an array with the class of each point; all others stay."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from hf_any3d.data.files import npy
from hf_any3d.data.files.attributes import fields_of
from hf_any3d.data.files.labels.columns import Column, finite_rows
from hf_any3d.data.files.source import ReadLimits


def copy_of(
    file: BinaryIO, name: str, columns: list[Column], faces: Column | None, file_type: str, target: str
) -> NpzCopy:
    """Return the copy of a file."""
    del name, file_type, target
    return NpzCopy(file, columns, faces)


class NpzCopy:
    """A labeled copy of an archive of arrays, whose headers are checked before anything is written."""

    def __init__(self, file: BinaryIO, columns: list[Column], faces: Column | None):
        self.file = file
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            self.members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            # By the sizes that the archive states, before anything is unpacked
            ReadLimits.current().check(decoded=sum(info.file_size for info in self.members.values()))
            # A single array is the points, whatever its name.
            names = npy.POINTS if len(self.members) > 1 else tuple(self.members)
            self.points = points = next(name for name in names if name in self.members)
            self.headers = {}
            # Shapes and types are in the headers; the numbers are not read yet.
            for name, info in self.members.items():
                with archive.open(info) as member:
                    version = np.lib.format.read_magic(member)
                    self.headers[name] = npy.HEADERS[version](member)
        self.count = self.headers[points][0][0]
        self.columns = [self._placed(column) for column in columns]
        if faces is not None:
            self.columns.append(replace(faces, name="face_labels"))
        self.faces = faces

    def _placed(self, column: Column) -> Column:
        """Find the array of a column, after checking that it takes it."""
        shapes = ((self.count,), (self.count, 1))
        name = column.name
        # The array that the reader takes for labels is replaced, if there is one.
        if name is None:
            found = (name for name in npy.LABELS if name in self.headers and self.headers[name][0] in shapes)
            name = next(found, "labels")
        if name in self.headers:
            shape, _, kind = self.headers[name]
            is_plain = shape in shapes and kind.kind in "iuf"
            replace(column, name=name).check_fits(kind if is_plain else "u1", "array", is_plain=is_plain)
        return replace(column, name=name)

    def write(self, output: BinaryIO) -> None:
        """Write the copy, each array compressed as it was."""
        with zipfile.ZipFile(self.file) as archive, zipfile.ZipFile(output, "w") as copy:
            kept = None
            # Points are read only to tell which of them the reader left out.
            if any(len(column.values) != self.count for column in self._of_points()):  # pyright: ignore
                kept = self._kept(npy.parse_array(archive.read(self.members[self.points])))
            new = {str(column.name): column.of_file(self.count, kept) for column in self._of_points()}
            if self.faces is not None:
                new["face_labels"] = self.columns[-1]
            # New arrays are compressed in the way of the last old one.
            method = zipfile.ZIP_DEFLATED
            for name, info in self.members.items():
                method = info.compress_type
                data = archive.read(info)
                if name in new:
                    data = _changed(npy.parse_array(data), new.pop(name))
                copy.writestr(info, data, info.compress_type)
            for name, column in new.items():
                copy.writestr(f"{name}.npy", _array(column), method)

    def _of_points(self) -> list[Column]:
        return self.columns if self.faces is None else self.columns[:-1]

    def _kept(self, points: np.ndarray) -> np.ndarray:
        """Return which points `read_point_cloud` keeps."""
        # A plain array has x, y and z in its first columns, a structured one has them in fields.
        if points.dtype.names is None:
            return finite_rows(list(points[:, :3].T))
        fields = {name.lower(): points[name] for name in points.dtype.names}
        flat = {name: values for name, values in fields.items() if values.ndim == 1}
        if named := fields_of(flat).get("points"):
            return finite_rows([flat[name] for name in named])
        # One field may hold all three coordinates.
        several = next(fields[name] for name in npy.POINTS if name in fields)
        return finite_rows(list(several[:, :3].T))


def _changed(old: np.ndarray, column: Column) -> bytes:
    """Return an array with new numbers, in its type; points without an answer keep theirs."""
    values, answered = column.block(0, len(old))
    new = old.copy()
    # (points,), of an array that may be (points, 1)
    new.reshape(-1)[answered] = values[answered]
    return _bytes(new)


def _array(column: Column) -> bytes:
    assert column.values is not None
    count = len(column.values if column.rows is None else column.rows)
    return _bytes(column.filled(0, count, column.kind))


def _bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
