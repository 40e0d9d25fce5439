import base64
import json

import numpy as np
import pytest
import trimesh

from hf_any3d.data.files import PointCloudFileError, read_point_cloud

from .builders import SQUARE, TRIANGLES, gltf, gltf_square


def read(data, kind="glb"):
    return read_point_cloud(data, file_type=kind)


def primitive(**changes):
    return [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, **changes}]}]


def test_meshes_of_a_scene_are_joined_with_their_transforms():
    scene = trimesh.Scene()
    first = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3])
    first[:3, 3] = [1, -2, 3]
    second = np.diag([2.0, 3.0, 0.5, 1.0])
    scene.add_geometry(trimesh.creation.box(), node_name="a", transform=first)
    scene.add_geometry(trimesh.creation.box([1, 2, 3]), node_name="b", parent_node_name="a", transform=second)
    expected = scene.to_mesh()
    cloud = read(scene.export(file_type="glb"))
    assert len(cloud) == len(expected.vertices) and len(cloud.faces) == len(expected.faces)
    corners = [
        np.sort(m[f].reshape(-1, 9).round(4), axis=0)
        for m, f in ((cloud.points, cloud.faces), (expected.vertices, expected.faces))
    ]
    np.testing.assert_allclose(*corners, atol=2e-4)
    assert cloud.sample_surface(500, 0).points.shape == (500, 3)


@pytest.mark.parametrize("value", ["x" * 3000, ["9" * 3000 + "x"] * 4, {"a": "b" * 3000}])
def test_long_values_are_not_quoted_whole(value):
    document, chunk = gltf_square()
    for name in ("rotation", "translation", "scale", "matrix"):
        nodes = [{"mesh": 0, name: value}]
        with pytest.raises(PointCloudFileError) as error:
            read(gltf({**document, "nodes": nodes}, chunk))
        assert len(str(error.value)) < 600


def test_translation_rotation_and_scale_move_a_node():
    half = float(np.sqrt(0.5))
    node = {"mesh": 0, "translation": [10, 0, 0], "rotation": [0, 0, half, half], "scale": [2, 2, 2]}
    document, chunk = gltf_square(nodes=[node])
    turned = np.stack([-SQUARE[:, 1], SQUARE[:, 0], SQUARE[:, 2]], axis=1)
    np.testing.assert_allclose(read(gltf(document, chunk)).points, turned * 2 + [10, 0, 0], atol=1e-5)
    document, chunk = gltf_square(nodes=[{"mesh": 0, "matrix": [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 5, 6, 7, 1]}])
    np.testing.assert_allclose(read(gltf(document, chunk)).points, SQUARE * [2, 1, 1] + [5, 6, 7])


def test_every_kind_of_primitive_is_read():
    document, chunk = gltf_square(meshes=primitive(mode=5))
    # The square's indices as a strip: 0 1 2 0 2 3; every second triangle turns the other way.
    assert read(gltf(document, chunk)).faces.tolist() == [[0, 1, 2], [2, 1, 0], [2, 0, 2], [2, 0, 3]]
    document, chunk = gltf_square(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 6}]}])
    assert (read(gltf(document, chunk)).faces == TRIANGLES).all()
    document, chunk = gltf_square(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 0}]}])
    assert not read(gltf(document, chunk)).is_mesh
    document, chunk = gltf_square(meshes=primitive(mode=1))
    with pytest.raises(PointCloudFileError):
        read(gltf(document, chunk))


def test_a_scene_with_an_empty_mesh_is_read_without_it():
    empty = {"bufferView": 0, "componentType": 5126, "count": 0, "type": "VEC3"}
    document, chunk = gltf_square(nodes=[{"mesh": 0, "children": [1]}, {"mesh": 1}])
    document["accessors"].append(empty)
    document["meshes"].append({"primitives": [{"attributes": {"POSITION": 2}}]})
    cloud = read(gltf(document, chunk))
    assert (cloud.points == SQUARE).all() and (cloud.faces == TRIANGLES).all()
    document, chunk = gltf_square()
    document["accessors"][1]["count"] = 0  # of the corners of faces
    cloud = read(gltf(document, chunk))
    assert (cloud.points == SQUARE).all() and not cloud.is_mesh


def test_an_accessor_that_replaces_no_value_is_read_as_it_is():
    document, chunk = gltf_square()
    indices, values = {"bufferView": 1, "componentType": 5123}, {"bufferView": 0}
    document["accessors"][0]["sparse"] = {"count": 0, "indices": indices, "values": values}
    assert (read(gltf(document, chunk)).points == SQUARE).all()


