"""Labeled copies of PLY: a property for the class of each vertex, and of each face; all else by bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from hf_any3d.data.files import ply
from hf_any3d.data.files.column_names import fields_of, plain_name
from hf_any3d.data.files.labels.columns import (
    NO_LABEL,
    Column,
    check_field,
    check_once,
    check_word,
    number_texts,
    read_rows,
)
from hf_any3d.data.files.source import tell_left_out
from hf_any3d.data.files.splats import LEAST_OPACITY, are_splats, splats_of

_NAMES = {"<i4": "int", "<u4": "uint", "<f4": "float"}
# CloudCompare 2.11 to 2.13 shows vertices' properties of other names only if it is asked to in its window.
_CLASS, _CLASS_OF_FACES = "scalar_Classification", "label"
_HEADER_BYTES, _BLOCK = 1 << 20, 1 << 18
_TOKEN = re.compile(rb"[^\s,;]+")


@dataclass
class _Edit:
    """A property that is written: its place among those of its element, or None for one after the last."""

    column: Column
    place: int | None
    kind: str


def copy_of(
    file: BinaryIO, name: str, columns: list[Column], faces: Column | None, file_type: str, target: str
) -> PlyCopy:
    """Return the copy of a file, whose format stays."""
    del file_type
    return PlyCopy(file, name, columns, faces, target)


class PlyCopy:
    """A labeled copy of a PLY file, whose header is checked before anything is written."""

    def __init__(self, file: BinaryIO, name: str, columns: list[Column], faces: Column | None, target: str):
        self.file = file
        self.name = name
        self.target = target
        file.seek(0)
        start = file.read(_HEADER_BYTES)
        self.order, self.elements, self.start, _ = ply.read_header(start)
        self.header = start[: self.start]
        self.edits: dict[int, list[_Edit]] = {}
        self.vertex = ply.element_of_points(self.elements)
        self.edits[self.vertex] = [self._edit(self.vertex, column) for column in columns]
        self.face = None if faces is None else self._element("face")
        if faces is not None and self.face is not None:
            self.edits[self.face] = [self._edit(self.face, faces)]

    def _element(self, name: str) -> int | None:
        return next((place for place, element in enumerate(self.elements) if element.name == name), None)

    def _edit(self, element: int, column: Column) -> _Edit:
        """Find the property of a column, after checking that it takes it, or make one."""
        properties = self.elements[element].properties
        names = [name for name, _, _ in properties]
        # What the reader takes for labels is replaced; a list cannot be it.
        scalars = [name for name, _, length in properties if not length]
        name = column.name
        if name is None:
            new = _CLASS_OF_FACES if self.elements[element].name == "face" else _CLASS
            name = (fields_of(scalars).get("labels") or [new])[0]
        elif column.is_class:
            kinds = {each: kind for each, kind, length in properties if not length}
            check_field(name, scalars, has_decimals=kinds.get(name.lower(), "i")[0] == "f")
        else:
            # Other programs write it without the prefix.
            new = f"scalar_{name[:1].upper()}{name[1:]}"
            name = next((each for each in scalars if plain_name(each) == name), new)
        check_once(name.lower(), names)
        named = replace(column, name=check_word(name))
        if name.lower() not in names:
            return _Edit(named, None, column.kind)
        place = names.index(name.lower())
        kind, length = properties[place][1:]
        named.check_fits(kind, "property", is_plain=not length)
        return _Edit(named, place, kind)

    def write(self, output: BinaryIO) -> None:
        """Write the copy."""
        self._fit_columns()
        output.write(self._new_header())
        self.file.seek(self.start)
        # ASCII has no byte order.
        if not self.order:
            self._write_text(output)
            return
        file: Any = self.file
        # All that follows the last changed element is copied as it is, whatever its layout.
        last = max(self.edits)
        for place, element in enumerate(self.elements[: last + 1]):
            edits = self.edits.get(place, [])
            # Rows with lists have any length: the rest of the file is read to find where they end.
            if element.has_lists:
                data = file.read()
                rows, size = self._list_rows(data, element, edits)
                output.write(rows)
                file = _Rest(data, size)
            else:
                for block in self._fixed_rows(file, element, edits):
                    output.write(block)
        while piece := file.read(1 << 22):
            output.write(piece)

    def _fit_columns(self) -> None:
        """Match labels with vertices, of which the reader may have left some out, and with faces."""
        element = self.elements[self.vertex]
        kept = None
        edits = self.edits[self.vertex]
        # Values of the file are needed only to tell which vertices the reader left out.
        if any(len(edit.column.values) != element.count for edit in edits):  # pyright: ignore[reportArgumentType]
            kept = self._kept(len(edits[0].column.values))  # pyright: ignore[reportArgumentType]
        for edit in edits:
            edit.column = edit.column.of_file(element.count, kept)
        if self.face is not None and not self._fit_faces(kept):
            del self.edits[self.face]
            why = "triangles were left out, or strips have no place for them"
            tell_left_out(self.target, ["labels of faces"], why)

    def _fit_faces(self, kept: np.ndarray | None) -> bool:
        """Give each polygon the label of its first triangle; return False if the triangles do not match them."""
        assert self.face is not None
        # With vertices left out, so are triangles, and labels of faces can no longer be matched.
        polygons = self._polygons(self.face, self._values()[self.face]) if kept is None else None
        if polygons is None:
            return False
        # A polygon of n corners is read as n - 2 triangles.
        triangles = np.maximum(polygons[0].astype(np.int64) - 2, 0)
        edit = self.edits[self.face][0]
        assert edit.column.values is not None
        if triangles.sum() != len(edit.column.values):
            return False
        # The place of each polygon's first triangle among all triangles; some polygons have none
        first = np.where(triangles > 0, np.cumsum(triangles) - triangles, NO_LABEL)
        edit.column = replace(edit.column, rows=first)
        return True

    def _polygons(self, place: int, values: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return lengths and corners of the faces or strips of an element; None if it has none."""
        polygons = values.get(ply.corners_of(self.elements[place].name, self.elements))
        return polygons if isinstance(polygons, tuple) and len(polygons[0]) else None

    def _values(self) -> list[dict[str, Any]]:
        """Return the values of all elements, as the reader does."""
        self.file.seek(0)
        data = self.file.read()
        if self.order:
            return ply.read_binary(data, self.start, self.elements, self.order)[0]
        return ply.read_text(data, self.start, self.elements)[0]

    def _kept(self, count: int) -> np.ndarray:
        """Return which vertices `read_point_cloud` keeps, of which there are `count` labels: see `read_rows`.

        Splats are those that can be seen.
        """
        values = self._values()
        vertices, _ = ply.points_of(self.elements, values)
        # An empty element of faces, or faces without corners, leave a cloud of points.
        is_mesh = False
        for place, block in enumerate(values):
            if self.elements[place].name in ("face", "tristrips") and self._polygons(place, block) is not None:
                is_mesh = True
                break
        is_point = None
        if not is_mesh and are_splats(vertices):
            opacities, is_splat = splats_of(vertices)
            is_point = is_splat & (opacities >= LEAST_OPACITY)
        columns = [vertices[name] for name in fields_of(vertices)["points"]]
        return read_rows(columns, count, is_point, is_mesh=is_mesh)

    def _new_header(self) -> bytes:
        """Return the header with a line for each new property, after the last one of its element."""
        # Lines with whichever line ends they have
        lines = re.findall(rb"[^\r\n]*(?:\r\n|\r|\n|\Z)", self.header)
        ends: dict[int, int] = {}
        element = -1
        for number, line in enumerate(lines):
            word = line.split()[:1]
            element += word == [b"element"]
            if word in ([b"element"], [b"property"]):
                ends[element] = number
        added: dict[int, list[bytes]] = {}
        for place, edits in self.edits.items():
            # A new line ends as the first one does.
            line_end = lines[0][len(lines[0].rstrip(b"\r\n")) :]
            new = []
            for edit in edits:
                if edit.place is None:
                    new.append(f"property {_NAMES[edit.kind]} {edit.column.name}".encode() + line_end)
            added[ends[place]] = new
        return b"".join(line + b"".join(added.get(number, [])) for number, line in enumerate(lines))

    def _fixed_rows(self, file: Any, element: ply.Element, edits: list[_Edit]) -> Iterator[bytes]:
        """Yield rows of one size, some hundred thousand at a time."""
        row = element.row(self.order, [])
        fields: dict[str, Any] = {str(name): value for name, value in (row.fields or {}).items()}
        # Bytes before each property in a row; new properties come after the old row.
        offsets = [fields[f"value{place}"][1] for place in range(len(element.properties))]
        # Types without their own byte order, in that of the file
        new = [np.dtype(self.order + edit.kind[-2:]) for edit in edits if edit.place is None]
        for first in range(0, element.count, _BLOCK):
            count = min(_BLOCK, element.count - first)
            data = file.read(count * row.itemsize)
            if not edits:
                yield data
                continue
            rows = np.zeros((count, row.itemsize + sum(kind.itemsize for kind in new)), np.uint8)
            rows[:, : row.itemsize] = np.frombuffer(data, np.uint8).reshape(count, row.itemsize)
            at = row.itemsize
            for edit in edits:
                place = at if edit.place is None else offsets[edit.place]
                answered, written = self._bytes(edit, first, first + count)
                rows[answered, place : place + written.shape[1]] = written[answered]
                at += written.shape[1] if edit.place is None else 0
            yield rows.tobytes()

    def _bytes(self, edit: _Edit, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows are written, and the bytes of each row's number, (rows, bytes)."""
        values = edit.column.filled(first, stop, self.order + edit.kind[-2:])
        written = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
        # A property that was there keeps what it says of points without an answer.
        answered = edit.column.block(first, stop)[1] if edit.place is not None else np.ones(len(values), bool)
        return answered, written

    def _list_rows(self, data: bytes, element: ply.Element, edits: list[_Edit]) -> tuple[bytes, int]:
        """Return the rows of an element with lists, and how many bytes they had."""
        rows = ply.RaggedRows(element, self.order)
        # Places of each list in all rows, and where the last row ends
        places, stop = rows.walk(ply.lengths_in(data, element, self.order), 0, len(data), element.count)
        if not edits or not element.count:
            return data[:stop], stop
        raw = np.frombuffer(data, np.uint8)[:stop].copy()
        ends = []  # of each list in each row
        for number, (at, width, item) in enumerate(zip(places, rows.widths, rows.items, strict=True)):
            ends.append(at + width + item * rows.lengths(data, number, at).astype(np.int64))
        row_ends = ends[-1] + rows.tail
        row_starts = np.append(0, row_ends[:-1])
        # A scalar is a fixed distance after the list before it, or else after the start of its row.
        scalars = {name: (before, distance) for name, _, before, distance in rows.scalars}
        pieces = []
        for edit in edits:
            answered, written = self._bytes(edit, 0, element.count)
            if edit.place is None:
                pieces.append(written)
                continue
            before, distance = scalars[element.properties[edit.place][0]]
            at = (ends[before - 1] if before else row_starts) + distance
            # (answered rows, bytes of a number), since each row has its number in another place
            raw[at[answered, None] + np.arange(written.shape[1])] = written[answered]
        if not pieces:
            return raw.tobytes(), stop
        new = np.concatenate(pieces, axis=1)  # (rows, new bytes)
        width = new.shape[1]
        # Each row's new bytes follow its old ones, moved by those of the rows before.
        at = (row_ends + width * np.arange(element.count))[:, None] + np.arange(width)
        out = np.empty(stop + new.size, np.uint8)
        is_old = np.ones(len(out), bool)
        is_old[at] = False
        out[is_old] = raw
        out[at] = new
        return out.tobytes(), stop

    def _write_text(self, output: BinaryIO) -> None:
        """Write rows as text: a row is a line, and what stands between numbers stays.

        Rows that are no lines in the file are lines of the copy.
        """
        text = self.file.read()
        # Of files with the line ends of old Macs the whole is one line.
        pattern = rb"[^\n]*\n|[^\n]+" if b"\n" in self.header else rb"[^\r]*\r|[^\r]+"
        lines = (match[0] for match in re.finditer(pattern, text))
        if not self._has_lines_of_rows(match[0] for match in re.finditer(pattern, text)):
            lines = self._rows_of_numbers(text)
        for place, element in enumerate(self.elements):
            edits = self.edits.get(place, [])
            number = 0
            texts: list[list[bytes]] = []
            while element.properties and number < element.count:
                line = next(lines)
                # Blank lines between rows stay, and are no rows.
                if line.strip():
                    # Texts are made for a block of rows at once, and only those are in memory.
                    if edits and number % _BLOCK == 0:
                        stop = min(number + _BLOCK, element.count)
                        texts = [number_texts(edit.column, number, stop, is_new=edit.place is None) for edit in edits]
                    if edits:
                        line = _new_line(line, element, edits, [text[number % _BLOCK] for text in texts])
                    number += 1
                output.write(line)
        for line in lines:
            output.write(line)

    def _has_lines_of_rows(self, lines: Iterator[bytes]) -> bool:
        """Return whether each row is a line of its own."""
        filled = (line for line in lines if line.strip())
        for element in self.elements:
            for _ in range(element.count if element.properties else 0):
                words = _TOKEN.findall(next(filled, b""))
                if _size_of_row(words, 0, element) != len(words):
                    return False
        return True

    def _rows_of_numbers(self, text: bytes) -> Iterator[bytes]:
        """Yield each row as a line."""
        words = _TOKEN.findall(text)
        at = 0
        for element in self.elements:
            for _ in range(element.count if element.properties else 0):
                size = _size_of_row(words, at, element)
                yield b" ".join(words[at : at + size]) + b"\n"
                at += size


def _size_of_row(words: list[bytes], start: int, element: ply.Element) -> int:
    """Return how many words from one on are a row of an element, more than there are if it ends within a list."""
    at = start
    for _, _, length in element.properties:
        if length:
            at += int(float(words[at])) if at < len(words) else 0
        at += 1
    return at - start


class _Rest:
    """The rest of data that was read."""

    def __init__(self, data: bytes, at: int):
        self.data = data
        self.at = at

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, all without a size."""
        stop = len(self.data) if size < 0 else self.at + size
        piece = self.data[self.at : stop]
        self.at += len(piece)
        return piece


def _new_line(line: bytes, element: ply.Element, edits: list[_Edit], texts: list[bytes]) -> bytes:
    """Return a line with its new numbers; an empty text keeps the number that there is."""
    body = line.rstrip()
    rest = line[len(body) :]
    spans = [match.span() for match in _TOKEN.finditer(body)]
    # Where each property begins, which depends on the lengths of lists before it.
    starts = []
    at = 0
    for _, _, length in element.properties:
        starts.append(at)
        at += 1 + (int(float(body[slice(*spans[at])])) if length else 0)
    changed = []
    added = []
    for edit, text in zip(edits, texts, strict=True):
        if edit.place is None:
            added.append(text)
        elif text:
            changed.append((spans[starts[edit.place]], text))
    # From right to left, so that the places of the others stay true
    for (begin, end), text in sorted(changed, reverse=True):
        body = body[:begin] + text + body[end:]
    return b" ".join([body, *added]) + rest
