"""glTF 2.0: .gltf, a text that refers to buffers, and .glb, the same in one binary file."""

import numpy as np

from hf_any3d.data.files.columns import usable_colors, usable_normals
from hf_any3d.data.files.errors import PointCloudError
from hf_any3d.data.files.gltf_buffers import Document, open_document
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import Source

_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
# A node may show a mesh again for a few bytes, and each costs time however few points it has.
_MAX_NODES, _MAX_PARTS = 1 << 17, 1 << 15


def read(source: Source) -> PointCloudData:
    """Read all points and triangles of the default scene, each mesh moved as its nodes say, one after the other.

    Colours are those of the vertices, or for faces the base colour of a material without texture, as stored (linear).
    Textures, lines, skins and animations are passed over.

    Args:
        source: the file.

    Returns:
        A mesh, or a cloud if there are no triangles.

    Raises:
        PointCloudError: if the file is cut off, uses a compression that is not supported, refers to a buffer outside
            its folder or breaks the rules of glTF.
    """
    document = open_document(source)
    try:
        placed = _placed_primitives(document, source)
        if not placed:
            raise PointCloudError("there are no points; expected a scene with a mesh of points or triangles")
        return _join([_primitive(document, primitive, transform, source) for primitive, transform in placed])
    except PointCloudError:
        raise
    # JSON can hold anything anywhere; these are what reading a wrong kind of value raises.
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PointCloudError(f"breaks the rules of glTF ({type(error).__name__}: {error})") from error


def _placed_primitives(document: Document, source: Source) -> list[tuple[dict, np.ndarray]]:
    """List the points and triangles to be read, once it is clear that all of them keep within the limits.

    Many may share one table, so what they come to is counted before any of them is made.
    """
    placed = []
    points = indices = faces = 0
    for mesh, transform in _placed_meshes(document):
        for primitive in document.item("meshes", mesh)["primitives"]:
            mode = primitive.get("mode", _TRIANGLES)
            attributes = primitive["attributes"]
            if mode not in (_POINTS, _TRIANGLES, _STRIP, _FAN) or "POSITION" not in attributes:
                continue
            if len(placed) == _MAX_PARTS:
                raise PointCloudError(f"more than {_MAX_PARTS} parts in the scene; expected at most that many")
            placed.append((primitive, transform))
            count = corners = document.count(attributes["POSITION"])
            if "indices" in primitive:
                corners = document.count(primitive["indices"])
                indices += corners
            for name in ("NORMAL", "COLOR_0"):
                if name in attributes and document.count(attributes[name]) != count:
                    raise PointCloudError(
                        f"a primitive has {count} points and {document.count(attributes[name])} values of {name}"
                    )
            points += count
            faces += 0 if mode == _POINTS else corners // 3 if mode == _TRIANGLES else max(corners - 2, 0)
            source.check(points=points, faces=faces, decoded=24 * (points + faces) + 8 * indices)
    return placed


def _placed_meshes(document: Document) -> list[tuple[int, np.ndarray]]:
    nodes = document.json.get("nodes", [])
    if not nodes:
        return [(mesh, np.eye(4)) for mesh in range(len(document.json.get("meshes", [])))]
    if document.json.get("scenes"):
        roots = document.item("scenes", document.json.get("scene", 0)).get("nodes", [])
    else:
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [number for number in range(len(nodes)) if number not in children]
    placed, seen = [], set()
    waiting = [(number, np.eye(4)) for number in reversed(roots)]
    while waiting:
        if len(waiting) + len(seen) > _MAX_NODES:
            raise PointCloudError(f"more than {_MAX_NODES} nodes in the scene; expected at most that many")
        number, above = waiting.pop()
        if number in seen:
            raise PointCloudError(f"node {number} occurs twice in the scene; expected a tree")
        seen.add(number)
        node = document.item("nodes", number)
        moves = not node.keys().isdisjoint(("matrix", "rotation", "scale", "translation"))
        transform = above @ _local_transform(node) if moves else above
        if "mesh" in node:
            placed.append((node["mesh"], transform))
        waiting.extend((child, transform) for child in reversed(node.get("children", [])))
    return placed


