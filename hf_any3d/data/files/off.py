"""OFF, the object file format of Geomview and ModelNet."""

import re

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
    """Read OFF, COFF (with vertex colors), NOFF (with normals) and CNOFF as text.

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
    first, second, rest = blocks_of_lines(body, [points, faces])
    source.warn_of_rest(rest)
    table = numbers(first, first_line=line)  # (points, 3 and more)
    colored, with_normals = (bool(group) for group in header.groups())
    normals = 3 if with_normals else 0
    extra = table.shape[1] - 3 - normals
    # Some writers add colors to plain OFF too.
    if points and extra not in ((3, 4) if colored else (0, 3, 4)):
        raise PointCloudError(f"points have {table.shape[1]} numbers, which are not those of {header[0].decode()}")
    if extra == 4 and (table[:, -1] != table[0, -1]).any():
        source.leave_out(["alpha of points"])
    return PointCloudData(
        table[:, :3],
        colors=usable_colors(table[:, 3 + normals : 6 + normals], source) if extra else None,
        normals=usable_normals(table[:, 3:6], source) if with_normals else None,
        **_faces(second, faces, line + points, source),
    )


def _faces(block: bytes, count: int, line: int, source: Source) -> dict:
    if not count:
        return {}
    # Optional colors make rows ragged; joined to one line, all are read at once.
    sizes = np.array([len(line.split()) for line in block.split(b"\n") if line.strip()])
    try:
        flat = numbers(block.replace(b"\n", b" ")).reshape(-1)
    except PointCloudError:
        for number, row in enumerate(block.split(b"\n"), line):
            numbers(row, first_line=number)  # raises the error that names the line
        raise
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
