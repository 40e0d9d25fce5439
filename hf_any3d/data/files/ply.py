"""PLY, the Stanford polygon format: ASCII, or binary in either byte order."""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from hf_any3d.data.files.attributes import USABLE, by_name, unused_names
from hf_any3d.data.files.column_names import IN_DEGREES, fields_of, names_in_degrees, wanted_fields
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.polygons import polygon_triangles
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.splats import PACKED, are_splats, opaque_splats, splats_of, unpacked_splats
from hf_any3d.data.files.stated_units import unit_of_comments
from hf_any3d.data.files.text_numbers import (
    blocks_of_lines,
    count_of,
    integers,
    listed,
    normalized_lines,
    numbers,
    positive_number,
    shorten,
    unix_lines,
)

_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
_TYPES |= {"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"}
_TYPES |= {"int64": "i8", "uint64": "u8"}  # of meshio 5.3; no standard has them
_TYPES |= {"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"}
# Only ends of lines as in the first one: the next byte may be data that looks like another one.
_START = re.compile(rb"ply[ \t]*(\r\n|\n|\r)")
_MOST_LINES = 1 << 14  # of a header
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_OF_SPLATS = r"opacity|(f_rest|scale|rot)_\d+"
# Names of the list of a face's corners, which no standard fixes: vertex_indices, vertex_index, vertexIndexes, …
_CORNERS = re.compile(r"(vert(ex|ices|exes)?)?_?(ind(ex|ices|exes|exs|icies)|ids?)|vertices|verts|corners")
_UP_AXIS, _UNIT = re.compile(r"up_axis\s+([xyz])"), re.compile(r"meters_per_unit\s+(\S+)")
NOT_READ = (
    "comments, except up axis and unit; scales, rotations, opacities and spherical harmonics above degree 0 of "
    "Gaussian splats"
)
_CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "u8": "Q"}  # of the lengths of lists
# Field of a cloud -> the same of faces.
_OF_FACES = {"colors": "face_colors", "labels": "face_labels"}
# Of a scalar property its column; of a list property the lengths of its rows and all its values concatenated.
Values = dict[str, "np.ndarray | tuple[np.ndarray, np.ndarray]"]


def read(source: Source) -> PointCloudData:
    """Read the element of points, usually `vertex`, and, if there are any, `face` and `tristrips`.

    The points may be in an element of any name that has coordinates; see `element_of_points`. Text is read number by
    number if its lines are no rows.

    Properties: those of `attributes.by_name`; of faces red green blue, their label and the list of their corners,
    whatever its name. Others are left out with a warning. Polygons are cut into triangles inside of their outline,
    strips into triangles that all face to one side.

    Gaussian splats, also those that SuperSplat has compressed, become points of the color that they have from all
    sides, also where they have plain colors; those of an opacity below `splats.LEAST_OPACITY` are left out with a
    warning, as they are no points of a surface, and so are empty rows.
    """
    order, elements, start, comments = read_header(source.data)
    place = element_of_points(elements)
    source.check(points=elements[place].count)
    if order:
        blocks, rest = read_binary(source.data, start, elements, order)
    else:
        blocks, rest = read_text(source.data, start, elements)
    source.warn_of_rest(rest)
    vertices, lists = points_of(elements, blocks)
    values: dict[str, Values] = {}
    for number, element in enumerate(elements):
        # Of several elements with one name the first counts.
        if number != place and element.name != elements[place].name:
            values.setdefault(element.name, blocks[number])
    if is_packed(elements[place]):
        for name in ("chunk", "sh"):
            values.pop(name, None)
    points = [vertices[axis] for axis in fields_of(vertices)["points"]]
    names_of_faces: list[str] = []
    for element in elements:
        if element.name == "face":
            names_of_faces += element.names
    source.note_columns(names_of_faces)
    faces = _faces(values.pop("face", {}), corners_of("face", elements), points, source)
    source.note_columns(elements[place].names)
    strips = values.get("tristrips", {}).get(corners_of("tristrips", elements))
    if isinstance(strips, tuple) and len(strips[0]):
        del values["tristrips"]
        triangles = _strip_triangles(*strips, source)
        faces["faces"] = np.concatenate([faces["faces"], triangles]) if faces else triangles
        if faces.pop("face_labels", None) is not None:
            source.leave_out(["labels of faces"], "strips have none")
    has_splats = are_splats(vertices)
    # Faces name vertices by their numbers, so of a mesh all stay.
    if has_splats and not faces:
        kept = opaque_splats(*splats_of(vertices), source)
        vertices = {name: values[kept] for name, values in vertices.items()}
    cloud = by_name(vertices, source, _OF_SPLATS if has_splats else "")
    filled = [element.name for element in elements if element.count and element.name in values]
    source.leave_out(lists)
    with_points = {element.name for element in elements if "points" in fields_of(element.scalars)}
    others = [f"element {name}" for name in filled if name not in with_points]
    source.leave_out(others)
    source.leave_out(
        (f"element {name}" for name in filled if name in with_points),
        f"points are those of element {elements[place].name}",
    )
    # As MeshLab, Agisoft and others name them.
    matches = [re.fullmatch(r"texture_?(?:file)?\s+(\S.*)", line, re.IGNORECASE) for line in comments]
    textures = [match[1] for match in matches if match]
    source.leave_out((f"texture {shorten(name)}" for name in textures), "textures are not used")
    # `write_point_cloud` stores up axis and unit in comments.
    frame: dict[str, Any] = dict(unit_of_comments(comments, source))
    for line in comments:
        match = _UP_AXIS.fullmatch(line)
        if match:
            frame["up_axis"] = match[1]
        elif (match := _UNIT.fullmatch(line)) and (unit := positive_number(match[1])) is not None:
            frame["meters_per_unit"] = unit
    return PointCloudData(**(cloud | faces | frame))