def test_colors_come_from_vertices_or_materials():
    document, chunk = gltf_square(meshes=primitive(material=0))
    document["materials"] = [{"pbrMetallicRoughness": {"baseColorFactor": [1, 0.5, 0, 1]}}]
    assert read(gltf(document, chunk)).face_colors.tolist() == [[1, 0.5, 0]] * 2
    document["meshes"] = [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 2}, "indices": 1}]}]
    view = {"buffer": 0, "byteOffset": 60, "byteLength": 16}
    document["bufferViews"].append(view)
    document["accessors"].append(
        {"bufferView": 2, "componentType": 5121, "normalized": True, "count": 4, "type": "VEC4"}
    )
    document["buffers"][0]["byteLength"] = 76
    colors = np.uint8([[255, 0, 0, 255], [0, 51, 0, 255], [0, 0, 102, 255], [0, 0, 0, 255]])
    np.testing.assert_allclose(read(gltf(document, chunk + colors.tobytes())).colors, colors[:, :3] / 255, atol=1e-6)


def test_sparse_accessors_replace_rows():
    document, chunk = gltf_square()
    document["bufferViews"] += [{"buffer": 0, "byteOffset": at, "byteLength": n} for at, n in ((60, 4), (64, 12))]
    document["accessors"][0]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": 2, "componentType": 5125},
        "values": {"bufferView": 3},
    }
    document["buffers"][0]["byteLength"] = 76
    chunk += np.uint32([3]).tobytes() + np.float32([7, 8, 9]).tobytes()
    assert read(gltf(document, chunk)).points[3].tolist() == [7, 8, 9]


def test_buffers_may_be_in_the_text_or_in_the_folder_but_not_outside(tmp_path):
    document, chunk = gltf_square()
    document["asset"] = {"version": "2.0"}
    (tmp_path / "models").mkdir()
    for folder in (tmp_path, tmp_path / "models"):
        (folder / "data file.bin").write_bytes(chunk)
    path = tmp_path / "models" / "square.gltf"

    def with_uri(uri):
        document["buffers"] = [{"byteLength": 60, "uri": uri}]
        path.write_text(json.dumps(document))
        return read_point_cloud(path)

    text = base64.b64encode(chunk).decode()
    inside = (
        "data%20file.bin",
        "data:application/octet-stream;base64," + text,
        "data:;base64," + text.replace("=", "%3D").replace("A", "%41"),
        "data:application/octet-stream," + "".join(f"%{byte:02x}" for byte in chunk),
    )
    for uri in inside:
        assert (with_uri(uri).points == SQUARE).all()
    outside = ("../data file.bin", str(tmp_path / "data file.bin"), "http://localhost/data.bin", "file:///etc/passwd")
    for uri in outside:
        with pytest.raises(PointCloudFileError):
            with_uri(uri)
    with pytest.raises(PointCloudFileError):
        with_uri("data:;base64,???")
    document["buffers"] = [{"byteLength": 60, "uri": "data%20file.bin"}]
    with pytest.raises(PointCloudFileError):
        read(json.dumps(document).encode(), "gltf")  # bytes have no folder


@pytest.mark.parametrize(
    "changes",
    [
        {"asset": {"version": "1.0"}},
        {"extensionsRequired": ["KHR_draco_mesh_compression"]},
        {"nodes": [{"children": [0], "mesh": 0}]},
        {"nodes": [{"mesh": -1}]},
        {"nodes": ["mesh"]},
        {"nodes": [{"mesh": 0, "matrix": [1, 2]}]},
        {"meshes": [{}]},
        {"scenes": [{"nodes": []}]},
    ],
)
def test_a_wrong_document_is_explained(changes):
    document, chunk = gltf_square(**changes)
    with pytest.raises(PointCloudFileError):
        read(gltf(document, chunk))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", 10**12),
        ("count", 10**7),
        ("count", 10**4),
        ("count", -4),
        ("type", "VEC2"),
        ("bufferView", 7),
        ("byteOffset", 1),
    ],
)
def test_a_wrong_accessor_is_explained(key, value):
    document, chunk = gltf_square()
    document["accessors"][0][key] = value
    with pytest.raises(PointCloudFileError):
        read(gltf(document, chunk))


def test_a_mesh_shown_too_often_is_refused():
    nodes = [{"children": list(range(1, 4501))}] + [{"mesh": 0}] * 4500
    document, _ = gltf_square(nodes=nodes, meshes=[{"primitives": [{"attributes": {"POSITION": 0}}]}])
    count = 4000
    document["accessors"][0]["count"] = count
    document["bufferViews"][0]["byteLength"] = document["buffers"][0]["byteLength"] = count * 12
    with pytest.raises(PointCloudFileError):
        read(gltf(document, bytes(count * 12)))


def test_a_truncated_glb_is_explained(files):
    data = (files / "bottle.glb").read_bytes()
    for length in (4, 19, 100, len(data) - 1):
        with pytest.raises(PointCloudFileError):
            read(data[:length])
    with pytest.raises(PointCloudFileError):
        read(b"solid something else")
