"""Whole scenes of glTF: nodes that move each other, strips and fans, strided buffers, normals and colors."""

import json
import struct

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud
from tests.errors import raises

from .builders import SQUARE, gltf, gltf_square, srgb

POINTS = np.float32([[1, 2, 3], [4, -5, 6], [-7, 8, 9], [10, 11, -12], [0.5, 0.25, 4]])
NORMALS = np.float32([[0, 0, 1], [0, 1, 0], [0.6, 0.8, 0], [-1, 0, 0], [0, 0, 0]])
COLORS = np.uint8([[255, 0, 51, 9], [0, 102, 0, 8], [0, 0, 153, 7], [204, 255, 255, 6], [51, 51, 0, 5]])


def read(document: dict, chunk: bytes = b""):
    return read_point_cloud(gltf(document, chunk), file_type="glb")


def table(*columns: np.ndarray) -> bytes:
    """Interleave the rows of several arrays, as one buffer view with a stride."""
    return b"".join(b"".join(column[row].tobytes() for column in columns) for row in range(len(columns[0])))


def scene(**changes) -> tuple[dict, bytes]:
    """A document whose points, normals and colors alternate in a buffer, behind seven bytes of something else."""
    rows = table(POINTS, NORMALS, COLORS)
    order = np.uint8([0, 1, 2, 3, 4, 1, 0])
    chunk = b"1234567x" + rows + order.tobytes()
    view = {"buffer": 0, "byteOffset": 8, "byteLength": len(rows), "byteStride": 28}
    accessor = {"bufferView": 0, "count": 5, "componentType": 5126, "type": "VEC3"}
    document = {
        "scene": 1,
        "scenes": [{"nodes": [3]}, {"nodes": [2, 0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}, "indices": 3}]}],
        "accessors": [
            accessor,
            {**accessor, "byteOffset": 12},
            {**accessor, "byteOffset": 24, "componentType": 5121, "type": "VEC4", "normalized": True},
            {"bufferView": 1, "count": 7, "componentType": 5121, "type": "SCALAR"},
        ],
        "bufferViews": [view, {"buffer": 0, "byteOffset": 8 + len(rows), "byteLength": 7}],
        "buffers": [{"byteLength": len(chunk)}],
    }
    return {**document, **changes}, chunk


@pytest.mark.parametrize(
    ("changes", "count"), [({"scene": 0}, 1), ({"scenes": []}, 2), ({"nodes": []}, 1), ({"scene": 2}, 0)]
)
def test_the_scene_decides_which_meshes_are_shown(changes, count):
    nodes = [{"children": [1]}, {"children": [2]}, {"mesh": 0}, {"mesh": 0}]
    document, chunk = scene(**{"nodes": nodes, "scenes": [{"nodes": [3]}, {"nodes": [0, 3]}], **changes})
    if not count:
        with pytest.raises(PointCloudFileError):
            read(document, chunk)
        return
    assert len(read(document, chunk)) == 5 * count
    del document["scene"]
    assert len(read(document, chunk)) == 5 * count


@pytest.mark.parametrize(
    ("mode", "with_indices", "expected"),
    [
        (4, True, [[0, 1, 2], [3, 4, 1]]),
        (5, True, [[0, 1, 2], [2, 1, 3], [2, 3, 4], [4, 3, 1], [4, 1, 0]]),
        (6, True, [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1], [0, 1, 0]]),
        (4, False, [[0, 1, 2]]),
        (5, False, [[0, 1, 2], [2, 1, 3], [2, 3, 4]]),
        (6, False, [[0, 1, 2], [0, 2, 3], [0, 3, 4]]),
        (0, False, None),
        (0, True, None),
    ],
)
def test_corners_become_triangles_by_the_mode(mode, with_indices, expected):
    primitive = {"attributes": {"POSITION": 0}, "mode": mode} | ({"indices": 3} if with_indices else {})
    document, chunk = scene(scene=0, scenes=[{"nodes": [0]}], meshes=[{"primitives": [primitive]}])
    cloud = read(document, chunk)
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert cloud.faces is None if expected is None else cloud.faces.tolist() == expected
    assert cloud.colors is None and cloud.normals is None


@pytest.mark.parametrize("flat", [(1, 1, 0), (0, 2, 3)])
def test_normals_of_what_is_flattened_are_left_out(flat):
    document, chunk = scene(scene=0, scenes=[{"nodes": [0]}], nodes=[{"mesh": 0, "scale": flat}])
    cloud = read(document, chunk)
    np.testing.assert_allclose(cloud.points, POINTS * flat)
    assert cloud.normals is None and cloud.colors is not None


