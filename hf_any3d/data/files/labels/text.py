"""Labeled copies of rows of numbers as text: .csv, .txt and .xyz, with their header, comments and separators."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from hf_any3d.data.files import text
from hf_any3d.data.files.attributes import by_number, fields_of
from hf_any3d.data.files.labels.columns import Column, check_word, finite_rows, number_texts
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import normalized_lines, numbers, unix_lines

_SAMPLE, _BLOCK = 1 << 20, 1 << 16
_COMMENT = re.compile(rb"\s*(?:#|//)")
# Without names, the number of columns says what they are; with one more of these, the last is read as labels.
_CAN_GROW = (3, 6)
_MOST_CLASSES = 64


@dataclass
class _Edit:
    """A column that is written: its place, or None for one after the last."""

    column: Column
    place: int | None


def copy_of(
    file: BinaryIO, name: str, columns: list[Column], faces: Column | None, file_type: str, target: str
) -> TextCopy:
    """Return the copy of a file, which has no faces."""
    del faces, target
    return TextCopy(file, name, columns, file_type)


class TextCopy:
    """A labeled copy of rows of text, whose first megabyte is looked at before anything is written."""

    def __init__(self, file: BinaryIO, name: str, columns: list[Column], file_type: str):
        self.file = file
        file.seek(0)
        sample = file.read(_SAMPLE)
        # A line that the end of the sample cuts would look like a row with fewer columns.
        if len(sample) == _SAMPLE:
            sample = sample[: sample.rfind(b"\n") + 1]
        plain = unix_lines(sample)
        titles, self.declared, size, self.head_lines = text.read_header(plain)
        table = self._table(plain[size:])
        self.width = table.shape[1]
        self.names = text.column_names(titles, table)
        self.title = self._line_of_names(titles)
        first = next(line for line in plain[size:].split(b"\n") if self._is_row(line))
        # Where commas are decimal ones, they do not separate numbers.
        self.has_decimal_commas = b"," in first and len(re.findall(rb"[^\s,;]+", _body(first))) != self.width
        self.token = re.compile(rb"[^\s;]+" if self.has_decimal_commas else rb"[^\s,;]+")
        # New columns are separated in the way of the first two numbers.
        spans = [match.span() for match in self.token.finditer(_body(first))]
        self.separator = first[spans[0][1] : spans[1][0]]
        self.seen: set[bytes] = set()
        self.edits = [self._edit(column, table, name, file_type) for column in columns]
        if self.names is None and len(self.edits) > 1:
            raise PointCloudError(
                "has no names of columns, so that nothing could tell scores from labels; put a line such as 'x y z' "
                "before the first row"
            )

    def _table(self, rows: bytes) -> np.ndarray:
        # Neither quotes nor comments are part of the numbers.
        rows = re.sub(rb"//[^\n]*", b"", normalized_lines(rows.replace(b'"', b"")))
        return numbers(rows if self.declared is None else text.COUNT_LINE.sub(b"", rows))

    def _line_of_names(self, titles: list[text.Title]) -> int | None:
        """Return the number, from 0, of the line that names the columns."""
        if self.names is None:
            return None
        named = [name for name in self.names if name]
        for number, line, _ in reversed(titles):
            if any([name for name in reading if name] == named for reading in text.names_in_line(line)):
                return number - 1
        return None

    def _edit(self, column: Column, table: np.ndarray, name: str, file_type: str) -> _Edit:
        if self.names is None:
            return self._unnamed(column, table, name, file_type)
        wanted = column.name
        if wanted is None:
            wanted = (fields_of(self.names).get("labels") or ["label"])[0]
        place = self.names.index(wanted) if wanted in self.names else None
        # Only a new name has to be a plain word; the file's own may have any form.
        return _Edit(replace(column, name=wanted if place is not None else check_word(wanted)), place)

    def _unnamed(self, column: Column, table: np.ndarray, name: str, file_type: str) -> _Edit:
        """Find the column of labels as the reader does, or one more if that would be read as labels."""
        if column.name is not None:
            raise PointCloudError(f"has no names of columns for field {column.name!r}; put a line of names first")
        found = by_number(np.ascontiguousarray(table), _Quiet(name, b"", file_type))
        if found.get("labels") is not None:
            return _Edit(column, self.width - 1)
        if self.width not in _CAN_GROW:
            raise PointCloudError(
                f"has {self.width} columns without names, and one more would not be read as labels; put a line of "
                "names, such as 'x y z intensity', before the first row"
            )
        return _Edit(column, None)

    def write(self, output: BinaryIO) -> None:
        """Write the copy, line by line."""
        # A first pass counts the rows, to see whether labels are of all points or of those that the reader keeps.
        count = sum(1 for _ in self._rows())
        if any(len(edit.column.values) != count for edit in self.edits):  # pyright: ignore[reportArgumentType]
            kept = self._kept()
            for edit in self.edits:
                edit.column = edit.column.of_file(count, kept)
        number = 0
        texts: list[list[bytes]] = []
        for place, line in enumerate(self._lines()):
            if place == self.title:
                line = self._new_title(line)
            elif place >= self.head_lines and self._is_row(line):
                # Texts are made for a block of rows at once, and only those are in memory.
                if number % _BLOCK == 0:
                    texts = [self._texts(edit, number, min(number + _BLOCK, count)) for edit in self.edits]
                line = self._new_row(line, [column[number % _BLOCK] for column in texts])
                number += 1
            output.write(line)

    def _lines(self) -> Iterator[bytes]:
        self.file.seek(0)
        if b"\n" in self.file.read(_SAMPLE):
            self.file.seek(0)
            yield from self.file
        else:  # of old Macs
            self.file.seek(0)
            yield from re.findall(rb"[^\r]*\r|[^\r]+", self.file.read())

    def _rows(self) -> Iterator[bytes]:
        for place, line in enumerate(self._lines()):
            if place >= self.head_lines and self._is_row(line):
                yield line

    def _is_row(self, line: bytes) -> bool:
        # The line with the number of points is a number, too, and no row.
        if self.declared is not None and text.COUNT_LINE.fullmatch(line.rstrip(b"\r\n")):
            return False
        return bool(line.strip()) and not _COMMENT.match(line)

    def _kept(self) -> np.ndarray:
        """Return which points `read_point_cloud` keeps."""
        table = self._table(unix_lines(b"".join(self._rows())))
        if self.names is None:
            return finite_rows(list(table[:, :3].T))
        names = fields_of(self.names)["points"]
        return finite_rows([table[:, self.names.index(name)] for name in names])

    def _texts(self, edit: _Edit, first: int, stop: int) -> list[bytes]:
        texts = number_texts(edit.column, first, stop, is_new=edit.place is None)
        # New numbers have the decimal sign of the file's own.
        return [value.replace(b".", b",") for value in texts] if self.has_decimal_commas else texts

    def _new_title(self, line: bytes) -> bytes:
        added = [str(edit.column.name).encode() for edit in self.edits if edit.place is None]
        body = line.rstrip()
        # Names may be separated otherwise than the numbers are.
        separator = next((mark for mark in (b",", b";", b"\t") if mark in body), b" ")
        return _joined(body, separator, added) + line[len(body) :]

    def _new_row(self, line: bytes, texts: list[bytes]) -> bytes:
        body = _body(line)
        rest = line[len(body) :]
        spans = [match.span() for match in self.token.finditer(body)]
        # Only the first megabyte was looked at before.
        if len(spans) != self.width:
            raise PointCloudError(f"a row has {len(spans)} columns; expected {self.width}")
        changed = []
        added = []
        for edit, new in zip(self.edits, texts, strict=True):
            if edit.place is None:
                added.append(new)
            elif new:
                changed.append((spans[edit.place], new))
        # From right to left, so that the places of the others stay true
        for (begin, end), new in sorted(changed, reverse=True):
            if self.names is None:
                self._check_class(body[begin:end])
            body = body[:begin] + new + body[end:]
        return _joined(body, self.separator, added) + rest

    def _check_class(self, old: bytes) -> None:
        """Check that what is replaced was a class: nothing names the column, and the first rows may mislead."""
        self.seen.add(old)
        if len(self.seen) > _MOST_CLASSES:
            raise PointCloudError(
                f"column {self.width} without a name looked like labels, but has more than {_MOST_CLASSES} different "
                "values; put a line of names before the first row"
            )


class _Quiet(Source):
    """Source without warnings, for a file whose warnings were given when it was read."""

    def warn(self, text: str) -> None:
        """Say nothing."""


def _body(line: bytes) -> bytes:
    """Return the numbers of a row, without a comment and blanks after them."""
    return re.split(rb"#|//", line)[0].rstrip()


def _joined(body: bytes, separator: bytes, added: list[bytes]) -> bytes:
    """Append columns to a line, which may end with a separator of its own."""
    for new in added:
        ends = separator.strip() and body.endswith(separator.strip())
        body = body + (b"" if ends else separator) + new
    return body
