"""OFF, the object file format of Geomview and ModelNet."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from hf_any3d.data.files.attributes import usable_colors, usable_normals
from hf_any3d.data.files.point_cloud import PointCloudData, fan_triangles
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import (
    blocks_of_lines,
    count_of,
    integers,
    normalized_lines,
    numbers,
    shorten,
    unix_lines,
)

_HEADER = re.compile(rb"\s*(C?)(N?)OFF", re.IGNORECASE)


def read(source: Source) -> PointCloudData:
    """Read OFF, COFF (with vertex colors), NOFF (with normals) and CNOFF as text, points and faces over any lines.

    The counts may be on the line of the keyword, also without a space as in parts of ModelNet ("OFF216 254 0").
    Colors of faces are read if every face has some. Polygons are cut into triangles that start at their first corner.
    """
    text = unix_lines(source.data)
    # Comments may come before the keyword. As many lines stay, so that errors name the right one.
    text = re.sub(rb"#[^\n]*", b"", text)
    header = _HEADER.match(text)
    if not header:
        raise PointCloudError(f"starts with {shorten(text[:16])}; expected OFF, COFF, NOFF or CNOFF")
    # Files of ModelNet have the counts right after the word OFF, without a newline.
    source_lines = text.count(b"\n")
    text = text[header.end() :].lstrip(b" \t\n")
    head, _, body = text.partition(b"\n")
    counts = normalized_lines(head).split()
    line = 1 + source_lines - body.count(b"\n")
    body = normalized_lines(body)
    points, faces = (count_of(count, "a count") for count in counts[:2])
    source.check(points=points, faces=faces)
    colored, with_normals = (bool(group) for group in header.groups())
    normals = 3 if with_normals else 0
    # Some writers add colors to plain OFF too.
    extras = (3, 4) if colored else (0, 3, 4)
    rows = _Rows.across_lines(body, points, faces, [3 + normals + extra for extra in extras])
    if rows is None:
        rows = _Rows.of_lines(body, points, faces, line)
    source.warn_of_rest(rows.rest)
    extra = rows.points.shape[1] - 3 - normals
    if points and extra not in extras:
        raise PointCloudError(
            f"points have {rows.points.shape[1]} numbers, which are not those of {header[0].decode()}"
        )
    if extra == 4 and (rows.points[:, -1] != rows.points[0, -1]).any():
        source.leave_out(["alpha of points"])
    return PointCloudData(
        rows.points[:, :3],
        colors=usable_colors(rows.points[:, 3 + normals : 6 + normals], source) if extra else None,
        normals=usable_normals(rows.points[:, 3:6], source) if with_normals else None,
        **_faces(rows.faces, rows.sizes, source),
    )


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
            for number, row in enumerate(second.split(b"\n"), line + points):
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


def _faces(flat: np.ndarray, sizes: np.ndarray, source: Source) -> dict:
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
    faces, polygon = fan_triangles(corners, flat[starts[row] + 1 + step], source)
    colors = None
    # A line has the count, the corners, and perhaps the three numbers of a color.
    colored = sizes - corners >= 4
    if (sizes - corners == 5).any() or (~colored & (sizes - corners > 1)).any():
        source.leave_out(["alpha or numbers of colors of faces"], "only red, green and blue are read")
    if not colored.all() and colored.any():
        source.warn(f"{colored.sum()} of {count} faces have colors; they are left out")
    elif colored.all():
        colors = usable_colors(flat[(starts + 1 + corners)[:, None] + np.arange(3)], source)
    return {"faces": faces, "face_colors": None if colors is None else colors[polygon]}
