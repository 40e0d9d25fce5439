"""What a glTF scene shows at rest, against the formulas of the specification, one point at a time, and trimesh."""

import base64
import io
import itertools
import json
import warnings

import numpy as np
import pytest
import trimesh

from hf_any3d.data.files import PointCloudFileError, ReadLimits, read_point_cloud, source
from tests.errors import raises

from .builders import gltf, srgb

POINTS = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [1, 1, 1]], np.float32)
NORMALS = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0.6, 0.8, 0], [0, -1, 0]], np.float32)
FACES = np.array([[0, 1, 2], [0, 3, 1], [2, 1, 4]], np.uint16)
COMPONENTS = {"f4": 5126, "f8": 5130, "i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123}
TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
TURN = [0.0, 0.0, 0.6, 0.8]  # a unit quaternion
CENTER = [4200123.5, 170123.25, 4780123.125]


class File:
    """A scene of four meshes under nodes that move, turn, stretch and mirror; features change it.

    `meaning` holds the numbers that each accessor stands for, however they are stored.
    """

    def __init__(self):
        self.chunk = b""
        self.meaning: list[np.ndarray] = []
        self.document = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [
                {"translation": [1, 2, 3], "rotation": TURN, "children": [1, 2, 3, 4, 7]},
                {"mesh": 0, "matrix": [0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0, 5, 0, 0, 1]},  # mirrored
                {"mesh": 1, "scale": [1, 3, 0.5], "translation": [0, 0, 9]},
                {"translation": [0, 4, 0], "rotation": [0.6, 0, 0, 0.8], "children": [5]},
                {"scale": [2, 2, 2], "children": [6]},
                {"translation": [1, 0, 0], "scale": [1, 2, -1]},
                {"mesh": 2, "translation": [-20, 0, 0]},
                {"mesh": 3, "rotation": [0, 0.6, 0, 0.8], "scale": [1, 2, 1], "children": [8]},
                {"mesh": 2, "translation": [0, 30, 0]},
            ],
            "meshes": [],
            "accessors": [],
            "bufferViews": [],
            "buffers": [{}],
        }
        for number in range(4):
            attributes = {"POSITION": self.add(POINTS + number), "NORMAL": self.add(NORMALS)}
            self.document["meshes"].append({"primitives": [{"attributes": attributes, "indices": self.add(FACES)}]})

    def view(self, array: np.ndarray) -> int:
        self.chunk += b"\0" * (-len(self.chunk) % 8)
        view = {"buffer": 0, "byteOffset": len(self.chunk), "byteLength": array.nbytes}
        self.document["bufferViews"].append(view)
        self.chunk += array.tobytes()
        return len(self.document["bufferViews"]) - 1

    def add(self, array: np.ndarray, is_normalized: bool = False) -> int:
        rows = array.reshape(-1, 1) if array is FACES else array
        accessor = {"bufferView": self.view(rows), "count": len(rows), "type": TYPES[rows.shape[1]]}
        accessor["componentType"] = COMPONENTS[rows.dtype.str[1:]]
        values = array.astype(np.float64)
        if is_normalized:
            accessor["normalized"] = True
            values = np.maximum(values / np.iinfo(array.dtype).max, -1)
        return self._added(accessor, values)

    def add_sparse(self, count: int, rows: list[int], array: np.ndarray) -> int:
        """Add zeros that differ in some rows."""
        places = {"bufferView": self.view(np.array(rows, np.uint8)), "componentType": 5121}
        sparse = {"count": len(rows), "indices": places, "values": {"bufferView": self.view(array)}}
        values = np.zeros((count, 3))
        values[rows] = array
        return self._added({"count": count, "type": "VEC3", "componentType": 5126, "sparse": sparse}, values)

    def _added(self, accessor: dict, values: np.ndarray) -> int:
        self.document["accessors"].append(accessor)
        self.meaning.append(values)
        return len(self.meaning) - 1

    def primitive(self, mesh: int) -> dict:
        return self.document["meshes"][mesh]["primitives"][0]

    def node(self, number: int) -> dict:
        return self.document["nodes"][number]

    def extend(self, at: dict, name: str, content: dict) -> None:
        at.setdefault("extensions", {})[name] = content
        for key in ("extensionsUsed", "extensionsRequired"):
            self.document[key] = sorted({*self.document.get(key, []), name})

    def skin(self, node: int, attributes: dict, **skin) -> None:
        skins = self.document.setdefault("skins", [])
        skins.append({"joints": [3, 5], **skin})
        self.node(node)["skin"] = len(skins) - 1
        self.primitive(self.node(node)["mesh"])["attributes"] |= attributes

    def glb(self) -> bytes:
        self.document["buffers"] = [{"byteLength": len(self.chunk)}]
        return gltf(self.document, self.chunk)