def with_materials(materials: list, primitives: list) -> tuple[dict, bytes]:
    document, chunk = gltf_square(materials=materials, meshes=[{"primitives": primitives}])
    colors = np.uint16([[65535, 0, 13107], [0, 26214, 0], [0, 0, 39321], [52428, 65535, 0]]).tobytes()
    document["bufferViews"].append({"buffer": 0, "byteOffset": 60, "byteLength": 24})
    document["accessors"].append(
        {"bufferView": 2, "componentType": 5123, "normalized": True, "count": 4, "type": "VEC3"}
    )
    document["buffers"] = [{"byteLength": 84}]
    return document, chunk + colors


PLAIN, COLORED = {"attributes": {"POSITION": 0}, "indices": 1}, {"attributes": {"POSITION": 0, "COLOR_0": 2}}
RED = {"pbrMetallicRoughness": {"baseColorFactor": [1, 0.25, 0, 0.5]}}
GLOSSY = {
    "extensions": {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [0, 0.5, 0, 1]}},
    "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}},
}
OF_VERTICES = np.array([[1, 0, 0.2], [0, 0.4, 0], [0, 0, 0.6], [0.8, 1, 0]])


@pytest.mark.parametrize(
    ("materials", "primitives", "colors", "face_colors"),
    [
        ([RED], [{**PLAIN, "material": 0}], None, [[1, 0.25, 0]] * 2),
        ([RED, {}], [{**PLAIN, "material": 0}, {**PLAIN, "material": 1}], None, [[1, 0.25, 0]] * 2 + [[1, 1, 1]] * 2),
        ([RED], [{**PLAIN, "material": 0}, PLAIN], None, None),
        ([{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}], [{**PLAIN, "material": 0}], None, None),
        (
            [{"pbrMetallicRoughness": {"baseColorFactor": [2, -1, 0.5, 1]}}],
            [{**PLAIN, "material": 0}],
            None,
            [[1, 0, 0.5]] * 2,
        ),
        ([RED], [{**PLAIN, **COLORED}], OF_VERTICES, None),
        ([RED], [{**PLAIN, **COLORED, "material": 0}], OF_VERTICES * [1, 0.25, 0], None),
        (
            [RED],
            [{**PLAIN, **COLORED, "material": 0}, {**PLAIN, "material": 0}],
            np.concatenate([OF_VERTICES * [1, 0.25, 0], [[1, 0.25, 0]] * 4]),
            None,
        ),
        (
            [RED],
            [{**COLORED, "mode": 0}, {**PLAIN, "material": 0}],
            np.concatenate([OF_VERTICES, [[1, 0.25, 0]] * 4]),
            None,
        ),
        ([GLOSSY], [{**PLAIN, "material": 0}], None, [[0, 0.5, 0]] * 2),
        ([GLOSSY], [{**PLAIN, **COLORED, "material": 0}], OF_VERTICES * [0, 0.5, 0], None),
        ([{"extensions": {"KHR_techniques_webgl": {"technique": 0}}}], [{**PLAIN, "material": 0}], None, None),
        ([RED], [{"attributes": {"POSITION": 0}, "material": 0, "mode": 0}], [[1, 0.25, 0]] * 4, None),
    ],
)
def test_colors_are_those_of_all_vertices_or_else_of_all_materials(materials, primitives, colors, face_colors):
    cloud = read(*with_materials(materials, primitives))
    np.testing.assert_array_equal(cloud.points, np.tile(SQUARE, (len(primitives), 1)))
    for found, expected in ((cloud.colors, colors), (cloud.face_colors, face_colors)):
        if expected is None:
            assert found is None
        else:
            np.testing.assert_allclose(found, srgb(np.array(expected)), atol=1e-6)


@pytest.mark.parametrize(
    ("primitives", "why"),
    [
        ([{**PLAIN, **COLORED}, PLAIN], "ignored: .*colors .1 of 2 parts have none"),
        ([{**PLAIN, "material": 0}, PLAIN, PLAIN], "ignored: .*colors .2 of 3 parts have none"),
        ([{**PLAIN, "material": 0}, {**PLAIN, "material": 1}], "ignored: .*colors .1 of 2 parts have none"),
        ([{"attributes": {"POSITION": 0, "NORMAL": 0}}, PLAIN], "ignored: .*normals .1 of 2 parts have none"),
    ],
)
def test_what_only_some_parts_have_is_left_out_with_a_warning(primitives, why):
    document, chunk = with_materials([RED, {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}], primitives)
    with pytest.warns(UserWarning, match=why):
        cloud = read(document, chunk)
    assert cloud.colors is None and cloud.face_colors is None and cloud.normals is None


