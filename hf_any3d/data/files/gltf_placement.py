"""The placement of meshes in a glTF scene: nodes and whether they are visible, instances, skins, morph targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_any3d.data.files.gltf_document import Document
from hf_any3d.data.files.poses import finite, rotations, vector
from hf_any3d.data.files.source import PointCloudError
from hf_any3d.data.files.text_numbers import shorten

INSTANCES, HIDDEN, CENTER = "EXT_mesh_gpu_instancing", "KHR_node_visibility", "CESIUM_RTC"
"""Extensions that say how often, whether and where a mesh is shown."""

_PARTS = (("translation", (0, 0, 0)), ("rotation", (0, 0, 0, 1)), ("scale", (1, 1, 1)))
_TRANSFORMS = ("matrix", *(name for name, _ in _PARTS))
# Matrices that joints place points with at once: those of all points would take many times the memory of the cloud.
_BLOCK = 1 << 16


@dataclass
class PlacedMesh:
    """A mesh that the scene shows, and what places its points.

    Attributes:
        mesh: Its number in the file.
        transforms: (instances, 4, 4) float64 from the frame of the mesh to that of the scene.
        joints: (joints, 4, 4) float64, the joint matrices of a skin, which take the place of the transforms.
        weights: Those of the morph targets.
        name: The node in words, for errors.
    """

    mesh: int
    transforms: np.ndarray = field(default_factory=lambda: np.eye(4)[None])
    joints: np.ndarray | None = None
    weights: list[float] = field(default_factory=list)
    name: str = "the mesh"


@dataclass
class Shape:
    """The points of a primitive, and what moves with them.

    Attributes:
        points: (points, 3) float64.
        normals: (points, 3) float64 of any length; None if there are none, or none have a direction.
        faces: (faces, 3) int64.
    """

    points: np.ndarray
    normals: np.ndarray | None
    faces: np.ndarray


def center_of(document: Document) -> np.ndarray | None:
    """Return the center (3,) float64 that all points of the scene are relative to, None without one (CESIUM_RTC)."""
    extension = document.json.get("extensions", {}).get(CENTER)
    if extension is None:
        return None
    center = extension.get("center")
    if center is None:
        raise PointCloudError(f"{CENTER} has no center; expected three numbers")
    return vector(center, 3, f"the center of {CENTER}")


def placed_meshes(document: Document) -> Iterator[PlacedMesh]:
    """Yield the meshes that the scene shows, in the order of the file; those of hidden nodes are left out."""
    nodes = document.json.get("nodes", [])
    if not nodes:
        meshes = document.json.get("meshes", [])
        for number, mesh in enumerate(meshes):
            yield PlacedMesh(number, weights=mesh.get("weights", []))
        return
    if document.json.get("scenes"):
        roots = document.item("scenes", document.json.get("scene", 0)).get("nodes", [])
    else:
        # Without scenes, the nodes that no other node has as a child.
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [number for number in range(len(nodes)) if number not in children]
    skins = _Skins(document)
    instances = 0
    seen = set()
    # A stack instead of recursion: a chain of nodes may be deeper than Python's stack. Reversed, so that parts come in
    # the order of the file.
    waiting = [(number, np.eye(4)) for number in reversed(roots)]
    while waiting:
        number, above = waiting.pop()
        # Nodes form trees (glTF 2.0, section 3.5.2), so each occurs once.
        if number in seen:
            raise PointCloudError(f"node {number} occurs twice in the scene; expected a tree")
        seen.add(number)
        node = document.item("nodes", number)
        extensions = node.get("extensions", {})
        # What is below a hidden node is hidden as well, whatever it says itself.
        if extensions.get(HIDDEN, {}).get("visible", True) is False:
            continue
        transform = _below(above, node, f"node {number}")
        if "mesh" in node:
            mesh = PlacedMesh(node["mesh"], transform[None], name=f"node {number}")
            mesh.weights = node.get("weights", document.item("meshes", node["mesh"]).get("weights", []))
            if "skin" in node and INSTANCES in extensions:
                raise PointCloudError(f"node {number} has a skin and {INSTANCES}, which exclude each other")
            if "skin" in node:
                mesh.joints = skins.matrices(node["skin"])
            elif INSTANCES in extensions:
                attributes = extensions[INSTANCES].get("attributes", {})
                instances += _count_of_instances(document, attributes, number)
                # Many nodes may share one table, so their sum is checked before any matrix is made.
                document.source.check(points=instances, decoded=128 * instances)
                mesh.transforms = transform @ _instances(document, attributes, f"of instances of node {number}")
            # A scale of 0 0 0 hides a mesh (section 3.5.3), but for one that joints place.
            is_shown = mesh.transforms[:, :3, :3].any(axis=(1, 2))
            if mesh.joints is not None or is_shown.all():
                yield mesh
            elif is_shown.any():
                mesh.transforms = mesh.transforms[is_shown]
                yield mesh
        waiting.extend((child, transform) for child in reversed(node.get("children", [])))


def _below(above: np.ndarray, node: dict[str, Any], name: str) -> np.ndarray:
    """Return the transform of a node to the scene from that of its parent."""
    # Chains of groups without a transform of their own are common, and a product of matrices takes time.
    if node.keys().isdisjoint(_TRANSFORMS):
        return above
    if "matrix" in node:
        return above @ _matrix(vector(node["matrix"], 16, f"the matrix of {name}"))
    parts = []
    for part, default in _PARTS:
        numbers = vector(node[part], len(default), f"the {part} of {name}") if part in node else np.array(default)
        parts.append(numbers[None])
    return above @ _matrices(parts, f"of {name}")[0]


def _matrix(stored: np.ndarray) -> np.ndarray:
    """Return the transform (4, 4) of numbers (16,) that are stored column-major; one of zeros does not turn."""
    matrix = np.eye(4)
    matrix[:3] = stored.reshape(4, 4).T[:3]
    # Unlike a pose, it may flatten what it places.
    if not matrix[:3, :3].any():
        matrix[:3, :3] = np.eye(3)
    return matrix


def _matrices(parts: list[np.ndarray], name: str) -> np.ndarray:
    """Return translation * rotation * scale (count, 4, 4) of vectors, quaternions x, y, z, w, and factors."""
    translation, rotation, scale = parts
    matrices = np.tile(np.eye(4), (len(translation), 1, 1))
    turned = rotations(rotation[:, [3, 0, 1, 2]], f"the rotation (w x y z) {name}")
    matrices[:, :3, :3] = turned * scale[:, None, :]
    matrices[:, :3, 3] = translation
    return matrices


def _count_of_instances(document: Document, attributes: dict[str, int], node: int) -> int:
    """Return how often a mesh is shown; attributes whose lengths differ are an error."""
    counts = {name: document.count(number) for name, number in attributes.items()}
    if len({*counts.values()}) != 1:
        lengths = ", ".join(f"{shorten(name)} {count}" for name, count in counts.items()) or "none"
        raise PointCloudError(f"node {node}: attributes of {INSTANCES}: {lengths}; expected some of one length")
    return next(iter(counts.values()))


def _instances(document: Document, attributes: dict[str, int], where: str) -> np.ndarray:
    """Return the transform of each instance (instances, 4, 4); what has no attribute is that of no transform."""
    count = document.count(next(iter(attributes.values())))
    parts = []
    for part, default in _PARTS:
        name = part.upper()
        if name in attributes:
            stored = document.accessor(attributes[name], len(default)).astype(np.float64)
            parts.append(finite(stored, f"{name} {where}"))
        else:
            parts.append(np.tile(np.array(default, np.float64), (count, 1)))
    document.source.leave_out([f"{shorten(name)} of instances" for name in attributes if name.startswith("_")])
    return _matrices(parts, where)


class _Skins:
    """The joint matrices of the skins of a document, each computed once."""

    def __init__(self, document: Document):
        self.document = document
        self._matrices: dict[int, np.ndarray] = {}
        self._parents: dict[int, int] | None = None
        self._transforms: dict[int, np.ndarray] = {}

    def matrices(self, number: int) -> np.ndarray:
        """Return global joint transform times inverse bind matrix of each joint (joints, 4, 4); section 3.7.3.3."""
        if number not in self._matrices:
            skin = self.document.item("skins", number)
            joints = skin["joints"]
            globals_ = np.stack([self._global(joint) for joint in joints])
            if "inverseBindMatrices" in skin:
                bind = self.document.accessor(skin["inverseBindMatrices"], 16)
                if len(bind) < len(joints):
                    raise PointCloudError(
                        f"skin {number} has {len(joints)} joints and {len(bind)} inverse bind matrices"
                    )
                stored = finite(bind[: len(joints)].astype(np.float64), f"an inverse bind matrix of skin {number}")
                globals_ = globals_ @ stored.reshape(-1, 4, 4).transpose(0, 2, 1)  # stored column-major
            self._matrices[number] = globals_
        return self._matrices[number]

    def _global(self, joint: int) -> np.ndarray:
        """Return the transform (4, 4) of a node to the scene, also of one that the scene does not show."""
        if self._parents is None:
            self._parents = {}
            for number, node in enumerate(self.document.json.get("nodes", [])):
                self._parents |= dict.fromkeys(node.get("children", []), number)
        # Up to a node whose transform is known, then down again.
        path = []
        at: int | None = joint
        while at is not None and at not in self._transforms:
            if len(path) > len(self._parents):
                raise PointCloudError(f"node {joint} is below itself; expected a tree")
            path.append(at)
            at = self._parents.get(at)
        transform = np.eye(4) if at is None else self._transforms[at]
        for number in reversed(path):
            node = self.document.item("nodes", number)
            transform = self._transforms[number] = _below(transform, node, f"node {number}")
        return transform


def morphed(document: Document, primitive: dict, placed: PlacedMesh, name: str, values: np.ndarray) -> np.ndarray:
    """Add the weighted morph targets of an attribute to its values (points, 3) float64; section 3.7.2.2."""
    for target, weight in active_targets(primitive, placed):
        if name in target:
            values = values + weight * document.accessor(target[name], values.shape[1]).astype(np.float64)
    return values


def active_targets(primitive: dict, placed: PlacedMesh) -> list[tuple[dict[str, int], float]]:
    """Return the morph targets of a primitive whose weight is not zero, with their weights."""
    targets = primitive.get("targets", [])
    # Without weights, all are zero.
    if placed.weights and len(placed.weights) != len(targets):
        raise PointCloudError(f"{placed.name} has {len(placed.weights)} weights for {len(targets)} morph targets")
    return [(target, weight) for target, weight in zip(targets, placed.weights, strict=False) if weight]


def influences(primitive: dict) -> int:
    """Return how many sets of four joints each point of a primitive has."""
    sets = 0
    while f"JOINTS_{sets}" in primitive["attributes"]:
        sets += 1
    return sets


def in_scene(document: Document, primitive: dict, placed: PlacedMesh, shape: Shape) -> Shape:
    """Move the points, normals and faces of a primitive to the scene; instances come one after the other."""
    if placed.joints is not None:
        return _posed(document, primitive, placed, shape)
    linear = placed.transforms[:, :3, :3]
    # Points are rows, so matrices are transposed.
    points = shape.points @ linear.transpose(0, 2, 1) + placed.transforms[:, None, :3, 3]
    normals = None
    # Of what a transform makes flat, normals have no direction.
    if shape.normals is not None and np.isfinite(linear).all() and (np.linalg.matrix_rank(linear) == 3).all():
        # Normals transform by the inverse transpose, which keeps them perpendicular under unequal scales; as they are
        # rows, that is the inverse.
        normals = (shape.normals @ np.linalg.inv(linear)).reshape(-1, 3)
    count = len(shape.points)
    faces = shape.faces[None]
    if len(linear) != 1:
        faces = faces + count * np.arange(len(linear))[:, None, None]
    # A mirrored triangle turns the other way.
    is_mirrored = np.linalg.det(linear) < 0
    if is_mirrored.any():
        faces = np.where(is_mirrored[:, None, None], faces[:, :, [0, 2, 1]], faces)
    return Shape(points.reshape(-1, 3), normals, faces.reshape(-1, 3))


def _posed(document: Document, primitive: dict, placed: PlacedMesh, shape: Shape) -> Shape:
    """Move the points of a skinned primitive by the joints; the node that has the mesh moves nothing."""
    assert placed.joints is not None
    joints, weights = _joints_and_weights(document, primitive, placed, len(shape.points))
    matrices = placed.joints.reshape(-1, 16)
    points = np.empty_like(shape.points)
    normals = None if shape.normals is None else np.empty_like(shape.normals)
    signs = np.empty(len(points))
    rows = max(1, _BLOCK // joints.shape[1])
    for start in range(0, len(points), rows):
        block = slice(start, start + rows)
        blended = np.einsum("ns,nsk->nk", weights[block], matrices[joints[block]]).reshape(-1, 4, 4)
        linear = blended[:, :3, :3]
        points[block] = np.einsum("nij,nj->ni", linear, shape.points[block]) + blended[:, :3, 3]
        # The inverse transpose but for its length: the matrix of cofactors, which needs no division.
        x, y, z = linear.transpose(1, 0, 2)
        cofactors = np.stack([np.cross(y, z), np.cross(z, x), np.cross(x, y)], axis=1)
        signs[block] = np.sign(np.einsum("nj,nj->n", x, cofactors[:, 0]))
        if normals is not None and shape.normals is not None:
            turned = np.einsum("nij,nj->ni", cofactors, shape.normals[block])
            normals[block] = turned * signs[block, None]
    if not signs.all():
        normals = None  # joints have made something flat
    faces = shape.faces.copy()
    is_mirrored = signs[faces].sum(axis=1) < 0
    faces[is_mirrored] = faces[is_mirrored][:, [0, 2, 1]]
    return Shape(points, normals, faces)


def _joints_and_weights(
    document: Document, primitive: dict, placed: PlacedMesh, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the joints (points, 4 * sets) that move each point, and their weights, which add up to 1."""
    attributes = primitive["attributes"]
    sets = influences(primitive)
    if not sets:
        raise PointCloudError(f"{placed.name} has a skin, but points of its mesh have no JOINTS_0")
    columns: dict[str, list[np.ndarray]] = {"JOINTS": [], "WEIGHTS": []}
    for kind, values in columns.items():
        for number in range(sets):
            name = f"{kind}_{number}"
            if name not in attributes:
                raise PointCloudError(f"{placed.name} has a skin, but points of its mesh have no {name}")
            values.append(document.accessor(attributes[name], 4))
    joints = np.concatenate(columns["JOINTS"], axis=1).astype(np.int64)
    weights = np.concatenate(columns["WEIGHTS"], axis=1).astype(np.float64)
    assert placed.joints is not None
    # Joints without weight may have any number.
    joints[weights == 0] = 0
    if count and (joints.min() < 0 or joints.max() >= len(placed.joints)):
        number = int(joints.max())
        raise PointCloudError(f"{placed.name}: joint {number} of a skin of {len(placed.joints)} joints")
    total = weights.sum(axis=1, keepdims=True)
    is_free = ~(total[:, 0] > 0)
    if is_free.any():
        document.source.warn(f"{is_free.sum():,} points of a skin have no weights; they move with its first joint")
        weights[is_free] = 0
        weights[is_free, 0] = 1
        joints[is_free] = 0
        total[is_free] = 1
    # Weights of rounded numbers add up to nearly 1, and what is missing would draw points to the origin.
    return joints, weights / total
