"""OBJ, the Wavefront object format."""

import io
import mmap
import re
from pathlib import Path

import numpy as np

from hf_any3d.data.files.attributes import usable_colors, usable_normals
from hf_any3d.data.files.point_cloud import PointCloudData, count_triangles, fan_triangles
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import normalized_lines, numbers, reject_binary, shorten

_AT_A_TIME = 2**18  # bytes of faces that are split at a time; some 40 bytes are needed for each
_DIGITS = 18  # of a number of a corner, which fits in 64 bits
_NONE = -1
_MATERIALS = re.compile(rb"mtllib[ \t,;]+((?:\\\r?\n|[^\r\n])+)")  # lines go on after a backslash
_GRAY = [0.8, 0.8, 0.8]  # the format's default diffuse color, for unknown materials


def read(source: Source) -> PointCloudData:
    """Read vertices and faces in the order of the file.

    Colors are those of the vertices (v x y z r g b) or, for faces, the diffuse color of their material, if the
    material file is in the same folder or below. Normals are kept if each vertex has the one of the same number.
    Textures, lines, curves and groups are ignored. Polygons are cut into triangles that start at their first corner;
    those of one or two corners, which some programs write, give none.

    Raises:
        PointCloudError: a malformed line, or a face that refers to a vertex that does not exist.
    """
    reject_binary(source.data)
    # A backslash at the end continues the line.
    text = normalized_lines(source.data).replace(b"\\\n", b" ")
    vertices, normals = bytearray(), bytearray()
    polygons = _Polygons()
    materials: dict[bytes, list[float]] = {}
    read_already: set[int] = set()
    for line in io.BytesIO(text):
        key, _, rest = line.strip().partition(b" ")
        if key == b"v":
            vertices += rest + b"\n"
            polygons.vertices += 1
        elif key == b"f":
            polygons.add(rest.split(b"#")[0])
        elif key == b"vn":
            normals += rest + b"\n"
            polygons.normals += 1
        elif key == b"usemtl":
            polygons.material = rest.strip()
        elif key == b"mtllib":
            _read_materials(source, rest, materials, read_already)
    source.check(points=polygons.vertices)
    table = numbers(bytes(vertices))  # (vertices, 3, 4 with a weight, 6 or 7 with colors)
    if not len(table):
        raise PointCloudError("there are no points; expected lines 'v x y z'")
    if table.shape[1] not in (3, 4, 6, 7):
        raise PointCloudError(f"vertices have {table.shape[1]} numbers; expected 3, or 6 with colors")
    colors = usable_colors(table[:, 3:6], source) if table.shape[1] >= 6 else None
    faces = polygons.faces(materials, source)  # only then is it known whether their normals follow the vertices
    vertex_normals = _vertex_normals(bytes(normals), len(table), polygons, source)
    return PointCloudData(table[:, :3], colors, vertex_normals, **faces)


