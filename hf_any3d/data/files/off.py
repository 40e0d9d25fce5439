"""OFF, the object file format of Geomview and ModelNet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_any3d.data.files.attributes import has_unit_length, usable_colors, usable_normals
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.polygons import polygon_triangles
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.stated_units import unit_of_comments
from hf_any3d.data.files.text_numbers import (
    blocks_of_lines,
    count_of,
    integers,
    normalized_lines,
    numbers,
    shorten,
    unix_lines,
)

_HEADER = re.compile(rb"\s*((?:ST|[CN4])*)(OFF)([ \t]+BINARY\b)?", re.IGNORECASE)
NOT_READ = "texture coordinates"
_LONGEST_HEADER = 4096


@dataclass(frozen=True)
class _Form:
    """Numbers that each point has, by the keyword."""

    keyword: str
    is_homogeneous: bool  # a fourth coordinate divides the others
    has_normals: bool
    has_colors: bool
    has_texture: bool
    has_dimension: bool  # before the counts
    colors_first: bool  # before the normals, as MeshLab writes them, whose prefixes begin with N

    @classmethod
    def of(cls, prefixes: bytes, off: bytes) -> _Form:
        """Read the prefixes, in any order."""
        text = prefixes.decode()
        keyword = text + off.decode()
        # `n` is for a dimension beside OFF, and for normals in a keyword of small letters.
        letters = text.upper() if keyword.islower() else text.replace("st", "ST").replace("c", "C")
        return cls(
            keyword,
            "4" in letters,
            "N" in letters,
            "C" in letters,
            "ST" in letters,
            "n" in letters,
            letters.find("N") < letters.find("C"),
        )

    @property
    def before(self) -> int:
        """Numbers of a point without its color and texture."""
        return 3 + self.is_homogeneous + 3 * self.has_normals

    @property
    def colors(self) -> tuple[int, ...]:
        """Numbers that its color may have."""
        # Some writers add colors to plain OFF too.
        return (3, 4) if self.has_colors else (0, 3, 4)

    def check_dimension(self, text: bytes) -> None:
        """Refuse points that are not in space."""
        dimension = count_of(text, f"the dimension of {self.keyword}")
        if dimension != 3 or self.is_homogeneous:
            raise PointCloudError(
                f"{self.keyword} of dimension {dimension}; expected points in space, 3 dimensions or none stated"
            )

    def cloud(self, table: np.ndarray, source: Source) -> dict[str, Any]:
        """Return the fields of points (points, numbers)."""
        extra = table.shape[1] - self.before - 2 * self.has_texture
        if len(table) and extra not in self.colors:
            raise PointCloudError(f"points have {table.shape[1]} numbers, which are not those of {self.keyword}")
        start = 3 + self.is_homogeneous
        normals = table[:, start : start + 3]
        colors = table[:, start + 3 * self.has_normals :][:, :extra]
        if self.has_normals and self.has_colors:
            # Geomview writes normals first, and MeshLab colors.
            others = table[:, start + extra :][:, :3], table[:, start:][:, :extra]
            are_normals = has_unit_length(normals)
            if are_normals == has_unit_length(others[0]):
                first = "colors" if self.colors_first else "normals"
                source.warn(f"{first} are read as the first of {self.keyword}, since no values tell normals")
                are_normals = not self.colors_first
            if not are_normals:
                normals, colors = others
        if extra == 4 and (colors[:, 3] != colors[0, 3]).any():
            source.leave_out(["alpha of points"])
        points = table[:, :3]
        if self.is_homogeneous:
            points = points / table[:, 3:4]
        return {
            "points": points,
            "colors": usable_colors(colors[:, :3], source) if extra else None,
            "normals": usable_normals(normals, source) if self.has_normals else None,
        }


def read(source: Source) -> PointCloudData:
    """Read OFF as text or binary, with the prefixes ST, C, N, 4 and n of Geomview in any order.

    C stands for colors of points, N for normals, 4 for a fourth coordinate by which the others are divided, n for the
    dimension, which must be 3, and ST for texture coordinates, which are not read. The counts may be on the line of
    the keyword, also without a space as in parts of ModelNet ("OFF216 254 0"), and points and faces over any lines.
    Colors of faces are read if every face has some. Polygons are cut into triangles inside of their outline.
    """
    start = re.sub(rb"#[^\n]*", b"", source.data[:_LONGEST_HEADER])
    header = _HEADER.match(start)
    if header and header[3]:
        return _read_binary(source, _Form.of(header[1], header[2]))
    text = unix_lines(source.data)
    comments = re.findall(r"(?m)^[ \t]*#+(.*)", text[:_LONGEST_HEADER].decode("latin1"))
    # Comments may come before the keyword. As many lines stay, so that errors name the right one.
    text = re.sub(rb"#[^\n]*", b"", text)
    header = _HEADER.match(text)
    if not header:
        raise PointCloudError(
            f"not an OFF file: it starts with {shorten(text[:16])}; expected OFF, perhaps with the prefixes "
            "ST, C, N, 4 and n"
        )
    form = _Form.of(header[1], header[2])
    # Files of ModelNet have the counts right after the word OFF, without a newline.
    tokens = re.compile(rb"\s*(\S+)")
    at = header.end()
    if form.has_dimension and (dimension := tokens.match(text, at)):
        form.check_dimension(dimension[1])
        at = dimension.end()
    counts, at = _counts(text, at)
    points, faces = (count_of(count, f"the number of {what}") for count, what in counts)
    line = 1 + text.count(b"\n", 0, at)
    body = normalized_lines(text[at:])
    source.check(points=points, faces=faces)
    widths = [form.before + extra + 2 * form.has_texture for extra in form.colors]
    rows = _Rows.across_lines(body, points, faces, widths)
    if rows is None:
        rows = _Rows.of_lines(body, points, faces, line)
    source.warn_of_rest(rows.rest)
    unit = unit_of_comments(comments, source)
    cloud = form.cloud(rows.points, source)
    return PointCloudData(**cloud, **_faces(rows.faces, rows.sizes, cloud["points"], source), **unit)


def _counts(text: bytes, at: int) -> tuple[list[tuple[bytes, str]], int]:
    """Return the numbers of points and of faces, and where the line ends on which the last count is."""
    counts: list[bytes] = []
    while len(counts) < 3:
        line = re.compile(rb"\s*([^\n]*)(\n|$)").match(text, at)
        words = [] if line is None else normalized_lines(line[1]).split()
        # The number of edges may be missing, and a point has more numbers.
        if line is None or not words or (counts and len(counts) + len(words) > 3):
            break
        counts += words
        at = line.end()
    if len(counts) < 2:
        raise PointCloudError("no numbers of points and faces; expected them after OFF, so it may be cut off")
    return [(counts[0], "points"), (counts[1], "faces")], at


def _read_binary(source: Source, form: _Form) -> PointCloudData:
    """Read whole numbers and floats of 32 bits, the highest byte first."""
    data = source.data
    # The header is a line of text.
    place = re.compile(rb"(?i)BINARY[^\n]*\n").search(data)
    if place is None:
        raise PointCloudError("no data after BINARY; it may be cut off")
    rest = data[place.end() :]
    whole = np.frombuffer(rest[: len(rest) // 4 * 4], ">i4")
    floats = whole.view(">f4")
    at = 0
    if form.has_dimension:
        form.check_dimension(str(whole[0]).encode())
        at = 1
    points, faces = (count_of(str(number), "a count") for number in whole[at : at + 2])
    at += 3
    source.check(points=points, faces=faces)
    # Colors have four floats.
    width = form.before + 4 * form.has_colors + 2 * form.has_texture
    table = floats[at : at + points * width]
    at += points * width
    if len(table) < points * width:
        raise PointCloudError(f"ends after {len(table) // width} of {points} points; the file may be cut off")
    # At least one corner, before a row is made for each face.
    if 3 * faces > len(whole) - at:
        raise PointCloudError(f"{len(rest)} bytes for {faces} faces; the file may be cut off")
    # Of each face: the number of corners, the corners, how many numbers its color has, and these.
    end = at
    lengths = np.zeros((faces, 2), np.int64)
    for face in range(faces):
        corners = int(whole[end]) if end < len(whole) else -1
        color = int(whole[end + corners + 1]) if 0 <= corners < len(whole) - end - 1 else -1
        if not (corners >= 1 and 0 <= color <= 4 and end + 2 + corners + color <= len(whole)):
            raise PointCloudError(f"face {face} has {corners} corners and a color of {color}; the file may be cut off")
        lengths[face] = corners, color
        end += 2 + corners + color
    source.warn_of_rest(rest[4 * end :])
    ends = (lengths.sum(axis=1) + 2).cumsum()
    of_color = ends - lengths[:, 1] - 1  # places of the numbers of colors
    values = whole[at:end].astype(np.float64)
    is_color = np.repeat(np.tile([False, True], faces), (lengths + [2, 0]).reshape(-1))
    # The number of an entry of a table of colors is a whole number.
    is_color &= np.repeat(lengths[:, 1] > 1, lengths.sum(axis=1) + 2)
    values[is_color] = floats[at:end][is_color]
    flat = np.delete(values, of_color)
    cloud = form.cloud(table.reshape(points, width).astype(np.float32), source)
    return PointCloudData(**cloud, **_faces(flat, lengths.sum(axis=1) + 1, cloud["points"], source))


@dataclass(frozen=True)
class _Rows:
    """The numbers of points and of faces, and what follows them."""

    points: np.ndarray  # (points, 3 and more)
    faces: np.ndarray  # those of all faces, one after the other: the number of corners, corners, perhaps a color
    sizes: np.ndarray  # (faces,) how many of them each face has
    rest: bytes = b""

    @classmethod
    def of_lines(cls, body: bytes, points: int, faces: int, line: int) -> _Rows:
        """Read a point or a face from each line; `line` is the number of the first one."""
        first, second, rest = blocks_of_lines(body, [points, faces])
        table = numbers(first, first_line=line)
        # Optional colors make rows ragged; joined to one line, all are read at once.
        sizes = np.array([len(row.split()) for row in second.split(b"\n") if row.strip()], np.int64)
        try:
            flat = numbers(second.replace(b"\n", b" ")).reshape(-1)
        except PointCloudError:
            for number, row in enumerate(second.split(b"\n"), line + first.count(b"\n")):
                numbers(row, first_line=number)  # raises the error that names the line
            raise
        return cls(table, flat, sizes, rest)

    @classmethod
    def across_lines(cls, body: bytes, points: int, faces: int, widths: list[int]) -> _Rows | None:
        """Read points and faces that go over several lines, as Geomview allows; None unless all numbers fit.

        Args:
            body: What follows the counts.
            points: Number of points.
            faces: Number of faces.
            widths: How many numbers a point may have.
        """
        lines = sum(1 for row in body.split(b"\n") if row.strip())
        if lines == points + faces:
            return None
        try:
            flat = numbers(body.replace(b"\n", b" ")).reshape(-1)
        except PointCloudError:
            return None
        # Without lines, only the sum of all numbers tells whether faces end with colors of three or four numbers.
        for width in widths:
            for extra in (0, 3, 4):
                sizes = _sizes_of_faces(flat, points * width, faces, points, extra)
                if sizes is not None:
                    table = flat[: points * width].reshape(points, width)
                    return cls(table, flat[points * width :], sizes)
        return None


def _sizes_of_faces(flat: np.ndarray, start: int, faces: int, points: int, extra: int) -> np.ndarray | None:
    """Return how many numbers each face has, if with so many after its corners all of them are used; else None."""
    sizes = np.empty(faces, np.int64)
    at = start
    for face in range(faces):
        corners = flat[at] if at < len(flat) else 0
        if not (corners >= 1 and corners == int(corners) and at + 1 + corners + extra <= len(flat)):
            return None
        inside = flat[at + 1 : at + 1 + int(corners)]
        if inside.min() < 0 or inside.max() >= points:
            return None
        sizes[face] = 1 + int(corners) + extra
        at += int(sizes[face])
    return sizes if at == len(flat) else None


def _faces(flat: np.ndarray, sizes: np.ndarray, points: np.ndarray, source: Source) -> dict:
    count = len(sizes)
    if not count:
        return {}
    ends = sizes.cumsum()
    starts = ends - sizes
    corners = integers(flat[starts], "the number of corners of a face is")
    wrong = (corners < 1) | (corners >= sizes)
    if wrong.any():
        row = int(wrong.argmax())
        raise PointCloudError(f"face {row} declares {corners[row]} corners in a line of {sizes[row]} numbers")
    # The place of each corner in the flat list: the start of its face, one for the count, and its number in the face.
    row = np.repeat(np.arange(count), corners)
    step = np.arange(len(row)) - np.repeat(corners.cumsum() - corners, corners)
    faces, polygon = polygon_triangles(corners, flat[starts[row] + 1 + step], list(points.T), source)
    colors = None
    # A line has the count, the corners, and perhaps the three numbers of a color.
    colored = sizes - corners >= 4
    if (sizes - corners == 5).any() or (~colored & (sizes - corners > 1)).any():
        source.leave_out(["alpha or numbers of colors of faces"], "only red, green and blue are read")
    if not colored.all() and colored.any():
        source.warn(f"{colored.sum()} of {count} faces have colors, so colors are ignored")
    elif colored.all():
        colors = usable_colors(flat[(starts + 1 + corners)[:, None] + np.arange(3)], source)
    return {"faces": faces, "face_colors": None if colors is None else colors[polygon]}