def element_of_points(elements: list[Element]) -> int:
    """Return the place of the element that has the points: `vertex`, or else the first one that has coordinates.

    Without a `vertex` that has them, elements without rows count only if no other has coordinates.

    Raises:
        PointCloudError: No element has coordinates.
    """
    having = []
    for place, element in enumerate(elements):
        if is_packed(element) or "points" in fields_of(element.scalars):
            having.append(place)
    if not having:
        vertex = next((element for element in elements if element.name == "vertex"), Element("vertex", 0))
        degrees = names_in_degrees(vertex.scalars)
        if degrees:
            raise PointCloudError(f"properties {' and '.join(degrees)} {IN_DEGREES}")
        raise PointCloudError(
            f"no element has the properties x, y, z; found {listed(vertex.scalars)} of {vertex.name}, and elements "
            f"{listed(element.name for element in elements)}"
        )
    return min(having, key=lambda place: (elements[place].name != "vertex", not elements[place].count, place))


def is_packed(element: Element) -> bool:
    """Return whether the rows of an element are splats as SuperSplat compresses them."""
    return {*element.scalars} >= {*PACKED}


def points_of(elements: list[Element], blocks: list[Values]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the properties of points, (points,) each, and the names of their lists, of the values of all elements."""
    place = element_of_points(elements)
    vertices, lists = _split(blocks[place])
    if is_packed(elements[place]):
        chunks = next((block for element, block in zip(elements, blocks, strict=True) if element.name == "chunk"), {})
        vertices = unpacked_splats(vertices, _split(chunks)[0])
    return vertices, lists


def read_text(data: bytes, start: int, elements: list[Element]) -> tuple[list[Values], bytes]:
    """Return the values of each element in text, from byte `start` on, and the lines after them.

    A row is a line in nearly all files. In others, a row goes on in the next line, or several share a line, as
    readers that go by numbers take them.
    """
    text = normalized_lines(data[start:].rstrip(b"\0 \t\r\n"))
    try:
        return _by_lines(data, start, text, elements)
    except PointCloudError:
        blocks = _by_numbers(text, elements)
        if blocks is None:
            raise
        return blocks, b""


def _by_lines(data: bytes, start: int, text: bytes, elements: list[Element]) -> tuple[list[Values], bytes]:
    # An element without properties has no lines.
    filled = [element for element in elements if element.properties]
    *rows, rest = blocks_of_lines(text, [element.count for element in filled])
    block_of = iter(rows)
    try:
        blocks = [_ascii_rows(next(block_of), element) if element.properties else {} for element in elements]
    except PointCloudError as error:
        first_line = 1 + unix_lines(data[:start]).count(b"\n")
        raise _wrong_line(text, first_line, filled) or error from None
    return blocks, rest


def _by_numbers(text: bytes, elements: list[Element]) -> list[Values] | None:
    """Return the values of each element whatever the lines are, or None if these numbers are no such rows."""
    lines = sum(1 for line in text.split(b"\n") if line.strip())
    # Of as many lines as rows, one that is no row is damaged.
    if lines == sum(element.count for element in elements if element.properties):
        return None
    blocks: list[Values] = []
    at = 0
    try:
        flat = numbers(text.replace(b"\n", b" ")).reshape(-1)
        for element in elements:
            values, at = _rows_of_numbers(flat, at, element)
            blocks.append(values)
    except PointCloudError:
        return None
    # A number too many or too few would be one of the next row.
    return blocks if at == len(flat) else None


def _rows_of_numbers(flat: np.ndarray, start: int, element: Element) -> tuple[Values, int]:
    """Return the values of the properties of an element, and where its numbers end."""
    if not element.has_lists:
        stop = start + element.count * len(element.properties)
        if stop > len(flat):
            raise PointCloudError(f"ends within element {shorten(element.name)}; the file may be cut off")
        table = flat[start:stop].reshape(element.count, len(element.properties))
        return {name: _typed(table[:, i], kind) for i, (name, kind, _) in enumerate(element.properties)}, stop
    rows = RaggedRows(element, "")
    view = flat.data
    places, stop = rows.walk([lambda at: int(view[at])] * len(rows.gaps), start, len(flat), element.count)
    lengths = [integers(flat[places_of_list], "a list has length") for places_of_list in places]
    return rows.values(flat, start, stop, places, lengths), stop


def _split(values: Values) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the properties with one value for each row, and the names of lists."""
    scalars = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    return scalars, [name for name in values if name not in scalars]


def corners_of(element: str, elements: list[Element]) -> str:
    """Return the list of corners of faces or strips: the one with a usual name, else the only one of whole numbers."""
    # Without the element there are no lists to choose from.
    properties = next((each.properties for each in elements if each.name == element), [])
    lists = {name: kind for name, kind, length in properties if length}
    for name in ("vertex_indices", "vertex_index", *filter(_CORNERS.fullmatch, lists)):
        if name in lists:
            return name
    whole = [name for name, kind in lists.items() if kind[0] in "iu"]
    return whole[0] if len(whole) == 1 else ""


def _faces(properties: Values, corners: str, points: list[np.ndarray], source: Source) -> dict[str, Any]:
    scalars, lists = _split(properties)
    source.check_once([corners])
    polygons = properties.get(corners)
    has_faces = isinstance(polygons, tuple) and len(polygons[0]) > 0
    fields: dict[str, list[str]] = {}
    if has_faces:
        found = wanted_fields(scalars, source)
        fields = {name: names for name, names in found.items() if name in _OF_FACES}
    left = [*unused_names(scalars, fields), *(name for name in lists if name != corners)]
    source.leave_out(f"{name} of faces" for name in left)
    if not isinstance(polygons, tuple) or not has_faces:
        return {}
    faces, polygon = polygon_triangles(*polygons, points, source)
    kept: dict[str, Any] = {"faces": faces}
    for kind, names in fields.items():
        columns = [scalars[name] for name in names]
        # Triangles of a polygon have its color and its label.
        values = USABLE[kind](columns[0] if len(names) == 1 else np.stack(columns, axis=1), source)
        kept[_OF_FACES[kind]] = None if values is None else values[polygon]
    return kept


def _strip_triangles(counts: np.ndarray, corners: np.ndarray, source: Source) -> np.ndarray:
    """Cut strips, each a list or a part of one up to the number -1, into triangles (triangles, 3)."""
    source.check(faces=len(corners), decoded=24 * len(corners))
    corners = integers(corners, "a strip refers to point")
    place = np.arange(len(corners))
    # The place where the strip of each corner begins: after the last -1, or where its list does.
    begins = np.where(corners == -1, place + 1, 0)
    starts = counts.cumsum(dtype=np.int64) - counts
    begins[starts[counts > 0]] = starts[counts > 0] + (corners[starts[counts > 0]] == -1)
    begins = np.maximum.accumulate(begins)
    last = np.flatnonzero((place - begins >= 2) & (corners != -1))
    faces = np.stack([corners[last - 2], corners[last - 1], corners[last]], axis=1)
    # Every second triangle of a strip turns the other way.
    odd = (last - begins[last]) % 2 == 1
    faces[odd, :2] = faces[odd, 1::-1]
    # Strips repeat corners to go on elsewhere, which gives triangles without area.
    a, b, c = faces.T
    return faces[(a != b) & (b != c) & (c != a)]


def read_header(data: bytes) -> tuple[str, list[Element], int, list[str]]:
    """Return byte order, elements, where the data begin, and comments."""
    # Lines of the header but the first and the last
    begin = _START.match(data)
    # One line break of the kind that the first line has: the first byte of the data may look like another.
    line_end = rb"\r" if begin and begin[1] == b"\r" else rb"\r?\n"
    last = re.compile(rb"[\r\n]end_header[ \t]*(%s|\Z)" % line_end).search(data)
    if not begin:
        raise PointCloudError(f"not a PLY file: its first line is {shorten(data[:16])}; expected 'ply'")
    if not last:
        raise PointCloudError(
            "incomplete PLY header (no 'end_header' line); the file is probably cut off: copy or download it again"
        )
    lines = re.split(r"[\r\n]+", data[begin.end() : last.start()].decode("latin1"))
    if len(lines) > _MOST_LINES:
        raise PointCloudError(f"{len(lines)} lines in the header; expected at most {_MOST_LINES}")
    order = ""
    elements = []
    comments = []
    for line in lines:
        match line.split():
            case ["format", name, _] if name in _ORDERS:
                order = _ORDERS[name]
            case ["element", name, count]:
                elements.append(Element(name.lower(), count_of(count, f"the number of element {shorten(name)}")))
            case ["property", "list", length, kind, name] if (
                elements and _TYPES.get(length) in _CODES and kind in _TYPES
            ):
                elements[-1].properties.append((name.lower(), _TYPES[kind], _TYPES[length]))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].properties.append((name.lower(), _TYPES[kind], None))
            case ["comment" | "obj_info", *words]:
                comments.append(" ".join(words))
            case []:
                continue
            case _:
                raise PointCloudError(f"the header line {shorten(line)} is not allowed in PLY")
    return order, elements, last.end(), comments


