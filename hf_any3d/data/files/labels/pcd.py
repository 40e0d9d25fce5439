"""Labeled copies of PCD: a field for the class of each point; ASCII, binary and compressed files stay so."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from typing import Any, BinaryIO

import numpy as np

from hf_any3d.data.files import pcd
from hf_any3d.data.files.column_names import fields_of
from hf_any3d.data.files.labels.columns import Column, check_field, check_once, check_word, number_texts, read_rows
from hf_any3d.data.files.source import ArgumentError, PointCloudError
from hf_any3d.data.files.text_numbers import count_of, normalized_lines, numbers

_HEADER_BYTES, _BLOCK = 1 << 16, 1 << 18
_TOKEN = re.compile(rb"[^\s,;]+")
# Plain runs of LZF have at most this many bytes after their length.
_RUN = 32


@dataclass
class _Edit:
    """A field that is written: its place, or None for one after the last, and its type."""

    column: Column
    place: int | None
    kind: str


def copy_of(
    file: BinaryIO, name: str, columns: list[Column], faces: Column | None, file_type: str, target: str
) -> PcdCopy:
    """Return the copy of a file, which has no faces."""
    del name, faces, file_type, target
    return PcdCopy(file, columns)


class PcdCopy:
    """A labeled copy of a PCD file, whose header is checked before anything is written."""

    def __init__(self, file: BinaryIO, columns: list[Column]):
        self.file = file
        file.seek(0)
        start = file.read(_HEADER_BYTES)
        header, self.kind, self.start = pcd.read_header(start)
        self.header = start[: self.start]
        self.names, self.row = pcd.row_type(header)
        self.fields = [name.lower() for name in header["FIELDS"]]
        self.count = count_of(" ".join(header["WIDTH"]), "WIDTH") * count_of(" ".join(header["HEIGHT"]), "HEIGHT")
        self.edits = [self._edit(column) for column in columns]

    def _edit(self, column: Column) -> _Edit:
        name = column.name
        # The field that the reader takes for labels is replaced, if there is one.
        if name is None:
            labels = fields_of(self.names).get("labels")
            # A new field has a name that no field of several numbers has.
            unused = [name for name in ("label", "classification", "class") if name not in self.fields]
            name = (labels or unused)[0]
        elif column.is_class:
            key = self.names.get(name.lower())
            check_field(name, self.fields, has_decimals=key is not None and self.row[key].base.kind == "f")
        check_once(name.lower(), self.fields)
        named = replace(column, name=check_word(name))
        key = self.names.get(name.lower())
        if key is None:
            if name.lower() in self.fields:
                raise ArgumentError(f"field is {name!r}, which has several numbers for a point; choose another name")
            # The Point Cloud Library reads labels without a sign.
            is_plain = column.is_class and not column.has_gaps
            return _Edit(named, None, "<u4" if is_plain else column.kind)
        kind = self.row[key].base.str
        named.check_fits(kind, "field")
        # Fields of the row's type are called f0, f1, … by their places.
        return _Edit(named, int(key[1:]), kind)

    def write(self, output: BinaryIO) -> None:
        """Write the copy."""
        # Points are read only to tell which of them the reader left out.
        if any(len(edit.column.values) != self.count for edit in self.edits):  # pyright: ignore[reportArgumentType]
            kept = self._kept(len(self.edits[0].column.values))  # pyright: ignore[reportArgumentType]
            for edit in self.edits:
                edit.column = edit.column.of_file(self.count, kept)
        output.write(self._new_header())
        self.file.seek(self.start)
        if self.kind == "ascii":
            self._write_text(output)
        elif self.kind == "binary":
            self._write_rows(output)
        else:
            self._write_compressed(output)

    def _new_header(self) -> bytes:
        """Return the header with new fields at the ends of the lines that describe them."""
        new = [edit for edit in self.edits if edit.place is None]
        # Each new field has one number of 4 bytes for a point.
        words = {
            b"FIELDS": [str(edit.column.name) for edit in new],
            b"SIZE": ["4"] * len(new),
            b"TYPE": [{"f": "F", "i": "I", "u": "U"}[edit.kind[1]] for edit in new],
            b"COUNT": ["1"] * len(new),
        }
        words[b"COLUMNS"] = words[b"FIELDS"]
        lines = []
        for line in self.header.splitlines(keepends=True):
            first = line.split()[:1]
            if new and first and (added := words.get(first[0].upper())):
                # A comment may follow.
                body = re.split(rb"[ \t]*(?:#|\r|\n|\Z)", line)[0]
                line = body + b" " + " ".join(added).encode() + line[len(body) :]
            lines.append(line)
        return b"".join(lines)

    def _kept(self, count: int) -> np.ndarray:
        """Return which points `read_point_cloud` keeps: those measured, of which there are `count` labels."""
        keys = [self.names[name] for name in fields_of(self.names)["points"]]
        self.file.seek(self.start)
        body = self.file.read()
        if self.kind == "ascii":
            # A field may have several numbers, each a column of the text.
            sizes = [prod(self.row[key].shape) for key in self.row.names or ()]
            starts = np.cumsum([0, *sizes])
            table = numbers(normalized_lines(body), columns=sum(sizes))
            columns = [table[:, starts[int(key[1:])]] for key in keys]
        elif self.kind == "binary":
            rows = np.frombuffer(body, self.row, self.count)
            # A field is (points, numbers of the field).
            columns = [rows[key][:, 0] for key in keys]
        else:
            data = self._decompressed(body)
            fields = self._fields()
            # Compressed files store one field after the other.
            columns = [
                np.frombuffer(data, self.row[key].base, self.count, self.count * fields[key][1]) for key in keys
            ]
        return read_rows(columns, count)

    def _decompressed(self, body: bytes) -> bytearray:
        # The sizes of the packed and of the plain bytes come first, 4 bytes each.
        return pcd.decompress(body[8 : 8 + int.from_bytes(body[:4], "little")], self.count * self.row.itemsize)

    def _fields(self) -> dict[str, Any]:
        """Return the fields of a row with their places."""
        return {str(name): place for name, place in (self.row.fields or {}).items()}

    def _write_rows(self, output: BinaryIO) -> None:
        size = self.row.itemsize
        fields = self._fields()
        added = sum(4 for edit in self.edits if edit.place is None)
        for first in range(0, self.count, _BLOCK):
            count = min(_BLOCK, self.count - first)
            data = self.file.read(count * size)
            rows = np.zeros((count, size + added), np.uint8)
            rows[:, :size] = np.frombuffer(data, np.uint8).reshape(count, size)
            at = size
            for edit in self.edits:
                answered, written = _bytes(edit, first, first + count)
                place = at if edit.place is None else fields[f"f{edit.place}"][1]
                rows[answered, place : place + written.shape[1]] = written[answered]
                at += 4 if edit.place is None else 0
            output.write(rows.data)
        # Whatever follows the declared points stays.
        while piece := self.file.read(1 << 22):
            output.write(piece)

    def _write_compressed(self, output: BinaryIO) -> None:
        """Write what was compressed as it was, and new fields after it; a changed field makes it all plain runs."""
        body = self.file.read()
        size = int.from_bytes(body[:4], "little")
        packed = body[8 : 8 + size]
        plain = self.count * self.row.itemsize
        changed = [edit for edit in self.edits if edit.place is not None]
        if changed:
            # Later bytes may refer back to the changed ones.
            data = self._decompressed(body)
            fields = self._fields()
            for edit in changed:
                answered, written = _bytes(edit, 0, self.count)
                start = self.count * fields[f"f{edit.place}"][1]
                old = np.frombuffer(data, np.uint8)[start : start + written.size].reshape(written.shape).copy()
                old[answered] = written[answered]
                data[start : start + written.size] = old.tobytes()
            packed = _runs(bytes(data))
        for edit in self.edits:
            if edit.place is None:
                # Runs of plain bytes may follow packed ones, so that new fields need no compressor.
                new = _bytes(edit, 0, self.count)[1].tobytes()
                packed += _runs(new)
                plain += len(new)
        output.write(len(packed).to_bytes(4, "little") + plain.to_bytes(4, "little") + packed + body[8 + size :])

    def _write_text(self, output: BinaryIO) -> None:
        sizes = [prod(self.row[key].shape) for key in self.row.names or ()]
        starts = np.cumsum([0, *sizes]).tolist()
        number = 0
        texts: list[list[bytes]] = []
        for line in self.file:
            # What follows the numbers: blanks, a comment, the end of the line
            body = line.split(b"#")[0].rstrip()
            rest = line[len(body) :]
            if body and number < self.count:
                if number % _BLOCK == 0:
                    stop = min(number + _BLOCK, self.count)
                    texts = [number_texts(edit.column, number, stop, is_new=edit.place is None) for edit in self.edits]
                spans = [match.span() for match in _TOKEN.finditer(body)]
                added = []
                changed = []
                for edit, text in zip(self.edits, texts, strict=True):
                    if edit.place is None:
                        added.append(text[number % _BLOCK])
                    elif text[number % _BLOCK]:
                        changed.append((spans[starts[edit.place]], text[number % _BLOCK]))
                # From right to left, so that the places of the others stay true
                for (begin, end), text in sorted(changed, reverse=True):
                    body = body[:begin] + text + body[end:]
                line = b" ".join([body, *added]) + rest
                number += 1
            output.write(line)
        if number < self.count:
            raise PointCloudError(f"{number} points; the header declares {self.count}, so the file may be cut off")


def _bytes(edit: _Edit, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows are written, and the bytes of each row's number, (rows, bytes)."""
    values = edit.column.filled(first, stop, edit.kind)
    written = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    # A field that was there keeps what it says of points without an answer.
    answered = edit.column.block(first, stop)[1] if edit.place is not None else np.ones(len(values), bool)
    return answered, written


def _runs(data: bytes) -> bytes:
    """Write bytes as plain runs of LZF: each is its length minus one, and the bytes."""
    raw = np.frombuffer(data, np.uint8)
    whole = len(raw) // _RUN
    runs = np.empty((whole, _RUN + 1), np.uint8)
    runs[:, 0] = _RUN - 1
    runs[:, 1:] = raw[: whole * _RUN].reshape(whole, _RUN)
    # A shorter run; no run is empty, as the length is stored minus one.
    rest = raw[whole * _RUN :].tobytes()
    return runs.tobytes() + (bytes([len(rest) - 1]) + rest if rest else b"")