@pytest.mark.parametrize(
    ("names", "is_read"),
    [
        ("KHR_mesh_quantization KHR_accessor_float64 KHR_node_visibility EXT_mesh_gpu_instancing", True),
        ("KHR_materials_unlit KHR_materials_variants KHR_materials_pbrSpecularGlossiness FB_materials_modmap", True),
        ("KHR_texture_transform KHR_texture_basisu EXT_texture_webp MSFT_texture_dds EXT_image_webp", True),
        ("KHR_lights_punctual EXT_lights_image_based EXT_lights_ies MOZ_lightmap KHR_animation_pointer", True),
        ("KHR_xmp KHR_xmp_json_ld KHR_audio_emitter KHR_interactivity KHR_node_selectability MSFT_lod VRM", True),
        ("EXT_mesh_features EXT_instance_features EXT_structural_metadata CESIUM_primitive_outline", True),
        ("KHR_physics_rigid_bodies KHR_implicit_shapes KHR_gaussian_splatting VRMC_vrm VRMC_materials_mtoon", True),
        ("KHR_draco_mesh_compression", False),
        ("EXT_meshopt_compression", False),
        ("KHR_gaussian_splatting_compression_spz", False),
        ("EXT_mesh_primitive_restart", False),
        ("EXT_primitive_voxels", False),
        ("AGI_articulations", False),
        ("FRAUNHOFER_external_model", False),
        ("EXAMPLE_unknown", False),
    ],
)
def test_extensions_that_a_file_requires_are_refused_if_they_change_its_points(names, is_read):
    for name in names.split():
        document, chunk = gltf_square(extensionsRequired=[name], extensionsUsed=[name])
        if is_read:
            assert len(read(document, chunk)) == 4
        else:
            with raises(PointCloudFileError, naming=name):
                read(document, chunk)


def test_a_sparse_table_without_a_view_starts_as_zeros():
    document, chunk = gltf_square()
    for piece in (np.uint8([1, 3]).tobytes() + b"--", np.float32([[7, 8, 9], [4, 5, 6]]).tobytes()):
        document["bufferViews"].append({"buffer": 0, "byteOffset": len(chunk), "byteLength": len(piece)})
        chunk += piece
    document["buffers"] = [{"byteLength": len(chunk)}]
    indices, values = {"bufferView": 2, "componentType": 5121}, {"bufferView": 3}
    document["accessors"][0]["sparse"] = {"count": 2, "indices": indices, "values": values}
    del document["accessors"][0]["bufferView"]
    assert read(document, chunk).points.tolist() == [[0, 0, 0], [7, 8, 9], [0, 0, 0], [4, 5, 6]]
    del document["accessors"][0]["sparse"]
    with pytest.raises(PointCloudFileError):
        read(document, chunk)


@pytest.mark.parametrize(
    ("component", "values", "expected"),
    [
        (5120, np.int8([[127, 0, -127], [-128, 64, 1]]), [[1, 0, -1], [-1, 64 / 127, 1 / 127]]),
        (5122, np.int16([[32767, 0, 5], [-32768, -32767, 1]]), [[1, 0, 5 / 32767], [-1, -1, 1 / 32767]]),
        (5121, np.uint8([[255, 0, 51], [1, 2, 3]]), [[1, 0, 0.2], [1 / 255, 2 / 255, 3 / 255]]),
        (5126, np.float32([[2, 3, 4], [5, 6, 7]]), [[2, 3, 4], [5, 6, 7]]),
    ],
)
def test_normalized_integers_are_at_most_one(component, values, expected):
    accessor = {"bufferView": 0, "componentType": component, "count": 2, "type": "VEC3", "normalized": True}
    document = {
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 0}]}],
        "accessors": [accessor],
        "bufferViews": [{"buffer": 0, "byteLength": values.nbytes}],
        "buffers": [{"byteLength": values.nbytes}],
    }
    np.testing.assert_allclose(read(document, values.tobytes()).points, expected, atol=1e-6)
    del accessor["normalized"]
    np.testing.assert_array_equal(read(document, values.tobytes()).points, values)