@dataclass
class Element:
    """An element of the header, such as "vertex"."""

    name: str
    count: int  # of rows
    # Name, numpy type of the values, and numpy type of the length for a list, else None.
    properties: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of all properties, each as often as it is there."""
        return [name for name, _, _ in self.properties]

    @property
    def scalars(self) -> list[str]:
        """Names of the properties with one number in each row."""
        return [name for name, _, length in self.properties if not length]

    @property
    def has_lists(self) -> bool:
        """True if rows may differ in size."""
        return any(length for _, _, length in self.properties)

    def row(self, order: str, lengths: list[int]) -> np.dtype:
        """Return the numpy type of a row whose lists have these lengths."""
        fields = []
        sizes = iter(lengths)
        for i, (_, kind, length) in enumerate(self.properties):
            if length:
                fields.append((f"length{i}", order + length))
                fields.append((f"value{i}", order + kind, (next(sizes),)))
            else:
                fields.append((f"value{i}", order + kind))
        return np.dtype(fields)


def read_binary(data: bytes, start: int, elements: list[Element], order: str) -> tuple[list[Values], bytes]:
    """Return the values of each element, from byte `start` on, and the bytes after them; `order` is "<" or ">"."""
    blocks = []
    for element in elements:
        if not element.properties:
            blocks.append({})
            continue
        left = len(data) - start
        # A list may be empty, but has its length.
        smallest = element.row(order, [0] * len(element.properties)).itemsize
        if element.count * smallest > left:
            raise PointCloudError(
                f"has {left} bytes for element {shorten(element.name)}; {element.count} rows of at least "
                f"{smallest} bytes are declared, so the file may be cut off"
            )
        # Nearly all meshes have triangles alone, whose rows numpy reads as one table; only mixed polygons are walked
        # row by row.
        table = _equal_rows(data, start, element, order)
        if table is not None:
            values, start = table
        else:
            rows = RaggedRows(element, order)
            places, stop = rows.walk(lengths_in(data, element, order), start, len(data), element.count)
            lengths = [rows.lengths(data, number, places_of_list) for number, places_of_list in enumerate(places)]
            values = rows.values(np.frombuffer(data, np.uint8), start, stop, places, lengths)
            start = stop
        blocks.append(values)
    return blocks, data[start:]


def _equal_rows(data: bytes, start: int, element: Element, order: str) -> tuple[Values, int] | None:
    """Read rows of one size as a table; return None if their lists differ in length."""
    lengths = []
    if element.has_lists and element.count:
        # The first row tells the lengths that all others have to have.
        rows = RaggedRows(element, order)
        first, _ = rows.walk(lengths_in(data, element, order), start, len(data), 1)
        lengths = [int(rows.lengths(data, number, places)[0]) for number, places in enumerate(first)]
    row = element.row(order, lengths or [0] * len(element.properties))
    stop = start + element.count * row.itemsize
    if stop > len(data):
        return None
    table = np.frombuffer(data, row, element.count, start)
    values = {}
    sizes = iter(lengths)
    for i, (name, _, length) in enumerate(element.properties):
        column = table[f"value{i}"]
        if length and element.count:
            size = next(sizes)
            if (table[f"length{i}"] != size).any():
                return None
            # In the type of the file, which may have only one byte per row.
            values[name] = (np.full(element.count, size, length), column.reshape(-1))
        else:
            values[name] = (np.zeros(0, int), column.reshape(-1)) if length else column
    return values, stop


def lengths_in(data: bytes, element: Element, order: str) -> list[Callable[[int], int]]:
    """Return for each list the function that reads its length at an offset in the file."""

    def reader(kind: str) -> Callable[[int], int]:
        unpack = struct.Struct(order + _CODES[kind]).unpack_from
        return data.__getitem__ if kind == "u1" else lambda at: unpack(data, at)[0]

    return [reader(length) for _, _, length in element.properties if length]


class RaggedRows:
    """Rows whose lists differ in length, in an array of bytes (binary) or of numbers (text, where `order` is empty).

    One loop over the rows finds the start of each list, which depends on the lengths before it; numpy then extracts
    the values, so that the time is linear in the size of the file whatever the lengths.
    """

    def __init__(self, element: Element, order: str):
        self.element = element
        self.order = order
        self.gaps, self.items, self.widths = [], [], []  # before each list, of each of its values, of its length
        self.scalars: list[tuple[str, str, int, int]] = []  # name, type, lists before it, distance from the last one
        gap = 0
        for name, kind, length in element.properties:
            if length:
                self.gaps.append(gap)
                self.items.append(self._width(kind))
                self.widths.append(self._width(length))
                gap = 0
            else:
                self.scalars.append((name, kind, len(self.gaps), gap))
                gap += self._width(kind)
        self.tail = gap

    def _width(self, kind: str) -> int:
        return int(kind[1]) if self.order else 1

    def walk(
        self, length_at: list[Callable[[int], int]], start: int, stop: int, count: int
    ) -> tuple[list[np.ndarray], int]:
        """Find the offset of each list's length in each of `count` rows, and the end of the last row."""
        places_of_lists = [array("q") for _ in self.gaps]
        appends = [places.append for places in places_of_lists]
        # One row after the other, as a row's start is known only from the lengths before it; the loop does nothing
        # else.
        plan = list(zip(self.gaps, self.widths, self.items, length_at, appends, strict=True))
        at = start
        tail = self.tail
        try:
            if len(plan) == 1:
                # Most faces have one list, whose rows this finds in two thirds of the time.
                ((gap, width, item, length, append),) = plan
                rest = width + tail + gap
                at += gap
                for _ in range(count):
                    append(at)
                    at += item * length(at) + rest
                at -= gap
            else:
                for _ in range(count):
                    for gap, width, item, length, append in plan:
                        at += gap
                        append(at)
                        at += width + item * length(at)
                    at += tail
        except (IndexError, struct.error, ValueError, OverflowError):
            at = stop + 1
        if not start <= at <= stop:
            raise PointCloudError(f"ends within element {shorten(self.element.name)}; the file may be cut off")
        return [np.frombuffer(places, np.int64) for places in places_of_lists], at

    def lengths(self, data: bytes, number: int, places: np.ndarray) -> np.ndarray:
        """Read the lengths of one list in a binary file."""
        kind = [length for _, _, length in self.element.properties if length][number]
        return _numbers_at(np.frombuffer(data, np.uint8), places, f"{self.order}{kind}")

    def values(
        self, raw: np.ndarray, start: int, stop: int, places: list[np.ndarray], lengths: list[np.ndarray]
    ) -> Values:
        """Extract the values of all properties; see `Values`."""
        if any(size.min(initial=0) < 0 for size in lengths):
            raise PointCloudError(f"element {shorten(self.element.name)} has a list of negative length")
        lists = [
            (at + width, at + width + item * size.astype(np.int64), size)
            for at, width, item, size in zip(places, self.widths, self.items, lengths, strict=True)
        ]
        # A row begins `tail` after the last list of the one before.
        rows_start = np.append(start, lists[-1][1][:-1] + self.tail) if self.element.count else np.zeros(0, np.int64)
        scalars = iter(self.scalars)
        list_columns = iter(lists)
        values: Values = {}
        for name, kind, length in self.element.properties:
            if length:
                first, last, size = next(list_columns)
                # Neighboring lists never touch, since each starts with its length.
                edges = np.zeros(stop - start + 1, np.int8)
                filled = size > 0
                edges[first[filled] - start] = 1
                edges[last[filled] - start] -= 1
                # The sum is 1 inside of lists and 0 outside, and so a mask of their values.
                taken = raw[start:stop][edges.cumsum(dtype=np.int8)[:-1].view(bool)]
                values[name] = (size, taken.view(self.order + kind) if self.order else taken)
            else:
                _, _, before, distance = next(scalars)
                # A scalar has a fixed distance from the list before it, or from the start of its row.
                base = lists[before - 1][1] if before else rows_start
                at = base + distance
                values[name] = _numbers_at(raw, at, self.order + kind) if self.order else _typed(raw[at], kind)
        return values