def references(file: Path) -> list[str]:
    """Return the names of the material files that a file refers to."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        found = [normalized_lines(rest).replace(b"\\\n", b" ") for rest in _MATERIALS.findall(text)]
    return [_file_name(rest) for rest in found]


class _Polygons:
    """Faces of a file, split into numbers piece by piece, which bounds the memory that this takes."""

    def __init__(self):
        self.vertices = self.normals = 0
        self.material = b""
        self.materials: list[bytes] = []
        self.normals_follow_vertices = True
        self._text = bytearray()
        self._known: list[tuple[int, int]] = []  # vertices and normals before each face
        self._pieces: list[tuple[np.ndarray, np.ndarray]] = []  # corners of each face, vertex of each corner

    def add(self, corners: bytes) -> None:
        self._text += corners + b"\n"
        self._known.append((self.vertices, self.normals))
        self.materials.append(self.material)
        if len(self._text) > _AT_A_TIME:
            self._split()

    def _split(self) -> None:
        letters = np.frombuffer(bytes(self._text), np.uint8)
        slashes = letters == ord("/")
        blank = letters <= ord(" ")
        # All corners of many faces at once, as arrays over letters, without a loop over corners.
        starts = ~blank & np.append(True, blank[:-1])
        # Slashes before each letter of a corner: 0 in its vertex, 1 in its texture, 2 in its normal.
        before = np.cumsum(slashes) - slashes
        # Slashes since the corner began: the running maximum carries the count at its start along.
        field = before - np.maximum.accumulate(np.where(starts, before, 0))
        # The face of each corner, and how many vertices and normals came before that face, for negative numbers.
        line = np.cumsum(letters == ord("\n"))[starts]
        known = np.array(self._known)[line]  # (corners, 2)
        chosen = ~blank & ~slashes
        if (field[chosen] > 2).any():
            raise self._error()
        corners = self._numbers(letters, chosen & (field == 0), starts, known[:, 0])
        if (corners == _NONE).any():
            raise self._error()
        if self.normals_follow_vertices:
            normals = self._numbers(letters, chosen & (field == 2), starts, known[:, 1])
            self.normals_follow_vertices = bool(((normals == corners) | (normals == _NONE)).all())
        self._pieces.append((np.bincount(line, minlength=len(self._known)), corners))
        self._text.clear()
        self._known.clear()

    def _numbers(self, letters: np.ndarray, chosen: np.ndarray, starts: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return a field of each corner as an index from 0, `_NONE` where it is empty; its letters are chosen."""
        found = np.full(len(known), _NONE)
        # With all other letters blank, what is left are the numbers of this field, in order.
        words = np.array(np.where(chosen, letters, ord(" ")).tobytes().split())
        if not len(words):
            return found
        # Seldom is a file wrong; what is wrong in it is found again, corner by corner.
        if words.dtype.itemsize > len(b"-") + _DIGITS or re.search(rb"[^-\d]", b"".join(words.tolist())):
            raise self._error()
        try:
            values = words.astype(np.int64)
        except (ValueError, OverflowError):  # a minus within a number, or 19 digits
            raise self._error() from None
        # Which corner each number belongs to: at the first of its letters, the number of corners begun so far.
        corner = (np.cumsum(starts) - 1)[chosen & ~np.append(False, chosen[:-1])]
        # Positive numbers count from 1, negative ones back from the last element before the face.
        indices = np.where(values < 0, values + known[corner], values - 1)
        if (indices < 0).any():
            raise self._error()
        found[corner] = indices
        return found

    def _error(self) -> PointCloudError:
        for line, (vertices, normals) in zip(bytes(self._text).split(b"\n"), self._known, strict=False):
            for word in line.split():
                vertex, _, rest = word.partition(b"/")
                normal = rest.partition(b"/")[2]
                for text, known in ((vertex, vertices), *([(normal, normals)] if normal else [])):
                    if not re.fullmatch(rb"-?\d{1,%d}" % _DIGITS, text) or int(text) == 0:
                        return PointCloudError(
                            f"a face has the corner {shorten(word)}; expected numbers from 1, or negative ones"
                        )
                    if int(text) + known < 0:
                        return PointCloudError(f"a face refers to {int(text)}, counted from the {known} before it")
        return PointCloudError("the corners of the faces cannot be read")

    def faces(self, materials: dict[bytes, list[float]], source: Source) -> dict:
        if self._text:
            self._split()
        if not self._pieces:
            return {}
        counts, corners = (np.concatenate(parts) for parts in zip(*self._pieces, strict=True))
        triangles = count_triangles(counts)
        # Before they are made; three int64 numbers each.
        source.check(faces=triangles, decoded=24 * triangles)
        faces, polygon = fan_triangles(counts, corners)
        names = sorted(set(self.materials))
        if not any(name in materials for name in names):
            return {"faces": faces}
        number = {name: i for i, name in enumerate(names)}
        colors = np.array([materials.get(name, _GRAY) for name in names], np.float32)
        # A color for each polygon, and from that one for each of its triangles.
        return {"faces": faces, "face_colors": colors[[number[name] for name in self.materials]][polygon]}


def _vertex_normals(text: bytes, vertices: int, polygons: _Polygons, source: Source) -> np.ndarray | None:
    if polygons.normals != vertices or not polygons.normals_follow_vertices:
        return None
    table = numbers(text, columns=3)
    return usable_normals(table, source) if len(table) == vertices else None


def _file_name(rest: bytes) -> str:
    return rest.strip().decode("utf-8", "replace")


def _read_materials(source: Source, reference: bytes, found: dict[bytes, list[float]], read_already: set[int]) -> None:
    """Add the materials of one file; a file that many lines refer to is read once."""
    text = source.neighbor(_file_name(reference))
    # `source.neighbor` keeps one bytes object per file, so its id stands for the file.
    if text is None or id(text) in read_already:
        return
    read_already.add(id(text))
    name = None
    for line in io.BytesIO(normalized_lines(text)):
        key, _, rest = line.strip().partition(b" ")
        if key == b"newmtl":
            name = rest.strip()
        elif key == b"Kd" and name is not None and re.fullmatch(rb"\s*[\d.eE+-]+(\s+[\d.eE+-]+){2}\s*", rest):
            try:
                found[name] = [min(max(float(value), 0.0), 1.0) for value in rest.split()]
            except ValueError:
                continue