@pytest.mark.parametrize(
    ("at", "key", "value"),
    [
        ("accessors", "count", 5),
        ("accessors", "byteOffset", 4),
        ("accessors", "componentType", 5124),
        ("accessors", "type", "MAT4"),
        ("bufferViews", "byteStride", 8),
        ("bufferViews", "byteStride", 13),
        ("bufferViews", "byteOffset", 13),
        ("bufferViews", "buffer", 1),
        ("bufferViews", "buffer", True),
        ("bufferViews", "byteOffset", True),
        ("buffers", "uri", "missing.bin"),
    ],
)
def test_what_does_not_fit_is_explained(at, key, value):
    document, chunk = gltf_square()
    document[at][0][key] = value
    with pytest.raises(PointCloudFileError):
        read(document, chunk)


@pytest.mark.parametrize("component", [5120, 5122, 5126])
def test_indices_are_unsigned_and_below_the_number_of_points(component):
    document, chunk = gltf_square()
    document["accessors"][1] |= {"componentType": component, "count": 3}
    with pytest.raises(PointCloudFileError):
        read(document, chunk)
    document, chunk = gltf_square()
    with pytest.raises(PointCloudFileError):
        read(document, chunk[:-2] + b"\4\0")


def chunks(*parts: tuple[bytes, bytes], length: int | None = None, version: int = 2) -> bytes:
    body = b"".join(struct.pack("<I4s", len(part), kind) + part for kind, part in parts)
    return struct.pack("<4sII", b"glTF", version, 12 + len(body) if length is None else length) + body


def test_the_first_two_chunks_of_a_binary_file_count():
    document, chunk = gltf_square(asset={"version": "2.0"})
    text = json.dumps(document).encode()
    expected = read(document, chunk).points
    for data in (
        chunks((b"JSON", text), (b"BIN\0", chunk)),
        chunks((b"JSON", text), (b"BIN\0", chunk), (b"BIN\0", bytes(60))),
        chunks((b"JSON", text), (b"BIN\0", chunk)) + b"more",
    ):
        for file_type in ("glb", "gltf"):
            np.testing.assert_array_equal(read_point_cloud(data, file_type=file_type).points, expected)
    whole = chunks((b"JSON", text), (b"BIN\0", chunk))
    for data in (
        chunks((b"BIN\0", chunk), (b"JSON", text)),
        chunks((b"JSON", text), (b"OTHR", chunk)),
        chunks((b"JSON", text)),
        chunks((b"JSON", text), version=1),
        chunks((b"JSON", text), length=10**6),
        chunks(length=12) + bytes(8),
        whole[:19],
        whole[:12] + struct.pack("<I", 10**6) + whole[16:],
    ):
        with pytest.raises(PointCloudFileError):
            read_point_cloud(data, file_type="glb")


def test_colors_of_floats_are_clamped_and_never_bytes():
    document, chunk = gltf_square()
    document["accessors"].append({"bufferView": 2, "componentType": 5126, "count": 4, "type": "VEC3"})
    document["bufferViews"].append({"buffer": 0, "byteOffset": len(chunk), "byteLength": 48})
    document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"] = 2
    colors = np.float32([[200, 0.5, 0.25], [0, 0, 1.002], [0.5, -1, 0], [1, 1, 1]])
    document["buffers"][0]["byteLength"] = len(chunk) + 48
    found = read(document, chunk + colors.tobytes()).colors
    np.testing.assert_allclose(found, srgb(colors.clip(0, 1)), atol=1e-6)


@pytest.mark.parametrize(("component", "dtype"), [(5126, "<f4"), (5123, "<u2")])
def test_colors_are_those_that_another_format_has(component, dtype):
    """A program that writes a scan to PLY and to glTF stores sRGB in one and linear numbers in the other."""
    stored = np.arange(256) / 255
    linear = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    values = linear.astype("<f4") if component == 5126 else np.rint(linear * 65535).astype(dtype)
    points = np.random.default_rng(0).random((256, 3)).astype("<f4").tobytes()
    colors = np.repeat(values, 3).tobytes()
    document = {
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": 0}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 256, "type": "VEC3"},
            {"bufferView": 1, "componentType": component, "normalized": True, "count": 256, "type": "VEC3"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": len(points)},
            {"buffer": 0, "byteOffset": len(points), "byteLength": len(colors)},
        ],
        "buffers": [{"byteLength": len(points) + len(colors)}],
    }
    cloud = read(document, points + colors)
    np.testing.assert_allclose(cloud.colors, np.repeat(stored[:, None], 3, axis=1), atol=2e-4)
    # As PLY, which is in sRGB, it has the bytes of the scan.
    assert (np.rint(cloud.colors[:, 0] * 255) == np.arange(256)).all()