def _numbers_at(raw: np.ndarray, places: np.ndarray, kind: str) -> np.ndarray:
    """Read one number at each offset in an array of bytes."""
    size = np.dtype(kind).itemsize
    numbers = np.empty((len(places), size), np.uint8)
    # Byte by byte, as numbers are at any offset, where no array of their type could be.
    for byte in range(size):
        numbers[:, byte] = raw[places + byte]
    return numbers.view(kind)[:, 0]


def _wrong_line(text: bytes, first_line: int, elements: list[Element]) -> PointCloudError | None:
    """Return the error of the first line without the numbers that its element has, or None."""
    rows = ((n, line.split()) for n, line in enumerate(text.split(b"\n"), first_line) if line.strip())
    for element in elements:
        for n, row in islice(rows, element.count):
            expected = 0
            try:
                values = [float(value) for value in row]
                for _, _, length in element.properties:
                    expected += 1 + (int(values[expected]) if length else 0)
            except ValueError as error:
                return PointCloudError(f"line {n} cannot be read ({error})")
            except IndexError:
                expected = max(expected, len(row)) + 1
            if len(row) != expected:
                cut = "" if next(rows, None) else "; the file may be cut off"
                what = f"element {shorten(element.name)} needs {expected}"
                return PointCloudError(f"line {n} has {len(row)} numbers, {what}{cut}")
    return None


