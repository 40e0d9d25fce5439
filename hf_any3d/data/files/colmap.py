"""Points of a COLMAP sparse model: points3D.txt or points3D.bin, recognized by name or content."""

import re
from pathlib import PurePath

import numpy as np

from hf_any3d.data.files.ply import Element, read_binary
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import numbers, unix_lines

# Before the track of a point: its number, x y z, red green blue and the reprojection error.
_COLUMNS = 8
_ROW_SIZE = 8 + 3 * 8 + 3 + 8 + 8  # bytes of a point in binary files, with the length of its track
_PROPERTIES: list[tuple[str, str, str | None]] = [
    ("id", "u8", None),
    *((axis, "f8", None) for axis in "xyz"),
    *((color, "u1", None) for color in ("red", "green", "blue")),
    ("error", "f8", None),
    ("track", "u8", "u8"),  # an image and one of its points, four bytes each
]
# Of the comments at the start, which COLMAP always writes.
_TITLE = re.compile(rb"#[^\n]*\bPOINT3D_ID\b")
_DECLARED = re.compile(rb"(?m)^#[^\n]*\bNumber of points:\s*(\d{1,18})\b")
_HEADER = 2048


def is_points3d(source: Source) -> bool:
    """Return whether a .txt or .bin is COLMAP's, by its name and its content.

    Text is told by its title, or without one by its name and rows of a point with a track. Binary files are told by
    their name, whatever their content, so that a damaged one is not read as a sweep of a scanner; under another name
    the whole file must be a table of points.
    """
    is_named = PurePath(source.name).stem.lower() == "points3d"
    if source.file_type == "bin":
        return is_named or is_table(source.data)
    start = source.data[:_HEADER]
    rows = [line.split() for line in start.splitlines() if line.strip() and not line.startswith(b"#")]
    return bool(_TITLE.search(start)) or (is_named and bool(rows) and len(rows[0]) > _COLUMNS)


def read(source: Source) -> PointCloudData:
    """Read the points with their colors; reprojection errors and tracks are left out.

    COLMAP fixes neither an up axis nor a unit. Coordinates are float64.
    """
    if b"\0" in source.data[:_HEADER]:
        points, colors = _binary(source)
    else:
        points, colors = _text(source)
    source.leave_out(["point ids", "reprojection errors", "tracks"])
    return PointCloudData(points, colors=(colors / 255.0).astype(np.float32))


def _text(source: Source) -> tuple[np.ndarray, np.ndarray]:
    text = unix_lines(source.data)
    lines = text.split(b"\n")
    count = sum(1 for line in lines if line.strip() and not line.startswith(b"#"))
    source.check(points=count, decoded=8 * _COLUMNS * count)
    # Tracks differ in length, and would make rows ragged.
    rows = b"\n".join(b" ".join(line.split(None, _COLUMNS)[:_COLUMNS]) for line in lines)
    table = numbers(rows, columns=_COLUMNS)  # (points, 8)
    declared = _DECLARED.search(text[:_HEADER])
    if declared and int(declared[1]) != len(table):
        raise PointCloudError(
            f"{len(table)} points, but the header declares {int(declared[1])}; the file may be cut off"
        )
    return table[:, 1:4], table[:, 4:7]


def _binary(source: Source) -> tuple[np.ndarray, np.ndarray]:
    data = source.data
    count = int.from_bytes(data[:8], "little")
    # Before anything is created, as each point takes at least so many bytes of the file.
    needed = 8 + count * _ROW_SIZE
    if needed > len(data):
        raise PointCloudError(f"{count} points need {needed} bytes or more, but there are {len(data)}; it is cut off")
    # Of each point coordinates, color and place; tracks have at most the bytes of the file.
    source.check(points=count, decoded=2 * len(data) + 64 * count)
    (columns,), rest = read_binary(data, 8, [Element("points", count, _PROPERTIES)], "<")
    source.warn_of_rest(rest)
    points = np.stack([np.asarray(columns[axis]) for axis in "xyz"], axis=1)  # (points, 3)
    colors = np.stack([np.asarray(columns[color]) for color in ("red", "green", "blue")], axis=1)
    return points, colors


def is_table(data: bytes) -> bool:
    """Return whether binary data are a table of points, the last of which ends with them."""
    count = int.from_bytes(data[:8], "little")
    if not 0 < count <= (len(data) - 8) // _ROW_SIZE:
        return False
    at = 8
    for _ in range(count):
        track = int.from_bytes(data[at + _ROW_SIZE - 8 : at + _ROW_SIZE], "little")
        at += _ROW_SIZE + 8 * track
        if at > len(data):
            return False
    return at == len(data)
