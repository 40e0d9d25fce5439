"""STL: triangles as text or binary."""

import re

import numpy as np

from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import normalized_lines, numbers, unix_lines

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_HEADER_SIZE = 84
# The name of a solid, up to the end of its line or to its first facet, may have any words.
_NAME = re.compile(rb"(?im)^[ \t]*(end)?solid\b((?!\bfacet\s+normal\b).)*")
_VERTEX = re.compile(rb"\bvertex\s+(\S+\s+\S+\s+\S+)", re.IGNORECASE)


def read(source: Source) -> PointCloudData:
    """Read a mesh whose triangles do not share corners: 3 vertices per triangle, none merged."""
    data = source.data
    count = int.from_bytes(data[80:_HEADER_SIZE], "little") if len(data) >= _HEADER_SIZE else -1
    # Binary files may start with "solid" too; only the length is certain.
    exact = count >= 0 and len(data) == _HEADER_SIZE + count * _TRIANGLE.itemsize
    is_text = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:5].lower() == b"solid" and b"\0" not in data[:_HEADER_SIZE]
    if is_text and not exact:
        corners = _ascii(source)
    else:
        source.check(points=3 * max(count, 0), faces=max(count, 0))
        needed = _HEADER_SIZE + count * _TRIANGLE.itemsize
        # Nothing but the length confirms the count, so that a wrong one would lose triangles unnoticed.
        if count < 0 or needed > len(data) or data[needed:].strip(b"\0 \t\r\n"):
            raise PointCloudError(f"{len(data)} bytes; {count} triangles need {needed}, so it may be cut off")
        corners = np.frombuffer(data, _TRIANGLE, count, _HEADER_SIZE)["corners"].reshape(-1, 3)
    return PointCloudData(corners, faces=np.arange(len(corners)).reshape(-1, 3))


def _ascii(source: Source) -> np.ndarray:
    data = unix_lines(source.data)
    if b"endsolid" not in data[-4096:].lower():
        raise PointCloudError("has no closing 'endsolid'; the file may be cut off")
    data = _NAME.sub(b"", data)
    words, facets = (sum(1 for _ in re.finditer(rb"\b%s\b" % word, data, re.I)) for word in (b"vertex", b"endfacet"))
    source.check(points=words, faces=facets)
    rows, lines, start = [], [], 0
    for found in _VERTEX.finditer(data):
        # A vertex may be spread over several lines, and a # is no number but would begin a comment.
        rows.append(b" ".join(found.group(1).split()).replace(b"#", b"?"))
        lines.append(data.count(b"\n", start, found.start()))  # since the vertex before it
        start = found.start()
    if len(rows) != words or len(rows) != 3 * facets:
        raise PointCloudError(f"{words} vertices in {facets} facets; expected 3 per facet, each with 3 numbers")
    # As many newlines as in the file, so that errors name its line.
    text = b"".join(b"\n" * max(count, 1) + row for count, row in zip(lines, rows, strict=True))
    return numbers(normalized_lines(text), columns=3)
