"""Labeled copies of NPZ and NPY: the class of each point goes where the reader finds labels, else to a new array."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from typing import Any, BinaryIO, cast

import numpy as np

from hf_any3d.data.files import npy
from hf_any3d.data.files.attributes import by_number
from hf_any3d.data.files.column_names import fields_of
from hf_any3d.data.files.labels.columns import Column, QuietSource, check_field, check_word, is_same, read_rows
from hf_any3d.data.files.point_cloud import leave_out_invalid_points
from hf_any3d.data.files.source import ArgumentError, PointCloudError, ReadLimits

# Names of a new array of labels: the first that is not there with another shape, such as the label of a whole cloud.
_NEW = ("labels", "semantic", "classification", "segment")
_FURTHER = ("score", "unknown", "object")


def copy_of(
    file: BinaryIO, name: str, columns: list[Column], faces: Column | None, file_type: str, target: str
) -> NpzCopy | NpyCopy:
    """Return the copy of a file."""
    del name, target
    return NpyCopy(file, columns) if file_type == "npy" else NpzCopy(file, columns, faces)


class _Points:
    """An array of points, and where it has the labels of each: in a field, or in its last column."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.fields: list[str] = list(array.dtype.names or ())
        # The name of each field of one number for a point, by what the reader calls it
        self.columns: dict[str, str] = {}
        for name in self.fields:
            if array[name].ndim == 1 and self._kind(name).kind in "fiub":
                self.columns[name.lower()] = name

    def _kind(self, field: str) -> np.dtype:
        return self.array[field].dtype

    def field_of(self, name: str) -> str | None:
        """Return the field of a structured array that has this name."""
        return self.columns.get(name.lower())

    def field_of_labels(self) -> str | None:
        """Return the field that the reader takes for labels."""
        names = fields_of(self.columns).get("labels")
        return self.columns[names[0]] if names else None

    def has_column_of_labels(self) -> bool:
        """Return whether the reader takes the last column of a plain array for labels."""
        return not self.fields and self.array.ndim == 2 and fields_by_number(self.array).get("labels") is not None

    def check(self, column: Column, field: str | None) -> None:
        """Check that a field, or else the last column, takes numbers in its type."""
        if field is None:
            name = f"column {self.array.shape[1]}"
            replace(column, name=name).check_fits(self.array.dtype, "the points'")
        else:
            replace(column, name=field).check_fits(self._kind(field), "field")

    def changed(self, column: Column, field: str | None) -> np.ndarray:
        """Return the array with new numbers; points without an answer keep theirs."""
        values, answered = column.block(0, len(self.array))
        new = self.array.copy(order="K")
        numbers = new[:, -1] if field is None else new[field]
        numbers[answered] = values[answered]
        return new

    def kept(self, count: int) -> np.ndarray:
        """Return which points `read_point_cloud` keeps, of which there are `count` labels; see `read_rows`."""
        # A plain array has x, y and z in its first columns, a structured one has them in fields.
        if not self.fields:
            return read_rows(list(fields_by_number(self.array)["points"].T), count)
        named = fields_of(self.columns).get("points")
        if named:
            return read_rows([self.array[self.columns[name]] for name in named], count)
        # One field may hold all three coordinates.
        several = next(name for name in npy.POINTS if name in map(str.lower, self.fields))
        values = self.array[next(name for name in self.fields if name.lower() == several)]
        return read_rows(list(values[:, :3].T), count)