def _local_transform(node: dict) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T  # stored column by column
    x, y, z, w = np.array(node.get("rotation", [0, 0, 0, 1]), np.float64)
    transform = np.eye(4)
    transform[:3, :3] = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    ) * np.array(node.get("scale", [1, 1, 1]), np.float64).reshape(1, 3)
    transform[:3, 3] = np.array(node.get("translation", [0, 0, 0]), np.float64)
    return transform


def _primitive(document: Document, primitive: dict, transform: np.ndarray, source: Source) -> dict:
    mode, attributes = primitive.get("mode", _TRIANGLES), primitive["attributes"]
    local = document.accessor(attributes["POSITION"], 3).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        points = local @ transform[:3, :3].T + transform[:3, 3]
    order = np.arange(len(points))
    if "indices" in primitive:
        order = document.accessor(primitive["indices"], 1).reshape(-1)
        if order.dtype.kind != "u":
            raise PointCloudError(f"indices have type {order.dtype}; expected an unsigned integer type")
        order = order.astype(np.int64)
        if len(order) and order.max() >= len(points):
            raise PointCloudError(f"a face refers to point {order.max()}; allowed are 0 to {len(points) - 1}")
    part = {"points": points, "faces": _triangles(order, mode), "colors": None, "normals": None}
    if "NORMAL" in attributes:
        part["normals"] = _turned(document.accessor(attributes["NORMAL"], 3), transform, source)
    material = document.item("materials", primitive["material"]) if "material" in primitive else None
    surface = {} if material is None else material.get("pbrMetallicRoughness", {})
    factor = np.array(surface.get("baseColorFactor", [1, 1, 1, 1]), np.float64)[:3]
    if "COLOR_0" in attributes:
        part["colors"] = usable_colors(document.accessor(attributes["COLOR_0"], (3, 4))[:, :3] * factor, source)
    part["color"] = None if material is None or "baseColorTexture" in surface else factor.clip(0, 1)
    return part


def _triangles(order: np.ndarray, mode: int) -> np.ndarray:
    if mode == _POINTS or len(order) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _TRIANGLES:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if mode == _FAN:
        return np.stack([np.full(len(order) - 2, order[0]), order[1:-1], order[2:]], axis=1)
    faces = np.stack([order[:-2], order[1:-1], order[2:]], axis=1)
    faces[1::2] = faces[1::2, [1, 0, 2]]  # every second triangle of a strip turns the other way
    return faces


def _turned(normals: np.ndarray, transform: np.ndarray, source: Source) -> np.ndarray | None:
    linear = transform[:3, :3]
    if not np.isfinite(linear).all() or np.linalg.matrix_rank(linear) < 3:
        return None
    turned = normals.astype(np.float64) @ np.linalg.inv(linear)
    length = np.linalg.norm(turned, axis=1, keepdims=True)
    return usable_normals(turned / np.where(length > 0, length, 1), source)


def _join(parts: list[dict]) -> PointCloudData:
    starts = np.cumsum([0] + [len(part["points"]) for part in parts])
    faces = np.concatenate([part["faces"] + start for part, start in zip(parts, starts, strict=False)])
    joined = {}
    for name in ("colors", "normals"):
        values = [part[name] for part in parts]
        if all(value is not None for value in values):
            joined[name] = np.concatenate(values)
    if len(faces) and "colors" not in joined and all(part["color"] is not None for part in parts):
        joined["face_colors"] = np.concatenate([np.tile(part["color"], (len(part["faces"]), 1)) for part in parts])
    return PointCloudData(
        np.concatenate([part["points"] for part in parts]), faces=faces if len(faces) else None, **joined
    )
