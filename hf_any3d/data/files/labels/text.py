"""Labeled copies of rows of numbers as text: .csv, .txt and .xyz, with their header, comments and separators."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from hf_any3d.data.files import text
from hf_any3d.data.files.attributes import by_name, by_number
from hf_any3d.data.files.column_names import fields_of, plain_name
from hf_any3d.data.files.labels.columns import (
    Column,
    QuietSource,
    check_field,
    check_once,
    check_word,
    is_same,
    number_texts,
    read_rows,
    taken,
)
from hf_any3d.data.files.point_cloud import leave_out_invalid_points
from hf_any3d.data.files.source import PointCloudError
from hf_any3d.data.files.text_numbers import numbers, unix_lines

_SAMPLE, _BLOCK = 1 << 20, 1 << 16
_COMMENT_LINE = re.compile(rb"\s*(?:#|//|%)")
# Not within -1.#IND and #N/A, which stand for no number.
_COMMENT = re.compile(rb"(?<![.,])#(?!N/A)|//")
# A cell in quotes, one of other marks, or an empty one before or between delimiters.
_CELL = re.compile(rb'"[^"]*"|[^\s,;"]+|(?:(?<=[,;])|^)[ \t]*(?=[,;])')
_CELL_WITH_COMMA = re.compile(rb'"[^"]*"|[^\s;"]+|(?:(?<=;)|^)[ \t]*(?=;)')
# Names of a new column of labels: the first that is not there, as a column of words may be.
_NEW = ("Classification", "class", "label", "semantic")
# What columns that nothing names may be, by their number: see `attributes.by_number`.
_COLORS, _NORMALS, _LABEL = "red green blue", "nx ny nz", _NEW[0]
_NAMINGS = {
    1: ((_LABEL,), ()),
    3: ((_NORMALS,), (_COLORS,), ()),
    4: (
        (_NORMALS, _LABEL),
        (_COLORS, _LABEL),
        ("", "", "", _LABEL),
        ("intensity", _COLORS),
        (_COLORS, "alpha"),
        (_COLORS,),
        (),
    ),
    6: ((_NORMALS, _COLORS), (_COLORS, _NORMALS), (_NORMALS,), (_COLORS,), ("", "", "", _NORMALS), ()),
}


@dataclass
class _Edit:
    """A column that is written: its place, or None for one after the last."""

    column: Column
    place: int | None


def copy_of(
    file: BinaryIO, name: str, columns: list[Column], faces: Column | None, file_type: str, target: str
) -> TextCopy:
    """Return the copy of a file, which has no faces."""
    del name, faces, target
    return TextCopy(file, columns, file_type)


class TextCopy:
    """A labeled copy of rows of text, whose first megabyte is looked at before anything is written."""

    def __init__(self, file: BinaryIO, columns: list[Column], file_type: str):
        self.file = file
        self.columns = columns
        self.file_type = file_type
        file.seek(0)
        sample = file.read(_SAMPLE)
        # A line that the end of the sample cuts would look like a row with fewer columns.
        if len(sample) == _SAMPLE:
            sample = sample[: sample.rfind(b"\n") + 1]
        plain = text.with_hashes(unix_lines(sample))
        self.titles, self.declared, size, self.head_lines = text.read_header(plain)
        table, self.worded, has_words = self._table(plain[size:])
        if has_words and any(column.name is None for column in columns):
            raise PointCloudError(
                "the classes in the file are words, so numbers cannot be added to them; choose another column "
                "(field=NAME, --field NAME)"
            )
        self.width = table.shape[1]
        self.names = text.column_names(self.titles, table)
        first = next(line for line in plain[size:].split(b"\n") if self._is_row(line))
        self.delimiter = None
        # Words may have blanks, so that only the delimiter of the names tells where they end.
        if self.worded:
            header = next(title.text for title in reversed(self.titles) if not title.is_comment)
            self.delimiter = next((mark.encode() for mark in ",;\t" if mark in header), None)
        has_commas = b"," in re.sub(rb'"[^"]*"', b"", first)
        # Where commas are decimal ones, they do not separate numbers.
        self.has_decimal_commas = has_commas and self.delimiter != b"," and len(_cells(_CELL, first)) != self.width
        self.cell = _CELL_WITH_COMMA if self.has_decimal_commas else _CELL
        # New columns are separated in the way of the first two cells.
        spans = self._spans(_body(first))
        self.separator = first[spans[0][1] : spans[1][0]]
        # Where nothing names the columns, all rows are needed to tell what they are: they are looked at in `write`.
        self.edits: list[_Edit] = []
        self.title: int | None = None
        if self.names is not None:
            # The number, from 0, of the line that names the columns
            named = [name for name in self.names if name]
            for number, line, _ in reversed(self.titles):
                if any([name for name in reading if name] == named for reading in text.names_in_line(line)):
                    self.title = number - 1
                    break
            self.edits = [self._edit(column, table) for column in columns]
        for column in columns:
            if self.names is None and column.name is not None and column.is_class:
                check_field(check_word(column.name), ("x", "y", "z"))
        self.new_names: list[str] | None = None

    def _table(self, rows: bytes) -> tuple[np.ndarray, list[str], bool]:
        """Return the numbers of rows, as the reader does, the names of columns of words, and if classes are words."""
        rows, worded, words = text.cells_of(rows, self.titles, QuietSource("", b"", self.file_type))
        plain = text.plain_rows(rows, self.titles)
        table = numbers(plain if self.declared is None else text.COUNT_LINE.sub(b"", plain))
        return table, worded, words is not None

    def _spans(self, body: bytes) -> list[tuple[int, int]]:
        """Return where each cell of a row begins and ends."""
        if self.delimiter is None:
            spans = _cells(self.cell, body)
        else:
            # Cells are without the blanks around them; those in quotes may have delimiters, too.
            cell = re.compile(rb'[ ]*("(?:[^"]|"")*"|[^%b]*?)[ ]*(?:%b|\Z)' % (self.delimiter, self.delimiter))
            spans = [match.span(1) for match in cell.finditer(body)]
            # After the last cell there is an empty match at the end.
            spans = spans[:-1] if len(spans) > 1 else spans
        # A delimiter at the end stands before an empty cell, or after the last one.
        if len(spans) == self.width - 1 and body.endswith((b",", b";")):
            spans.append((len(body), len(body)))
        return spans[: self.width] if body.endswith((b",", b";")) else spans

    def _edit(self, column: Column, table: np.ndarray) -> _Edit:
        """Find the column that is written in a file that names its columns."""
        assert self.names is not None
        wanted = column.name
        if wanted is None:
            of_numbers = [name for name in self.names if name not in self.worded]
            plain = [plain_name(name) for name in self.names]
            new = next(name for name in _NEW if plain_name(name) not in plain)
            wanted = (fields_of(of_numbers).get("labels") or [new])[0]
        check_once(wanted, self.names)
        place = self.names.index(wanted) if wanted in self.names else None
        if column.is_new and place is not None:
            raise PointCloudError(taken("column", wanted))
        if column.name is not None and column.is_class:
            has_decimals = place is not None and bool((table[:, place] != np.floor(table[:, place])).any())
            check_field(wanted, self.names, has_decimals=has_decimals)
        # Only a new name has to be a plain word; the file's own may have any form.
        return _Edit(replace(column, name=wanted if place is not None else check_word(wanted)), place)

    def write(self, output: BinaryIO) -> None:
        """Write the copy, line by line."""
        # A first pass counts the rows, to see whether labels are of all points or of those that the reader keeps.
        count = sum(1 for _ in self._rows())
        if self.names is None:
            self._place_unnamed(count)
        elif any(len(edit.column.values) != count for edit in self.edits):  # pyright: ignore[reportArgumentType]
            kept = self._kept(len(self.edits[0].column.values))  # pyright: ignore[reportArgumentType]
            for edit in self.edits:
                edit.column = edit.column.of_file(count, kept)
        number = 0
        texts: list[list[bytes]] = []
        for place, line in enumerate(self._lines()):
            if self.new_names is not None and place == self.head_lines:
                assert self.new_names is not None
                line_end = line[len(line.rstrip(b"\r\n")) :] or b"\n"
                # Without a blank after it: CloudCompare 2.11 counts the words of this line, and drops rows with fewer.
                separator = self.separator if self.separator.strip() else b" "
                output.write(b"#" + separator.join(name.encode() for name in self.new_names) + line_end)
            if place == self.title:
                line = self._new_title(line)
            elif place >= self.head_lines and self._is_row(line):
                # Texts are made for a block of rows at once, and only those are in memory.
                if number % _BLOCK == 0:
                    stop = min(number + _BLOCK, count)
                    texts = [number_texts(edit.column, number, stop, is_new=edit.place is None) for edit in self.edits]
                    # New numbers have the decimal sign of the file's own.
                    if self.has_decimal_commas:
                        texts = [[value.replace(b".", b",") for value in column] for column in texts]
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
        return bool(line.strip()) and not _COMMENT_LINE.match(line)

    def _all_rows(self) -> np.ndarray:
        return self._table(unix_lines(b"".join(self._rows())))[0]

    def _kept(self, count: int) -> np.ndarray:
        """Return which points `read_point_cloud` keeps, of which there are `count` labels; see `read_rows`."""
        assert self.names is not None
        table = self._all_rows()
        names = fields_of(name for name in self.names if name not in self.worded)["points"]
        return read_rows([table[:, self.names.index(name)] for name in names], count)

    def _place_unnamed(self, count: int) -> None:
        """Find the column of labels as the reader does, and name the columns where it would not know the new ones."""
        table = self._all_rows()
        cloud = self._by_number(table)
        labels = self.columns[0].values
        assert labels is not None
        kept = read_rows(list(cloud["points"].T), len(labels))
        has_labels = cloud.get("labels") is not None
        for column in self.columns:
            of_file = column.of_file(count, kept)
            is_last = column.name is None and has_labels
            self.edits.append(_Edit(of_file, self.width - 1 if is_last else None))
        first, *others = self.edits
        if others or first.column.name is not None or not self._is_read_back(table, cloud, first):
            self.new_names = self._names_of(table, cloud)
            self.new_names += [edit.column.name or _LABEL for edit in self.edits if edit.place is None]

    def _by_number(self, table: np.ndarray) -> dict[str, Any]:
        # As the reader that leaves points out, since their labels decide nothing then.
        with leave_out_invalid_points(), np.errstate(all="ignore"):
            return by_number(np.ascontiguousarray(table), QuietSource("", b"", self.file_type))

    def _is_read_back(self, table: np.ndarray, cloud: dict[str, Any], edit: _Edit) -> bool:
        """Return whether the reader finds the labels of a copy without names of columns, and all else as before."""
        values, answered = edit.column.block(0, len(table))
        if edit.place is None:
            labels = np.where(answered, values, edit.column.fill)
            table = np.column_stack([table, labels])
        else:
            table = table.copy()
            table[answered, edit.place] = values[answered]
        try:
            return is_same(self._by_number(table), cloud | {"labels": table[:, -1]})
        except PointCloudError:
            return False

    def _names_of(self, table: np.ndarray, cloud: dict[str, Any]) -> list[str]:
        """Return names with which the reader takes the columns for what it took them for without."""
        numbered = cloud["points"] is not table and not np.array_equal(cloud["points"], table[:, :3], equal_nan=True)
        before = ["number", "x", "y", "z"] if numbered else ["x", "y", "z"]
        further = self.width - len(before)
        for naming in _NAMINGS.get(further, ((),)):
            if _LABEL in naming and cloud.get("labels") is None:
                continue
            words = [word for part in naming for word in (part.split() or [""])]
            names = before + words + [""] * (further - len(words))
            # Columns that are left out have names that mean nothing.
            names = [name or f"column_{place}" for place, name in enumerate(names, 1)]
            columns = {name: table[:, place] for place, name in enumerate(names)}
            with leave_out_invalid_points(), np.errstate(all="ignore"):
                named = by_name(columns, QuietSource("", b"", self.file_type))
            if is_same(named, cloud):
                return names
        raise AssertionError("columns without names are always what they are with neutral ones")

    def _new_title(self, line: bytes) -> bytes:
        added = [str(edit.column.name).encode() for edit in self.edits if edit.place is None]
        body = line.rstrip()
        # PDAL takes only names in quotes where the first one has them.
        if b'"' in body:
            added = [b'"%s"' % name for name in added]
        unquoted = re.sub(rb'"[^"]*"', b"", body)
        # Names may be separated otherwise than the numbers are.
        separator = next((mark for mark in (b",", b";", b"\t") if mark in unquoted), b" ")
        return _joined(body, separator, added) + line[len(body) :]

    def _new_row(self, line: bytes, texts: list[bytes]) -> bytes:
        body = _body(line)
        rest = line[len(body) :]
        spans = self._spans(body)
        # Only the first megabyte was looked at before.
        if len(spans) != self.width:
            raise PointCloudError(f"a row has {len(spans)} columns; expected {self.width}")
        changed = []
        added = []
        for edit, new in zip(self.edits, texts, strict=True):
            if edit.place is None:
                added.append(new)
            elif new:
                begin, end = spans[edit.place]
                changed.append((begin, end, b'"%s"' % new if body[begin:end].startswith(b'"') else new))
        # From right to left, so that the places of the others stay true
        for begin, end, new in sorted(changed, reverse=True):
            body = body[:begin] + new + body[end:]
        return _joined(body, self.separator, added) + rest


def _body(line: bytes) -> bytes:
    """Return the cells of a row, without a comment and blanks after them."""
    return _COMMENT.split(line)[0].rstrip()


def _cells(cell: re.Pattern[bytes], body: bytes) -> list[tuple[int, int]]:
    return [match.span() for match in cell.finditer(body)]


def _joined(body: bytes, separator: bytes, added: list[bytes]) -> bytes:
    """Append columns to a line, which may end with a separator of its own."""
    for new in added:
        ends = separator.strip() and body.endswith(separator.strip())
        body = body + (b"" if ends else separator) + new
    return body
