"""PLY, the Stanford polygon format: ASCII and binary in both byte orders."""

import numpy as np

from hf_any3d.data.files.columns import by_name, usable_colors
from hf_any3d.data.files.errors import PointCloudError
from hf_any3d.data.files.ply_elements import Element, read_ascii, read_binary
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import Source
from hf_any3d.data.files.surface import count_triangles, fan_triangles
from hf_any3d.data.files.tables import count_of, integers, listed, shorten

_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
_MAX_ELEMENTS = 256
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


def read(source: Source) -> PointCloudData:
    """Read the elements `vertex` and, if there are any, `face`.

    Properties: x y z, nx ny nz, red green blue, label or class; of faces vertex_indices (or vertex_index) and
    red green blue. Others are passed over. Polygons are cut into triangles that start at their first corner.

    Args:
        source: the file.

    Returns:
        A cloud, or a mesh if there are faces.

    Raises:
        PointCloudError: if the header is wrong, or the file holds less than it declares.
    """
    order, elements, start = _header(source.data)
    wanted = [element.name for element in elements]
    if "vertex" not in wanted:
        raise PointCloudError(f"no element 'vertex'; found {listed(wanted)}")
    values = {}
    blocks = read_binary(source.data, start, elements, order) if order else read_ascii(source.data[start:], elements)
    for element, block in zip(elements, blocks, strict=True):
        values.setdefault(element.name, block)
        if element.name == "vertex":
            source.check(points=element.count)
    vertices = {name: value for name, value in values["vertex"].items() if isinstance(value, np.ndarray)}
    cloud = by_name(vertices, source)
    cloud.update(_faces(values.get("face", {}), source))
    return PointCloudData(**cloud)


def _faces(properties: dict, source: Source) -> dict:
    polygons = properties.get("vertex_indices", properties.get("vertex_index"))
    if not isinstance(polygons, tuple) or not len(polygons[0]):
        return {}
    counts, corners = polygons
    triangles = count_triangles(counts)
    source.check(faces=triangles, decoded=24 * triangles)
    faces, polygon = fan_triangles(counts, integers(corners, "a face refers to point"))
    colors = [properties.get(name) for name in ("red", "green", "blue")]
    face_colors = None
    if all(isinstance(color, np.ndarray) for color in colors):
        face_colors = usable_colors(np.stack(colors, axis=1), source)
    return {"faces": faces, "face_colors": None if face_colors is None else face_colors[polygon]}


def _header(data: bytes) -> tuple[str, list[Element], int]:
    if not data.startswith((b"ply\n", b"ply\r")):
        raise PointCloudError(f"starts with {data[:16]!r}; a PLY file starts with a line 'ply'")
    stop = data.find(b"end_header")
    if stop < 0:
        raise PointCloudError("the header has no 'end_header'; the file may be cut off")
    start = stop + len(b"end_header")
    start += 2 if data[start : start + 2] == b"\r\n" else 1
    order, elements = None, []
    for line in data[:stop].decode("latin1").splitlines()[1:]:
        match line.split():
            case ["format", name, _] if name in _ORDERS:
                order = _ORDERS[name]
            case ["element", name, count]:
                if len(elements) == _MAX_ELEMENTS:
                    raise PointCloudError(f"more than {_MAX_ELEMENTS} elements; expected at most that many")
                elements.append(Element(name.lower(), count_of(count, f"the number of element {shorten(name)}")))
            case ["property", "list", length, kind, name] if elements and {length, kind} <= _TYPES.keys():
                if length.startswith(("float", "double")):
                    raise PointCloudError(
                        f"the lengths of list {shorten(name)} have type {length}; expected an integer type"
                    )
                elements[-1].add(name.lower(), _TYPES[kind], _TYPES[length])
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].add(name.lower(), _TYPES[kind], None)
            case [] | ["comment" | "obj_info", *_]:
                continue
            case _:
                raise PointCloudError(f"the header line {shorten(line)} is none that PLY allows")
    if order is None:
        raise PointCloudError(f"the header names no format; expected one of {', '.join(_ORDERS)}")
    return order, elements, start
