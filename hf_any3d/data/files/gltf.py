"""glTF 2.0: .gltf, JSON that refers to buffers, and .glb, the same in one binary file."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from hf_any3d.data.files.attributes import USABLE, usable_colors, usable_normals, usable_numbers, wanted_fields
from hf_any3d.data.files.point_cloud import MEASURED, PointCloudData
from hf_any3d.data.files.source import NoPointsError, PointCloudError, Source
from hf_any3d.data.files.text_numbers import listed, shorten

_GLB_HEAD = 20  # bytes before the JSON; its length is in the last eight
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
# Extensions that leave points and triangles as they are, or change only the types of their numbers.
_SUPPORTED = re.compile(
    r"(KHR|EXT|MSFT|ADOBE)_(materials|texture|techniques|lights|animation|audio|xmp|packing)_\w+|KHR_techniques_webgl"
    r"|KHR_xmp|KHR_mesh_quantization|EXT_mesh_features|EXT_(structural|feature)_metadata"
)
_OF_POINTS = ("labels", *MEASURED)
_GLOSSY, _INSTANCES = "KHR_materials_pbrSpecularGlossiness", "EXT_mesh_gpu_instancing"
_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
# A few bytes per node can show a mesh again, and each takes time however few points it has.
_MAX_PARTS = 1 << 15
_MODES = {1: "lines", 2: "lines", 3: "lines"}
# Attributes of vertices that say nothing about points and triangles beyond what is read.
_ATTRIBUTES = re.compile(r"POSITION|NORMAL|COLOR_0|TANGENT|(TEXCOORD|JOINTS|WEIGHTS)_\d+")
NOT_READ = "texture coordinates, tangents, skins, morph targets, animations, cameras, lights"


def read(source: Source) -> PointCloudData:
    """Read all points and triangles of the default scene, each mesh transformed by its nodes.

    Colors are those of the vertices, or for faces the base color of a material without texture, as stored (linear).
    If some parts have colors of vertices, the vertices of the others get the color of their material. Attributes of
    applications, whose names begin with an underscore, are labels, intensities, rings and returns by the names of
    columns, such as `_CLASSIFICATION` of py3dtiles. Textures, lines and other attributes are left out with a warning;
    skins and animations without one.
    """
    text = source.data
    chunk = None
    if source.data.startswith(b"glTF"):
        text, chunk = _chunks(source.data)
    content = json.loads(text)
    version = str(content["asset"].get("version"))
    if not version.startswith("2"):
        raise PointCloudError(f"glTF version {shorten(version)}; expected 2.0")
    required = map(str, content.get("extensionsRequired", []))
    unsupported = [name for name in required if not _SUPPORTED.fullmatch(name)]
    if unsupported:
        advice = "; decompress it first" if any("compression" in name for name in unsupported) else ""
        raise PointCloudError(f"requires {listed(unsupported)}, which is not supported{advice}")
    document = Document(content, chunk, source)
    placed = _placed_primitives(document)
    if not placed:
        raise NoPointsError("the scene has no points or triangles; lines are not read")
    return _join([_primitive(document, primitive, transform, source) for primitive, transform in placed], source)


def _placed_primitives(document: Document) -> list[tuple[dict, np.ndarray]]:
    """Return the primitives of points and triangles with their transforms, within the limits; tell of others."""
    source = document.source
    placed: list[tuple[dict, np.ndarray]] = []
    left_out: dict[str, None] = {}  # in the order of the file, each once
    # Many primitives may share one table, so their sum is checked before any is created.
    points = indices = faces = 0
    for mesh, transform in _placed_meshes(document):
        for primitive in document.item("meshes", mesh)["primitives"]:
            mode = primitive.get("mode", _TRIANGLES)
            attributes = primitive["attributes"]
            if mode not in (_POINTS, _TRIANGLES, _STRIP, _FAN):
                left_out[_MODES.get(mode, f"primitives of mode {shorten(str(mode))}")] = None
                continue
            if "POSITION" not in attributes:
                continue
            if len(placed) == _MAX_PARTS:
                raise PointCloudError(f"more than {_MAX_PARTS} parts in the scene; expected at most that many")
            placed.append((primitive, transform))
            read = {*document.measures(attributes).values()}
            others = [name for name in attributes if not _ATTRIBUTES.fullmatch(name) and name not in read]
            left_out |= dict.fromkeys(map(shorten, others))
            count = document.count(attributes["POSITION"])
            corners = count
            if "indices" in primitive:
                corners = document.count(primitive["indices"])
                indices += corners
            # One normal, one color and one of all else that is read for each point
            for name in ("NORMAL", "COLOR_0", *document.measures(attributes).values()):
                if name in attributes and (values := document.count(attributes[name])) != count:
                    raise PointCloudError(f"a primitive has {count} points and {values} values of {name}")
            points += count
            if mode == _TRIANGLES:
                faces += corners // 3
            elif mode != _POINTS:
                # A strip or a fan has a triangle for each corner from the third on.
                faces += max(corners - 2, 0)
            # Before anything is read: float64 points and int64 faces of three numbers, and the indices.
            source.check(points=points, faces=faces, decoded=24 * (points + faces) + 8 * indices)
    source.leave_out(left_out)
    return placed


def _placed_meshes(document: Document) -> list[tuple[int, np.ndarray]]:
    """Return the number of each mesh that the scene shows, with the transform (4, 4) to the frame of the scene."""
    nodes = document.json.get("nodes", [])
    if not nodes:
        return [(mesh, np.eye(4)) for mesh in range(len(document.json.get("meshes", [])))]
    if document.json.get("scenes"):
        roots = document.item("scenes", document.json.get("scene", 0)).get("nodes", [])
    else:
        # Without scenes, the nodes that no other node has as a child.
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [number for number in range(len(nodes)) if number not in children]
    placed = []
    seen = set()
    # A stack instead of recursion: a chain of nodes may be deeper than Python's stack. Reversed, so that parts come in
    # the order of the file.
    waiting = [(number, np.eye(4)) for number in reversed(roots)]
    while waiting:
        number, above = waiting.pop()
        # Nodes form trees. A node with two parents could be repeated exponentially often, and a circle never ends.
        if number in seen:
            raise PointCloudError(f"node {number} occurs twice in the scene; expected a tree")
        seen.add(number)
        node = document.item("nodes", number)
        # Chains of groups without a transform of their own are common, and a product of matrices takes time.
        moves = not node.keys().isdisjoint(("matrix", "rotation", "scale", "translation"))
        transform = above @ _local_transform(node) if moves else above
        if "mesh" in node:
            if _INSTANCES in node.get("extensions", {}):
                document.source.warn(f"{_INSTANCES} is ignored; each mesh is shown once, not repeated")
            placed.append((node["mesh"], transform))
        waiting.extend((child, transform) for child in reversed(node.get("children", [])))
    return placed


def _local_transform(node: dict) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T  # stored column-major
    x, y, z, w = np.array(node.get("rotation", [0, 0, 0, 1]), np.float64)  # a unit quaternion
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    transform = np.eye(4)
    transform[:3, :3] = rotation * np.array(node.get("scale", [1, 1, 1]), np.float64).reshape(1, 3)
    transform[:3, 3] = np.array(node.get("translation", [0, 0, 0]), np.float64)
    return transform


@dataclass
class Part:
    """A primitive in the frame of the scene; colors, normals and the color of its material may be None."""

    points: np.ndarray  # (points, 3) float64
    faces: np.ndarray  # (faces, 3) int64
    colors: np.ndarray | None  # (points, 3)
    normals: np.ndarray | None  # (points, 3)
    color: np.ndarray | None  # (3,)
    measures: dict[str, np.ndarray]  # field of a cloud -> (points,)


def _primitive(document: Document, primitive: dict, transform: np.ndarray, source: Source) -> Part:
    """Read a primitive, and move it to the frame of the scene by its transform (4, 4)."""
    attributes = primitive["attributes"]
    linear = transform[:3, :3]
    # Points are rows, so the matrix is transposed.
    points = document.positions(primitive).astype(np.float64) @ linear.T + transform[:3, 3]
    faces = _faces(document, primitive, len(points))
    if np.linalg.det(linear) < 0:
        faces = faces[:, [0, 2, 1]]  # a mirrored triangle turns the other way
    normals = None
    # Of what a transform makes flat, normals have no direction.
    if "NORMAL" in attributes and np.isfinite(linear).all() and np.linalg.matrix_rank(linear) == 3:
        # Normals transform by the inverse transpose, which keeps them perpendicular under unequal scales; as they are
        # rows, that is the inverse.
        normals = document.accessor(attributes["NORMAL"], 3).astype(np.float64) @ np.linalg.inv(linear)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = usable_normals(normals / np.where(length > 0, length, 1), source)
    factor, is_known = _material(document, primitive, source)
    colors = None
    if "COLOR_0" in attributes:
        stored = document.accessor(attributes["COLOR_0"], 3, 4)
        if stored.dtype.kind == "f":
            # The specification clamps them; floats are never bytes here.
            colors = usable_numbers(stored[:, :3].clip(0, 1) * factor, "colors", source)
            if colors is not None:
                colors = colors.clip(0, 1)
        else:
            colors = usable_colors(stored[:, :3] * factor, source)
        has_alpha = stored.shape[1] == 4 and len(stored) > 0 and bool((stored[:, 3] != stored[0, 3]).any())
        if has_alpha:
            source.leave_out(["alpha of COLOR_0"])
    measures: dict[str, np.ndarray] = {}
    for kind, name in document.measures(attributes).items():
        values = USABLE[kind](document.accessor(attributes[name], 1).reshape(-1), source)
        if values is not None:
            measures[kind] = values
    return Part(points, faces, colors, normals, factor.clip(0, 1) if is_known else None, measures)


def _faces(document: Document, primitive: dict, count: int) -> np.ndarray:
    """Return the triangles (faces, 3) of a primitive of `count` points."""
    mode = primitive.get("mode", _TRIANGLES)
    # Without indices, each corner has a point of its own.
    order = np.arange(count)
    if "indices" in primitive:
        order = document.accessor(primitive["indices"], 1).reshape(-1)
        if order.dtype.kind != "u" or (len(order) and order.max() >= count):
            raise PointCloudError(f"indices {order.dtype} up to {order.max()}; allowed are 0 to {count - 1}")
        order = order.astype(np.int64)
    if mode == _POINTS or len(order) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _TRIANGLES:
        # Corners that do not complete a triangle are ignored, as the specification says.
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    # All triangles of a fan have its first corner; every second one of a strip has the opposite orientation.
    first = np.full(len(order) - 2, order[0]) if mode == _FAN else order[:-2]
    faces = np.stack([first, order[1:-1], order[2:]], axis=1)
    if mode == _STRIP:
        faces[1::2] = faces[1::2, [1, 0, 2]]
    return faces


def _material(document: Document, primitive: dict, source: Source) -> tuple[np.ndarray, bool]:
    """Return the factor of colors (3,) float64, and whether it is the color of the surface."""
    if "material" not in primitive:
        return np.ones(3), False
    material = document.item("materials", primitive["material"])
    extensions = material.get("extensions", {})
    surface = material.get("pbrMetallicRoughness")
    color = "baseColorFactor"
    texture = "baseColorTexture"
    # The extension takes the place of the metallic and rough surface.
    if _GLOSSY in extensions:
        surface = extensions[_GLOSSY]
        color = "diffuseFactor"
        texture = "diffuseTexture"
    # Without either, an extension may define another color than white.
    is_known = surface is not None or not extensions
    surface = surface or {}
    if texture in surface:
        source.leave_out([f"{texture} of materials"], "textures are not read")
        is_known = False  # a texture is multiplied by the factor
    return np.array(surface.get(color, [1, 1, 1, 1]), np.float64)[:3], is_known


def _join(parts: list[Part], source: Source) -> PointCloudData:
    """Join the parts of a scene to one cloud."""
    points = np.concatenate([part.points for part in parts])
    # Each part counts its points from 0.
    faces = []
    start = 0
    for part in parts:
        faces.append(part.faces + start)
        start += len(part.points)
    all_faces = np.concatenate(faces)
    normals = _of_all([part.normals for part in parts], "normals", source)
    if any(part.colors is not None for part in parts):
        # Points of parts without colors have the color of their material.
        for part in parts:
            if part.colors is None and part.color is not None:
                part.colors = np.tile(part.color.astype(np.float32), (len(part.points), 1))
    colors = _of_all([part.colors for part in parts], "colors", source)
    face_colors = None
    of_parts = None
    if colors is None:
        of_parts = _of_all([part.color for part in parts], "colors", source, join=np.stack)
    if of_parts is not None and all(len(part.faces) for part in parts):
        face_colors = np.repeat(of_parts, [len(part.faces) for part in parts], axis=0)
    elif of_parts is not None:
        # Points without faces have the color of their material themselves.
        colors = np.repeat(of_parts, [len(part.points) for part in parts], axis=0)
    # What no part has is not asked for, so that nothing is told of it.
    fields = [field for field in _OF_POINTS if any(field in part.measures for part in parts)]
    measures: dict[str, Any] = {
        field: _of_all([part.measures.get(field) for part in parts], field, source) for field in fields
    }
    return PointCloudData(
        points,
        colors,
        normals,
        **measures,
        faces=all_faces if len(all_faces) else None,
        face_colors=face_colors,
        meters_per_unit=1.0,  # of all linear distances (glTF 2.0, section 3.4)
    )


def _of_all(
    values: list[np.ndarray | None], name: str, source: Source, join: Callable[..., np.ndarray] = np.concatenate
) -> np.ndarray | None:
    """Join what all parts have; warn of what only some have."""
    having = [value for value in values if value is not None]
    if len(having) == len(values):
        return join(having)
    if having:
        source.warn(f"{len(values) - len(having)} of {len(values)} parts have no {name}; they are left out")
    return None


@dataclass
class Document:
    """A glTF document with its binary chunk."""

    json: dict[str, Any]
    chunk: memoryview | None  # of a .glb
    source: Source  # for buffers in other files
    _buffers: dict[int, memoryview] = field(default_factory=dict, repr=False)
    _measures: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict, repr=False)

    def item(self, key: str, number: Any) -> dict[str, Any]:
        """Look up one object of a list such as "nodes"."""
        return self.json.get(key, [])[_natural(number, key)]

    def positions(self, primitive: dict[str, Any]) -> np.ndarray:
        """Read the points (points, 3) of a primitive; those that an extension compresses are refused by its name."""
        number = primitive["attributes"]["POSITION"]
        accessor = self.item("accessors", number)
        if "bufferView" not in accessor and "sparse" not in accessor:
            compressed = [name for name in primitive.get("extensions", {}) if "compression" in name]
            by = f"are compressed by {listed(compressed)}; decompress it first" if compressed else "have no bufferView"
            raise PointCloudError(f"points (accessors[{shorten(str(number))}]) {by}")
        return self.accessor(number, 3)

    def measures(self, attributes: dict[str, int]) -> dict[str, str]:
        """Return the attribute for each field of a cloud with one number a point, such as labels."""
        # Found once for all primitives with these attributes: there may be very many.
        key = tuple(attributes)
        if key not in self._measures:
            names = {name.lstrip("_").lower(): name for name in key if name.startswith("_")}
            # By the name that the file has for it, or without the underscore
            chosen = self.source.chosen_label([*names.values(), *names])
            fields = {field: names[columns[0]] for field, columns in wanted_fields(names, self.source).items()}
            if chosen is not None:
                fields["labels"] = names.get(chosen, chosen)
            self._measures[key] = {field: name for field, name in fields.items() if field in _OF_POINTS}
        return self._measures[key]

    def count(self, number: int) -> int:
        """Return the number of rows that an accessor declares."""
        return _natural(self.item("accessors", number).get("count"), "count")

    def accessor(self, number: int, *widths: int) -> np.ndarray:
        """Read a table (count, one of `widths`); normalized integers become float32 in [-1, 1]."""
        accessor = self.item("accessors", number)
        dtype = _COMPONENTS[accessor["componentType"]]
        width = _WIDTHS[accessor["type"]]
        if width not in widths:
            raise PointCloudError(f"accessors[{number}] has type {accessor['type']}; expected {widths} numbers")
        count = self.count(number)
        # A sparse accessor lists the rows in which it differs from a view, or from zeros without one.
        if "sparse" in accessor and "bufferView" not in accessor:
            values = np.zeros((count, width), dtype)
        else:
            values = self._view(accessor, dtype, count, width)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            changed = _natural(sparse["count"], "count")
            place = sparse["indices"]
            rows = self._view(place, _COMPONENTS[place["componentType"]], changed, 1).reshape(-1).astype(np.int64)
            # Views of the file's bytes are read-only.
            values = values.copy()
            values[rows] = self._view(sparse["values"], dtype, changed, width)
        if accessor.get("normalized", False) and values.dtype.kind in "iu":
            # Signed integers have one more negative value, which would become slightly less than -1.
            values = np.maximum(values.astype(np.float32) / np.iinfo(values.dtype).max, -1)
        return values

    def _view(self, place: dict, kind: str, count: int, width: int) -> np.ndarray:
        """Return a table (count, width) of a buffer; `place` names the buffer view and the offset."""
        dtype = np.dtype(kind)
        view = self.item("bufferViews", place["bufferView"])
        start = _natural(view.get("byteOffset", 0), "byteOffset")
        length = _natural(view["byteLength"], "byteLength")
        number = view["buffer"]
        buffer = self.item("buffers", number)
        if number not in self._buffers:
            self._buffers[number] = memoryview(self._open(buffer.get("uri"), number))
        data = self._buffers[number][start : start + length]
        row = dtype.itemsize * width
        stride = _natural(view.get("byteStride", row), "byteStride")
        if stride < row:
            raise PointCloudError(f"a view has a stride of {stride} bytes for rows of {row}")
        if not count:
            return np.zeros((0, width), dtype)
        # A view with strides: the rows of several attributes may alternate in a buffer.
        at = _natural(place.get("byteOffset", 0), "byteOffset")
        return np.ndarray((count, width), dtype, data, at, (stride, dtype.itemsize))

    def _open(self, uri: str | None, number: int) -> Any:
        """Return the bytes of a buffer: of the binary chunk, in the URI itself, or of another file."""
        if uri is None:
            compressions = [name for name in self.json.get("extensionsUsed", []) if "compress" in str(name)]
            # A buffer without bytes is then the place for what is decompressed.
            if compressions and (number or self.chunk is None):
                raise PointCloudError(f"points are compressed by {listed(compressions)}; decompress it first")
            return [self.chunk][number]  # the only one of a .glb, which the first buffer is
        if uri.startswith("data:"):
            head, _, text = uri.partition(",")
            data = unquote_to_bytes(text)
            return base64.b64decode(data, validate=True) if head.endswith(";base64") else data
        data = self.source.neighbor(unquote(uri))
        if data is None:
            raise PointCloudError(f"buffers[{number}]: no file {shorten(uri)} in this folder or below")
        return data


def references(file: Path) -> list[str]:
    """Return the names of the buffers that a .glb or .gltf has outside of it."""
    with file.open("rb") as opened:
        text = opened.read(_GLB_HEAD)
        if text.startswith(b"glTF"):
            text = opened.read(int.from_bytes(text[12:16], "little"))
        else:
            text += opened.read()
    uris = [buffer.get("uri") for buffer in json.loads(text).get("buffers", ())]
    return [unquote(uri) for uri in uris if isinstance(uri, str) and not uri.startswith("data:")]


def _chunks(data: bytes) -> tuple[bytes, memoryview | None]:
    """Return the JSON and the binary chunk of a .glb; a chunk has 4 bytes of length, 4 of type, and its data."""
    stop = _GLB_HEAD + int.from_bytes(data[12:16], "little")
    text = data[_GLB_HEAD:stop]
    # Further chunks belong to extensions.
    if data[stop + 4 : stop + 8] != b"BIN\0":
        return text, None
    length = int.from_bytes(data[stop : stop + 4], "little")
    return text, memoryview(data)[stop + 8 : stop + 8 + length]


def _natural(value: Any, name: str) -> int:
    # The exact type: in JSON true and false are no numbers, but in Python they are.
    if type(value) is not int or value < 0:
        raise PointCloudError(f"{name} is {shorten(str(value))}; expected a whole number")
    return value