def _ascii_rows(block: bytes, element: Element) -> Values:
    """Return the values of the properties of an element from its lines of text."""
    if not element.has_lists:
        table = numbers(block, columns=len(element.properties))
        rows = len(table)
        if rows != element.count:
            raise PointCloudError(f"element {shorten(element.name)} has {rows} rows; {element.count} are declared")
        return {name: _typed(table[:, i], kind) for i, (name, kind, _) in enumerate(element.properties)}
    # Lists make rows ragged; joined to one line, all numbers are read at once.
    flat = numbers(block.replace(b"\n", b" ")).reshape(-1)
    values, stop = _rows_of_numbers(flat, 0, element)
    if stop != len(flat):
        raise PointCloudError(f"element {shorten(element.name)} has {len(flat)} numbers; expected {stop}")
    return values


def _typed(column: np.ndarray, kind: str) -> np.ndarray:
    # Integer colors range to 255 or 65535, so the declared type must be kept.
    if kind[0] in "iu" and np.isfinite(column).all() and (np.abs(column) < 2**31).all():
        whole = column.astype(np.int64)
        limits = np.iinfo(kind)
        if (whole == column).all() and (not len(whole) or limits.min <= whole.min() and whole.max() <= limits.max):
            return whole.astype(kind)
    return column
