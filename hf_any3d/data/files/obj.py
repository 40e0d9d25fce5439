"""OBJ, the Wavefront object format."""

import io
import re

import numpy as np

from hf_any3d.data.files.attributes import usable_colors, usable_normals
from hf_any3d.data.files.point_cloud import PointCloudData, count_triangles, fan_triangles
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import normalized_lines, numbers, reject_binary, shorten

_GREY = [0.8, 0.8, 0.8]  # the format's default diffuse colour, for unknown materials


def read(source: Source) -> PointCloudData:
    """Read vertices and faces in the order of the file.

    Colours are those of the vertices (v x y z r g b) or, for faces, the diffuse colour of their material, if the
    material file is in the same folder or below. Normals are kept if each vertex has the one of the same number.
    Textures, lines, curves and groups are ignored. Polygons are cut into triangles that start at their first corner;
    those of one or two corners, which some programs write, give none.

    Raises:
        PointCloudError: a malformed line, or a face that refers to a vertex that does not exist.
    """
    reject_binary(source.data)
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
            polygons.add(rest.split(b"#")[0].split())
        elif key == b"vn":
            normals += rest + b"\n"
            polygons.normals += 1
        elif key == b"usemtl":
            polygons.material = rest.strip()
        elif key == b"mtllib":
            _read_materials(source, rest.strip(), materials, read_already)
    source.check(points=polygons.vertices)
    table = numbers(bytes(vertices))  # (vertices, 3, 4 with a weight, 6 or 7 with colours)
    if not len(table):
        raise PointCloudError("there are no points; expected lines 'v x y z'")
    if table.shape[1] not in (3, 4, 6, 7):
        raise PointCloudError(f"vertices have {table.shape[1]} numbers; expected 3, or 6 with colours")
    colors = usable_colors(table[:, 3:6], source) if table.shape[1] >= 6 else None
    vertex_normals = _vertex_normals(bytes(normals), len(table), polygons, source)
    return PointCloudData(table[:, :3], colors, vertex_normals, **polygons.faces(materials, source))


class _Polygons:
    def __init__(self):
        self.vertices = self.normals = 0
        self.material = b""
        self.counts: list[int] = []
        self.corners: list[int] = []
        self.materials: list[bytes] = []
        self.normals_follow_vertices = True

    def add(self, words: list[bytes]) -> None:
        for word in words:
            vertex, _, rest = word.partition(b"/")
            index = self._index(vertex, self.vertices, word)
            self.corners.append(index)
            normal = rest.partition(b"/")[2]
            if normal and self.normals_follow_vertices:
                self.normals_follow_vertices = self._index(normal, self.normals, word) == index
        self.counts.append(len(words))
        self.materials.append(self.material)

    @staticmethod
    def _index(text: bytes, known: int, word: bytes) -> int:
        if not re.fullmatch(rb"-?\d{1,18}", text) or int(text) == 0:
            raise PointCloudError(f"a face has the corner {shorten(word)}; expected numbers from 1, or negative ones")
        index = int(text)
        if index < 0 and index + known < 0:
            raise PointCloudError(f"a face refers to {index}, counted from the {known} before it")
        return index - 1 if index > 0 else index + known

    def faces(self, materials: dict[bytes, list[float]], source: Source) -> dict:
        if not self.counts:
            return {}
        triangles = count_triangles(np.array(self.counts))
        source.check(faces=triangles, decoded=24 * triangles)
        faces, polygon = fan_triangles(np.array(self.counts), np.array(self.corners))
        names = sorted(set(self.materials))
        if not any(name in materials for name in names):
            return {"faces": faces}
        number = {name: i for i, name in enumerate(names)}
        colors = np.array([materials.get(name, _GREY) for name in names], np.float32)
        return {"faces": faces, "face_colors": colors[[number[name] for name in self.materials]][polygon]}


def _vertex_normals(text: bytes, vertices: int, polygons: _Polygons, source: Source) -> np.ndarray | None:
    if polygons.normals != vertices or not polygons.normals_follow_vertices:
        return None
    table = numbers(text, columns=3)
    return usable_normals(table, source) if len(table) == vertices else None


def _read_materials(source: Source, reference: bytes, found: dict[bytes, list[float]], read_already: set[int]) -> None:
    """Add the materials of one file; a file that many lines refer to is read once."""
    text = source.neighbor(reference.decode("utf-8", "replace"))
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