class NpzCopy:
    """A labeled copy of an archive of arrays, which are checked before anything is written."""

    def __init__(self, file: BinaryIO, columns: list[Column], faces: Column | None):
        self.file = file
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            self.members = npy.members_of(archive)
            # By the sizes that the archive states, before anything is unpacked
            ReadLimits.current().check(decoded=sum(info.file_size for info in self.members.values()))
            self.name = npy.name_of_points(self.members)
            if self.name is None:
                raise PointCloudError("no array of points")
            self.points = _Points(npy.parse_array(archive.read(self.members[self.name])))
            self.headers = {}
            # Of other arrays shapes and types are in the headers; the numbers are not read yet.
            for name, info in self.members.items():
                if info.filename.lower().endswith(".npy"):
                    with archive.open(info) as member:
                        self.headers[name] = npy.read_array_header(cast(BinaryIO, member))
        self.count = len(self.points.array)
        # Field of the points, or "" for their last column, and what is written there; and arrays beside the points.
        self.within: dict[str, Column] = {}
        self.columns: dict[str, Column] = {}
        for column in columns:
            self._place(column)
        self.faces = faces

    def _place(self, column: Column) -> None:
        """Find the array or field of a column, after checking that it takes it."""
        name = column.name
        if name is None:
            of_points = [name for name, header in self.headers.items() if header[0] in self._shapes()]
            name = npy.first_called(npy.LABELS, of_points)
        elif column.is_class:
            name = check_word(name)
            if name.lower() in npy.OTHERS or name == self.name:
                raise ArgumentError(f"field is {name!r}, which is no array of classes; expected a name of its own")
            field = self.points.field_of(name)
            old_kind = self.headers[name][2].kind if name in self.headers else "i"
            if field is not None:
                old_kind = self.points.array[field].dtype.kind
            check_field(name, [*self.points.columns, *self.headers], has_decimals=old_kind == "f")
        # What the points themselves have under this name, or as labels
        if name is None or name not in self.members:
            field = self.points.field_of_labels() if name is None else self.points.field_of(name)
            if field is not None or (name is None and self.points.has_column_of_labels()):
                self.points.check(column, field)
                self.within[field or ""] = column
                return
        if name is None:
            name = next(name for name in _NEW if name not in self.members)
        if name in self.members:
            shape, _, kind = self.headers.get(name, ((), False, np.dtype("u1")))
            is_plain = shape in self._shapes() and kind.kind in "iuf"
            replace(column, name=name).check_fits(kind if is_plain else "u1", "array", is_plain=is_plain)
        self.columns[name] = column

    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.count,), (self.count, 1)

    def write(self, output: BinaryIO) -> None:
        """Write the copy, each array compressed as it was."""
        kept = None
        # Coordinates are looked at only to tell which points the reader left out.
        if any(len(column.values) != self.count for column in (*self.within.values(), *self.columns.values())):  # pyright: ignore
            columns = (*self.within.values(), *self.columns.values())
            kept = self.points.kept(len(columns[0].values))  # pyright: ignore[reportArgumentType]
        new = {name: column.of_file(self.count, kept) for name, column in self.columns.items()}
        points = self.points
        for field, column in self.within.items():
            points = _Points(points.changed(column.of_file(self.count, kept), field or None))
        if self.faces is not None:
            new["face_labels"] = self.faces
        with zipfile.ZipFile(self.file) as archive, zipfile.ZipFile(output, "w") as copy:
            # New arrays are compressed in the way of the last old one.
            method = zipfile.ZIP_DEFLATED
            for name, info in self.members.items():
                method = info.compress_type
                data = archive.read(info)
                if name in new:
                    data = _changed(npy.parse_array(data), new.pop(name))
                elif name == self.name and self.within:
                    data = _bytes(points.array)
                copy.writestr(info, data, info.compress_type)
            for name, column in new.items():
                assert column.values is not None
                count = len(column.values if column.rows is None else column.rows)
                copy.writestr(f"{name}.npy", _bytes(column.filled(0, count, column.kind)), method)
            if "" in self.within:
                for name, array in self._named(points.array).items():
                    copy.writestr(f"{name}.npy", _bytes(array), method)

    def _named(self, table: np.ndarray) -> dict[str, np.ndarray]:
        """Return arrays of labels and others if the columns of points, which nothing names, are read otherwise now."""
        before = fields_by_number(self.points.array)
        after = fields_by_number(table)
        if is_same(after, before | {"labels": table[:, -1]}):
            return {}
        name = next(name for name in _NEW if name not in self.members)
        named = {name: table[:, -1].astype(np.int32)}
        for name in ("colors", "normals"):
            if before.get(name) is not None and name not in self.members:
                named[name] = table[:, -4:-1]
        return named


class NpyCopy:
    """A labeled copy of one array, which must have a field or a column of labels, or fields to which one is added."""

    def __init__(self, file: BinaryIO, columns: list[Column]):
        file.seek(0)
        self.points = _Points(npy.parse_array(file.read()))
        self.places = [(column, self._place(column)) for column in columns]

    def _place(self, column: Column) -> str | None:
        """Return the field of a column, None for the last column of a plain array."""
        points = self.points
        if not points.fields:
            if column.name is not None or not points.has_column_of_labels():
                raise PointCloudError(
                    "an array whose columns have no names has no place for further ones; save points and others as "
                    ".npz, or as an array with fields"
                )
            points.check(column, None)
            return None
        name = column.name or points.field_of_labels() or "label"
        field = points.field_of(name)
        if column.name is not None and column.is_class:
            kind = "i" if field is None else points.array[field].dtype.kind
            check_field(check_word(name), points.columns, has_decimals=kind == "f")
        if field is not None:
            points.check(column, field)
        elif name in points.fields:
            raise ArgumentError(f"field is {name!r}, which has several numbers for a point; choose another name")
        return name if field is None else field

    def write(self, output: BinaryIO) -> None:
        """Write the copy."""
        count = len(self.points.array)
        kept = None
        if any(len(column.values) != count for column, _ in self.places):  # pyright: ignore[reportArgumentType]
            kept = self.points.kept(len(self.places[0][0].values))  # pyright: ignore[reportArgumentType]
        points = self.points
        for column, field in self.places:
            column = column.of_file(count, kept)
            if field is None or field in points.fields:
                points = _Points(points.changed(column, field))
            else:
                points = _Points(_with_field(points.array, field, column.filled(0, count, column.kind)))
        if not points.fields:
            expected = fields_by_number(self.points.array) | {"labels": points.array[:, -1]}
            if not is_same(fields_by_number(points.array), expected):
                raise PointCloudError(
                    "the last column of an array without names is not read as labels with these numbers; save points "
                    "and labels as .npz"
                )
        output.write(_bytes(points.array))


def fields_by_number(table: np.ndarray) -> dict[str, Any]:
    """Return what the reader takes a table (points, columns) without names for."""
    # As the reader that leaves points out, since their values decide nothing then.
    with leave_out_invalid_points(), np.errstate(all="ignore"):
        return by_number(table, QuietSource("", b"", "npy"))


def _with_field(array: np.ndarray, name: str, values: np.ndarray) -> np.ndarray:
    """Return a structured array with one more field, after the bytes that a row has."""
    old = array.dtype
    fields: Any = old.fields
    layout: Any = {
        "names": [*(old.names or ()), name],
        "formats": [*(fields[each][0] for each in old.names or ()), values.dtype],
        "offsets": [*(fields[each][1] for each in old.names or ()), old.itemsize],
        "itemsize": old.itemsize + values.dtype.itemsize,
    }
    new = np.zeros(array.shape, np.dtype(layout))
    for each in old.names or ():
        new[each] = array[each]
    new[name] = values
    return new


def _changed(old: np.ndarray, column: Column) -> bytes:
    """Return an array with new numbers, in its type; points without an answer keep theirs."""
    values, answered = column.block(0, len(old))
    new = old.copy()
    # (points,), of an array that may be (points, 1)
    new.reshape(-1)[answered] = values[answered]
    return _bytes(new)


def _bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