def matrix_of(node: dict) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], float).reshape(4, 4).T
    return placed_by(node.get("translation"), node.get("rotation"), node.get("scale"))


def placed_by(translation=None, rotation=None, scale=None) -> np.ndarray:
    """Translation * rotation * scale; a vector is turned by a quaternion as q v q*."""
    vector, w = np.array([0, 0, 0] if rotation is None else rotation[:3], float), 1.0
    if rotation is not None:
        w = float(rotation[3])
    matrix = np.eye(4)
    for axis in range(3):
        column = np.eye(3)[axis] * (1 if scale is None else scale[axis])
        twice = 2 * np.cross(vector, column)
        matrix[:3, axis] = column + w * twice + np.cross(vector, twice)
    matrix[:3, 3] = 0 if translation is None else translation
    return matrix


def expected(file: File) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, normals and triangles (each three places) of the scene, by the formulas of the specification."""
    document, value = file.document, file.meaning
    nodes = document["nodes"]
    globals_ = {}

    def walk(number: int, above: np.ndarray) -> None:
        globals_[number] = above @ matrix_of(nodes[number])
        for child in nodes[number].get("children", []):
            walk(child, globals_[number])

    for number in range(len(nodes)):
        if not any(number in node.get("children", []) for node in nodes):
            walk(number, np.eye(4))
    points, normals, triangles = [], [], []

    def show(number: int) -> None:
        node = nodes[number]
        extensions = node.get("extensions", {})
        if not extensions.get("KHR_node_visibility", {}).get("visible", True):
            return
        if "mesh" in node:
            for matrices in matrices_of(number):
                add(node, matrices)
        for child in node.get("children", []):
            show(child)

    def matrices_of(number: int) -> list[list[np.ndarray]]:
        """For each instance the matrix of each point."""
        node = nodes[number]
        attributes = document["meshes"][node["mesh"]]["primitives"][0]["attributes"]
        count = len(value[attributes["POSITION"]])
        if "skin" in node:
            skin = document["skins"][node["skin"]]
            joints = []
            for place, joint in enumerate(skin["joints"]):
                bind = np.eye(4)
                if "inverseBindMatrices" in skin:
                    bind = value[skin["inverseBindMatrices"]][place].reshape(4, 4).T
                joints.append(globals_[joint] @ bind)
            matrices = []
            for point in range(count):
                matrix = np.zeros((4, 4))
                for number in range(2):
                    if f"JOINTS_{number}" in attributes:
                        pairs = zip(
                            value[attributes[f"JOINTS_{number}"]][point],
                            value[attributes[f"WEIGHTS_{number}"]][point],
                            strict=True,
                        )
                        for joint, weight in pairs:
                            matrix += weight * joints[int(joint)] if weight else 0
                matrices.append(matrix)
            return [matrices]
        instances = node.get("extensions", {}).get("EXT_mesh_gpu_instancing")
        if instances is None:
            return [[globals_[number]] * count]
        tables = {name: value[table] for name, table in instances["attributes"].items()}
        return [
            [globals_[number] @ placed_by(*(tables[n][i] if n in tables else None for n in TRS))] * count
            for i in range(len(next(iter(tables.values()))))
        ]

    def add(node: dict, matrices: list[np.ndarray]) -> None:
        mesh = document["meshes"][node["mesh"]]
        primitive = mesh["primitives"][0]
        weights = node.get("weights", mesh.get("weights", []))
        moved = []
        for point, matrix in enumerate(matrices):
            found = {}
            for name in ("POSITION", "NORMAL"):
                found[name] = value[primitive["attributes"][name]][point].copy()
                for target, weight in zip(primitive.get("targets", []), weights, strict=False):
                    if name in target:
                        found[name] += weight * value[target[name]][point]
            moved.append((matrix @ [*found["POSITION"], 1])[:3])
            normal = np.linalg.inv(matrix[:3, :3]).T @ found["NORMAL"]
            normals.append(normal / np.linalg.norm(normal))
        points.extend(moved)
        for face in value[primitive["indices"]].astype(int):
            is_mirrored = sum(np.sign(np.linalg.det(matrices[corner][:3, :3])) for corner in face) < 0
            triangles.append([moved[corner] for corner in (face[[0, 2, 1]] if is_mirrored else face)])

    for root in document["scenes"][0]["nodes"]:
        show(root)
    center = document.get("extensions", {}).get("CESIUM_RTC", {}).get("center", [0, 0, 0])
    return np.array(points) + center, np.array(normals), np.array(triangles) + center


TRS = ("TRANSLATION", "ROTATION", "SCALE")


def skin(file):
    weights = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.75, 0, 0], [0.875, 0.125, 0, 0]], "f4")
    joints = np.tile(np.array([[0, 1, 0, 0]], np.uint8), (5, 1))
    bind = np.stack([placed_by([0, -4, 1]).T.reshape(16), placed_by([2, 0, 0], TURN, [1, 1, 3]).T.reshape(16)])
    bind = file.add(bind.astype(np.float32))
    file.skin(1, {"JOINTS_0": file.add(joints), "WEIGHTS_0": file.add(weights)}, inverseBindMatrices=bind)


def skin_of_two_sets_without_bind_matrices(file):
    names = {}
    first = np.array([[65535, 0, 0, 0]] * 3 + [[30000, 5535, 0, 0]] * 2, np.uint16)
    second = np.array([[0, 0, 0, 0]] * 3 + [[30000, 0, 0, 0]] * 2, np.uint16)
    for number, weights in enumerate((first, second)):
        names[f"JOINTS_{number}"] = file.add(np.tile(np.array([[number, 1, 0, 0]], np.uint16), (5, 1)))
        names[f"WEIGHTS_{number}"] = file.add(weights, is_normalized=True)
    file.skin(2, names)


def skin_of_joints_outside_of_the_scene(file):
    file.document["nodes"] += [{"scale": [3, 3, 3], "children": [10]}, {"translation": [0, 0, 7]}]
    weights = file.add(np.tile(np.array([[255, 0, 0, 0]], np.uint8), (5, 1)), is_normalized=True)
    # A joint without weight may have any number.
    joints = file.add(np.tile(np.array([[1, 99, 0, 0]], np.uint8), (5, 1)))
    file.skin(6, {"JOINTS_0": joints, "WEIGHTS_0": weights}, joints=[3, 10])


def morph_of_a_node(file):
    target = {"POSITION": file.add(POINTS[::-1] * 0.5), "NORMAL": file.add(NORMALS[::-1] * np.float32(0.125))}
    file.primitive(0)["targets"] = [target, {"NORMAL": target["NORMAL"]}]
    file.document["meshes"][0]["weights"] = [9.0, 9.0]
    file.node(1)["weights"] = [0.5, 0.25]


def morph_of_a_mesh(file):
    file.primitive(1)["targets"] = [
        {"POSITION": file.add_sparse(5, [1, 4], np.array([[1, 2, 3], [4, 5, 6]], np.float32))},
        {"POSITION": file.add(np.full((5, 3), 10000, np.int16), is_normalized=True)},
        {"POSITION": file.add(POINTS)},
    ]
    file.document["meshes"][1]["weights"] = [0.75, -2.0, 0]


def morph_without_weights(file):
    file.primitive(3)["targets"] = [{"POSITION": file.add(POINTS * 100)}]


def hidden(file):
    file.extend(file.node(4), "KHR_node_visibility", {"visible": False})
    file.extend(file.node(6), "KHR_node_visibility", {"visible": True})


def hidden_joint(file):
    file.extend(file.node(3), "KHR_node_visibility", {"visible": False})
    file.extend(file.node(2), "KHR_node_visibility", {})


def center(file):
    file.extend(file.document, "CESIUM_RTC", {"center": CENTER})


def instances(file, **tables):
    tables = tables or {"TRANSLATION": file.add(np.array([[0, 0, 0], [10, 0, 0], [0, 10, 5]], np.float32))}
    file.extend(file.node(7), "EXT_mesh_gpu_instancing", {"attributes": tables})


def instances_of_bytes(file):
    turns = np.array([[0, 0, 0, 127], [127, 0, 0, 0], [0, -127, 0, 0]], np.int8)
    scales = np.array([[1, 2, 3], [-1, 1, 1], [0.5, 0.5, -2]], np.float32)
    places = np.array([[0, 0, 1], [7, 0, 0], [0, 8, 0]], np.float32)
    instances(file, SCALE=file.add(scales), ROTATION=file.add(turns, is_normalized=True), TRANSLATION=file.add(places))


def instances_that_turn(file):
    instances(file, ROTATION=file.add(np.array([[0, 32767, 0, 0], [32767, 0, 0, 0]], np.int16), is_normalized=True))


def quantized(file):
    positions = file.add(np.array(POINTS * 9000, np.int16), is_normalized=True)
    file.primitive(1)["attributes"]["POSITION"] = positions
    file.primitive(3)["attributes"]["NORMAL"] = file.add(np.array(NORMALS * 127, np.int8), is_normalized=True)
    file.document["extensionsRequired"] = [*file.document.get("extensionsRequired", []), "KHR_mesh_quantization"]


def sparse(file):
    changed = np.array([[1, 0, 5], [0, 3, 3], [2, 2, 2], [-1, 0, 0]], np.float32)
    file.primitive(0)["attributes"]["POSITION"] = file.add_sparse(5, [1, 2, 3, 4], changed)


def doubles(file):
    file.primitive(2)["attributes"]["POSITION"] = file.add(POINTS.astype(np.float64) / 3)


FEATURES = (
    skin,
    skin_of_two_sets_without_bind_matrices,
    skin_of_joints_outside_of_the_scene,
    morph_of_a_node,
    morph_of_a_mesh,
    morph_without_weights,
    hidden,
    hidden_joint,
    center,
    instances,
    instances_of_bytes,
    instances_that_turn,
    quantized,
    sparse,
    doubles,
)
# trimesh moves nodes, and ignores instances, skins, weights, sparse tables and what is hidden.
OF_TRIMESH = {morph_without_weights}


def opened(file: File, container: str, folder):
    """The cloud of a file as .glb, or as .gltf with its buffer in the text or in another file."""
    data = file.glb()
    if container == "glb":
        return read_point_cloud(data, file_type="glb")
    uri = "scene%20data.bin"
    if container == "text":
        uri = "data:application/octet-stream;base64," + base64.b64encode(file.chunk).decode()
    else:
        (folder / "scene data.bin").write_bytes(file.chunk)
    buffers = [{"byteLength": len(file.chunk), "uri": uri}]
    (folder / "scene.gltf").write_text(json.dumps({**file.document, "buffers": buffers}))
    return read_point_cloud(folder / "scene.gltf")


SETS = [(), *((feature,) for feature in FEATURES), *itertools.combinations(FEATURES, 2)]


@pytest.mark.parametrize("number", range(len(SETS)))
def test_a_scene_is_what_the_specification_says(number, tmp_path):
    features = SETS[number]
    file = File()
    for feature in features:
        feature(file)
    points, normals, triangles = expected(file)
    # One feature alone in all containers, two in one of them by turns
    containers = ("glb", "text", "folder")
    for container in containers if len(features) < 2 else (containers[number % 3],):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cloud = opened(file, container, tmp_path)
        found = cloud.points.astype(np.float64) + (0 if cloud.offset is None else cloud.offset)
        np.testing.assert_allclose(found, points, rtol=0, atol=2e-5)
        np.testing.assert_allclose(cloud.normals, normals, atol=2e-5)
        np.testing.assert_allclose(found[cloud.faces], triangles, rtol=0, atol=2e-5)
    if OF_TRIMESH.issuperset(features):
        scene = trimesh.load_scene(io.BytesIO(file.glb()), file_type="glb")
        other = scene.to_mesh().triangles
        np.testing.assert_allclose(ordered(found[cloud.faces]), ordered(other), atol=2e-5)


def ordered(triangles: np.ndarray) -> np.ndarray:
    """Sort triangles by their centers, and begin each with its first corner in the same order."""
    first = np.argmin(triangles @ [1, 100, 10000], axis=1)
    turned = np.stack([triangles[np.arange(len(first)), (first + step) % 3] for step in range(3)], axis=1)
    return turned[np.lexsort(turned.mean(axis=1).round(3).T)]


def test_a_scene_without_what_is_hidden_has_nothing_left():
    file = File()
    file.extend(file.node(0), "KHR_node_visibility", {"visible": False})
    with raises(PointCloudFileError, naming="hidden nodes are not read"):
        read_point_cloud(file.glb(), file_type="glb")


def test_a_mesh_of_several_sets_of_joints_keeps_its_place_at_map_coordinates():
    """Weights of bytes add up to nearly 1: what is missing would draw points to the origin by meters."""
    file = File()
    file.document["nodes"][0] = {"translation": [5e5, 5e6, 0], "children": [1, 3]}
    for number in (3, 5):
        file.document["nodes"][number] = {"children": [5]} if number == 3 else {}
    thirds = np.tile(np.array([[85, 84, 85, 0]], np.uint8), (5, 1))
    joints = file.add(np.zeros((5, 4), np.uint8))
    file.skin(1, {"JOINTS_0": joints, "WEIGHTS_0": file.add(thirds, is_normalized=True)})
    cloud = read_point_cloud(file.glb(), file_type="glb")
    np.testing.assert_allclose(cloud.points + cloud.offset, POINTS + [5e5, 5e6, 0], rtol=0, atol=1e-3)


def of_colors(file):
    colors = np.array([[255, 0, 51, 9], [0, 102, 0, 9], [0, 0, 153, 9], [204, 255, 255, 9], [51, 51, 0, 9]], np.uint8)
    for mesh in range(4):
        attributes = file.primitive(mesh)["attributes"]
        attributes["COLOR_0"] = file.add(colors, is_normalized=True)
        attributes["_CLASSIFICATION"] = file.add(np.uint8([[6], [2], [2], [6], [9]]))
    return colors[:, :3] / 255


def test_instances_have_the_colors_and_labels_of_their_mesh_and_what_is_their_own_is_told():
    file = File()
    colors = of_colors(file)
    tint = file.add(np.ones((3, 3), np.float32))
    places = file.add(np.array([[0, 0, 0], [10, 0, 0], [0, 10, 5]], np.float32))
    instances(file, TRANSLATION=places, _COLOR_0=tint)
    with pytest.warns(UserWarning, match="'_COLOR_0' of instances"):
        cloud = read_point_cloud(file.glb(), file_type="glb")
    np.testing.assert_allclose(cloud.colors, np.tile(srgb(colors), (7, 1)), atol=1e-6)
    assert cloud.labels.tolist() == [6, 2, 2, 6, 9] * 7


def test_morph_targets_change_colors_within_their_range():
    file = File()
    colors = of_colors(file)
    change = np.full((5, 4), 0.5, np.float32)
    for mesh in range(4):
        file.primitive(mesh)["targets"] = [{"COLOR_0": file.add(change)}]
        file.document["meshes"][mesh]["weights"] = [1]
    cloud = read_point_cloud(file.glb(), file_type="glb")
    np.testing.assert_allclose(cloud.colors, np.tile(srgb((colors + 0.5).clip(0, 1)), (5, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda file: file.node(1).update(skin=0), "joint 1 of a skin of 1 joints"),
        (lambda file: file.document["skins"][0].update(joints=[3, 5, 3]), "3 joints and 2 inverse bind matrices"),
        (lambda file: file.node(2).update(skin=0), "node 2 has a skin, but points of its mesh have no JOINTS_0"),
        (lambda file: file.primitive(0)["attributes"].pop("WEIGHTS_0"), "node 1 .* have no WEIGHTS_0"),
        (lambda file: file.primitive(0)["attributes"].update(JOINTS_0=2), "values of JOINTS_0"),
        (lambda file: file.node(5).update(children=[3]), "node . is below itself|node . occurs twice"),
        (lambda file: file.node(1).update(weights=[1, 2]), "node 1 has 2 weights for 1 morph targets"),
        (
            lambda file: file.extend(file.node(1), "EXT_mesh_gpu_instancing", {"attributes": {}}),
            "node 1 has a skin and EXT_mesh_gpu_instancing",
        ),
        (
            lambda file: file.extend(file.node(7), "EXT_mesh_gpu_instancing", {"attributes": {}}),
            "node 7: attributes of EXT_mesh_gpu_instancing: none",
        ),
        (lambda file: instances(file, TRANSLATION=0, SCALE=2), "'TRANSLATION' 5, 'SCALE' 9"),
        (lambda file: file.extend(file.document, "CESIUM_RTC", {"center": [1, "2", 3]}), "center of CESIUM_RTC"),
        (lambda file: file.extend(file.document, "CESIUM_RTC", {}), "CESIUM_RTC has no center"),
    ],
)
def test_what_places_nothing_is_refused_by_name(change, named):
    file = File()
    skin(file)
    file.primitive(0)["targets"] = [{"POSITION": 0}]
    if named.startswith("joint"):
        file.document["skins"][0]["joints"] = [3]
    change(file)
    with pytest.raises(PointCloudFileError, match=named):
        read_point_cloud(file.glb(), file_type="glb")


@pytest.mark.parametrize("count", [1, 0])
def test_instances_are_counted_before_any_is_made(count, monkeypatch):
    """A table of zeros has no bytes, and nodes may share it."""
    monkeypatch.setattr(source, "FREE_BYTES", 1000)
    file = File()
    file.document["accessors"].append({"count": 1000, "type": "VEC3", "componentType": 5126})
    table = {"attributes": {"TRANSLATION": len(file.document["accessors"]) - 1}}
    file.document["accessors"][9]["count"] = file.document["accessors"][10]["count"] = count
    for _ in range(20):
        file.document["nodes"].append({"mesh": 3, "extensions": {"EXT_mesh_gpu_instancing": table}})
        file.node(0)["children"].append(len(file.document["nodes"]) - 1)
    with raises(PointCloudFileError, naming="expansion"):
        read_point_cloud(file.glb(), file_type="glb")
    with raises(PointCloudFileError, naming="at most 999"):
        read_point_cloud(file.glb(), file_type="glb", limits=ReadLimits(points=999))
