"""STL: triangles as text or binary."""

import re

import numpy as np

from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import normalized_lines, numbers, unix_lines

NOT_READ = "facet normals, which follow from the corners; names of solids"


_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_HEADER_SIZE = 84


def read(source: Source) -> PointCloudData:
    """Read a mesh whose triangles do not share corners: 3 vertices per triangle, none merged.

    Colors of binary facets are read as VisCAM, SolidView and MeshLab write them, and as Materialise Magics does.
    """
    data = source.data
    count = int.from_bytes(data[80:_HEADER_SIZE], "little") if len(data) >= _HEADER_SIZE else -1
    # Binary files may start with "solid" too; only the length is certain.
    exact = count >= 0 and len(data) == _HEADER_SIZE + count * _TRIANGLE.itemsize
    is_text = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:5].lower() == b"solid" and b"\0" not in data[:_HEADER_SIZE]
    colors = None
    if is_text and not exact:
        corners = _ascii(source)
    else:
        source.check(points=3 * max(count, 0), faces=max(count, 0))
        needed = _HEADER_SIZE + count * _TRIANGLE.itemsize
        # Nothing but the length confirms the count, so that a wrong one would lose triangles unnoticed.
        if count < 0 or needed > len(data) or data[needed:].strip(b"\0 \t\r\n"):
            raise PointCloudError(f"{len(data)} bytes; {count} triangles need {needed}, so it may be cut off")
        triangles = np.frombuffer(data, _TRIANGLE, count, _HEADER_SIZE)
        corners = triangles["corners"].reshape(-1, 3)
        colors = _colors(triangles["attribute"], data[:80], source)
    return PointCloudData(corners, faces=np.arange(len(corners)).reshape(-1, 3), face_colors=colors)


# Colors in the 16 bits after a facet, five for each channel. Bit 15 says that there is one (VisCAM, SolidView), or in
# files whose header names the color of the whole part, that the facet has none of its own (Magics).
_PART_COLOR, _FLAG, _CHANNEL = re.compile(rb"COLOR=(.{3})", re.DOTALL), 1 << 15, 31


def _colors(attributes: np.ndarray, header: bytes, source: Source) -> np.ndarray | None:
    """Return colors of facets `(facets, 3)`, or None; warn of attributes that are no colors."""
    part = _PART_COLOR.search(header)
    flagged = attributes & _FLAG != 0
    channels = np.stack([attributes & _CHANNEL, attributes >> 5 & _CHANNEL, attributes >> 10 & _CHANNEL], axis=1)
    colors = channels.astype(np.float32) / _CHANNEL
    if part:
        if not attributes.any():
            # Each facet would be black, which is rather a writer that knows the part's color only.
            flagged[:] = True
        elif flagged.all() and (channels != channels[0]).any():
            return colors  # MeshLab sets the bit of facets that have colors here, too
        colors[flagged] = np.frombuffer(part[1], np.uint8) / np.float32(255)
        return colors
    if flagged.all() and len(flagged):
        return colors[:, ::-1]  # blue is in the lowest bits
    if flagged.any():
        source.leave_out(["colors"], f"{flagged.sum():,} of {len(flagged):,} facets have one")
    elif attributes.any():
        source.leave_out(["attributes of facets"])
    return None


# Lines that some programs write between the end of a solid and the next one, or the end of the file.
_NO_SOLID = rb"(?![ \t]*solid\b)(?![^\n]*\bfacet\s+normal\b)[^\n]*"
_AFTER_SOLID = re.compile(rb"(?im)(^[ \t]*endsolid\b[^\n]*\n)((?:%b\n)*(?:%b\Z)?)" % (_NO_SOLID, _NO_SOLID))
# The name of a solid, up to the end of its line or to its first facet, may have any words.
_NAME = re.compile(rb"(?im)^[ \t]*(end)?solid\b((?!\bfacet\s+normal\b).)*")
_VERTEX = re.compile(rb"\bvertex\s+(\S+\s+\S+\s+\S+)", re.IGNORECASE)


def _ascii(source: Source) -> np.ndarray:
    data = unix_lines(source.data)
    lowered = data.lower()
    end = lowered.rfind(b"endsolid")
    if end < 0 or re.search(rb"\bfacet\s+normal\b", lowered[end:]):
        raise PointCloudError("has no closing 'endsolid'; the file may be cut off")
    # As many newlines as before, so that errors name the right line.
    data = _AFTER_SOLID.sub(lambda match: match[1] + b"\n" * match[2].count(b"\n"), data)
    data = _NAME.sub(b"", data)
    words = sum(1 for _ in re.finditer(rb"\bvertex\b", data, re.I))
    facets = sum(1 for _ in re.finditer(rb"\bendfacet\b", data, re.I))
    source.check(points=words, faces=facets)
    rows = []
    lines = []
    start = 0
    for match in _VERTEX.finditer(data):
        # A vertex may be spread over several lines, and a # is no number but would begin a comment.
        rows.append(b" ".join(match.group(1).split()).replace(b"#", b"?"))
        lines.append(data.count(b"\n", start, match.start()))  # since the vertex before it
        start = match.start()
    if len(rows) != words or len(rows) != 3 * facets:
        raise PointCloudError(f"{words} vertices in {facets} facets; expected 3 per facet, each with 3 numbers")
    # As many newlines as in the file, so that errors name its line.
    text = b"".join(b"\n" * max(count, 1) + row for count, row in zip(lines, rows, strict=True))
    return numbers(normalized_lines(text), columns=3)
