"""What a file has and a cloud cannot hold, or the other way, is told once by name; what has a place is held."""

import json
import struct
import warnings

import laspy
import numpy as np
import pytest

from hf_any3d.data.files import (
    PointCloudData,
    PointCloudFileError,
    point_cloud_bytes,
    read_point_cloud,
    write_point_cloud,
)
from tests.data.files.systems import FLAT, HEIGHTS, METRIC
from tests.errors import raises

from .builders import SQUARE, TRIANGLES, e57_of_doubles, las, npz, ply, splats, stl

FRAME = {"up_axis": "z", "meters_per_unit": 0.3048}
ROWS = "0 0 0\n2 0 0\n2 1 0\n0 1 0\n"
VERTICES = "element vertex 4\nproperty float x\nproperty float y\nproperty float z\n"


def read(data, file_type):
    """Return a cloud and all that is told of it as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cloud = read_point_cloud(data if isinstance(data, bytes) else data.encode(), file_type=file_type)
    return cloud, "\n".join(str(warning.message) for warning in caught)


def with_columns(*names):
    header = VERTICES + "\n".join(f"property float {name}" for name in names)
    body = "".join(f"{row} {' '.join(str(10 * at + column) for column in range(len(names)))}\n"
                   for at, row in enumerate(ROWS.splitlines()))  # fmt: skip
    return ply(header, body.encode(), "ascii")


@pytest.mark.parametrize(
    "columns", [("label", "class"), ("class", "label"), ("label_id", "semantic"), ("label", "sem_label")]
)
def test_a_class_counts_before_the_number_of_an_object(columns):
    cloud, told = read(with_columns(*columns), "ply")
    other = next(name for name in columns if name.startswith("label"))
    place = columns.index(next(name for name in columns if name != other))
    assert cloud.labels.tolist() == [place, 10 + place, 20 + place, 30 + place] and f"ignored: {other} " in told


def test_fields_without_a_place_are_told_and_no_others():
    pcd = "VERSION .7\nFIELDS x y z channel fpfh time _\nSIZE 4 4 4 4 4 8 1\nTYPE F F F F F F U\nCOUNT 1 1 1 1 2 1 2\n"
    pcd += "WIDTH 2\nHEIGHT 1\nPOINTS 2\nDATA ascii\n1 2 3 4 0 0 9 1 1\n4 5 6 7 0 0 9 1 1\n"
    for data, kind, left in ((with_columns("channel", "time"), "ply", ("time",)), (pcd, "pcd", ("fpfh", "time"))):
        cloud, told = read(data, kind)
        assert cloud.ring is not None and "channel" not in told and " _" not in told
        assert all(name in told for name in left)


@pytest.mark.parametrize("name", ["vertex_indexes", "vertexIndices", "vertices", "indices", "of_this_face"])
def test_faces_are_found_whatever_the_name_of_their_list(name):
    header = f"{VERTICES}element face 2\nproperty list uchar int {name}\nproperty list uchar float texcoord\n"
    header += "property int shade\nelement edge 1\nproperty int from"
    cloud, told = read(ply(header, f"{ROWS}3 0 1 2 0 5\n3 0 2 3 0 5\n1\n".encode(), "ascii"), "ply")
    assert (cloud.faces == TRIANGLES).all()
    assert all(left in told for left in ("texcoord of faces", "shade of faces", "element edge"))


def test_an_alpha_is_told_only_where_it_says_something():
    header = VERTICES + "".join(f"property uchar {name}\n" for name in ("red", "green", "blue", "alpha"))
    for last in (255, 9):
        body = "".join(f"{row} 1 2 3 {last if row.startswith('0 1') else 255}\n" for row in ROWS.splitlines())
        _, told = read(ply(header.rstrip(), body.encode(), "ascii"), "ply")
        assert ("alpha" in told) is (last == 9)


def test_colors_of_binary_stl_are_those_of_two_programs():
    def with_attributes(attributes, header=b""):
        data = bytearray(stl(SQUARE[TRIANGLES]))
        data[: len(header)] = header
        for at, value in enumerate(attributes):
            struct.pack_into("<H", data, 84 + 50 * at + 48, value)
        return bytes(data)

    flag, red, blue = 1 << 15, 31 << 10, 31
    cloud, told = read(with_attributes([flag | red, flag | blue]), "stl")  # VisCAM
    assert cloud.face_colors.tolist() == [[1, 0, 0], [0, 0, 1]] and not told
    part = b"COLOR=\xff\x00\x33\xff,MATERIAL="
    cloud, told = read(with_attributes([31, flag], part), "stl")  # Magics, where red is in the lowest bits
    np.testing.assert_allclose(cloud.face_colors, [[1, 0, 0], [1, 0, 0.2]], atol=1e-6)
    for attributes, what in (([7, 0], "attributes of facets"), ([flag | red, 0], "1 of 2 facets")):
        cloud, told = read(with_attributes(attributes), "stl")
        assert cloud.face_colors is None and what in told
    assert not read(with_attributes([0, 0]), "stl")[1]


def test_polypaint_and_statements_of_obj():
    obj = (
        "v 0 0 0\nv 2 0 0\nv 2 1 0\nv 0 1 0\n#MRGB ffff0000ff00ff00ff0000ff\n#MRGB ff333333\nf 1 2 3 4\nvt 0 0\ng a\n"
    )
    cloud, told = read(obj, "obj")
    np.testing.assert_allclose(cloud.colors, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2] * 3], atol=1e-6)
    assert not told
    cloud, told = read(obj.replace("#MRGB ff333333", "l 1 2"), "obj")
    assert cloud.colors is None and "#MRGB" in told and "'l'" in told


def test_a_face_of_millions_of_corners_is_read_within_a_few_times_its_size():
    corners = " ".join(["1 2 3"] * 400_000)
    cloud = read(f"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 3 2 1\nf {corners}\nf 1 3 2\n", "obj")[0]
    assert (
        len(cloud.faces) == 1_200_000
        and cloud.faces[0].tolist() == [2, 1, 0]
        and cloud.faces[-1].tolist() == [0, 2, 1]
    )
    assert (cloud.faces[1:4] == [[0, 1, 2], [0, 2, 0], [0, 0, 1]]).all()


def test_splats_of_two_scales_lose_their_transparent_ones():
    data = splats(opacity=[5, -9, 5, -9]).replace(b"scale_2", b"radius_")
    cloud, told = read(data, "ply")
    assert len(cloud) == 2 and "2 of 4 Gaussian splats" in told and "radius_" in told and "rot_0" not in told


def test_las_names_extra_dimensions_and_records_that_its_header_does_not_count(tmp_path):
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.add_extra_dims([laspy.ExtraBytesParams("tree", "u4"), laspy.ExtraBytesParams("height above ground", "f4")])
    scan = laspy.LasData(header)
    scan.x, scan.y, scan.z = np.random.default_rng(0).random((3, 50))
    scan.write(tmp_path / "trees.las")
    data = (tmp_path / "trees.las").read_bytes()
    assert "extra dimension tree, extra dimension height above ground" in read(data, "las")[1]
    fewer = data[:107] + struct.pack("<I", 48) + data[111:]
    cloud, told = read(fewer, "las")
    assert len(cloud) == 48 and "2 more" in told
    assert not read(las(False)[1], "las")[1]
    # Chunks of the newer formats say how many points they have.
    packed = las(True, 6)[1]
    assert not read(packed, "laz")[1]
    fewer = packed[:107] + struct.pack("<I", 150) + packed[111:247] + struct.pack("<Q", 150) + packed[255:]
    cloud, told = read(fewer, "laz")
    assert len(cloud) == 150 and "50 more" in told


@pytest.mark.parametrize(
    ("text", "unit", "told"),
    [
        (
            f'COMPD_CS["a",{METRIC},{HEIGHTS}]'.replace('2005],UNIT["meter",1]', '2005],UNIT["foot",0.3048006096]'),
            (1.0, 1200 / 3937),
            "z in units",
        ),
        (
            f'COMPD_CS["a",{FLAT},{HEIGHTS}]',
            (1200 / 3937, 1.0),
            "z in units",
        ),
        (f'COMPD_CS["a",{FLAT},{HEIGHTS}]'.replace('"meter",1', '"foot",0.3048'), 1200 / 3937, ""),
        (f'COMPD_CS["a",{METRIC},{HEIGHTS}]', 1.0, ""),
        ({1024: 1, 3072: 32632, 4096: 6360}, (1.0, 1200 / 3937), "z in units"),
        ({1024: 1, 3072: 32632, 4096: 5703, 4099: 9001}, 1.0, ""),
        ({1024: 1, 3076: 9001, 4099: 9003}, (1.0, 1200 / 3937), "z in units"),
        ({1024: 1, 3072: 2225}, 1200 / 3937, ""),
        ({1024: 1, 3072: 2225, 4096: 5703}, (1200 / 3937, 1.0), "z in units"),
        ({1024: 1, 3072: 6588, 4096: 6360}, 1200 / 3937, ""),
        ({1024: 1, 3072: 1999}, None, "no known horizontal unit"),
        ({1024: 1, 3072: 2225, 3076: 9003}, 1200 / 3937, ""),
        ({1024: 1, 3072: 2154}, 1.0, ""),
    ],
)
def test_a_tile_has_a_unit_of_its_own_for_heights(text, unit, told):
    if isinstance(text, dict):
        number, body = 34735, struct.pack("<4H", 1, 1, 0, len(text))
        body += b"".join(struct.pack("<4H", key, 0, 1, value) for key, value in text.items())
    else:
        number, body = 2112, text.encode()
    record = struct.pack("<2x16sHH32x", b"LASF_Projection\0x", number, len(body)) + body
    data = bytearray(las(False)[1])
    place, start, records = *struct.unpack_from("<HI", data, 94), struct.unpack_from("<I", data, 100)[0]
    struct.pack_into("<I", data, 96, start + len(record))
    struct.pack_into("<I", data, 100, records + 1)
    cloud, said = read(bytes(data[:place] + record + data[place:]), "las")
    expected = unit if isinstance(unit, tuple) else (unit, None)
    assert (cloud.meters_per_unit, cloud.meters_per_height) == expected and (told in said if told else not said)


def test_e57_has_normals_and_names_fields_of_extensions():
    xyz = {f"cartesian{axis}": SQUARE[:, at] for at, axis in enumerate("XYZ")}
    normals = dict(zip(("normalX", "normalY", "normalZ"), np.float64([[0] * 4, [0] * 4, [1] * 4]), strict=True))
    cloud, told = read(e57_of_doubles(xyz | normals | {"classification": np.arange(4), "echo": np.arange(4)}), "e57")
    assert cloud.normals.tolist() == [[0, 0, 1]] * 4 and cloud.labels.tolist() == [0, 1, 2, 3]
    assert "ignored: echo " in told


def test_all_that_a_file_has_too_much_is_one_warning_with_each_reason_once():
    lines = ["ply", "format ascii 1.0", "comment TextureFile wood.png", "element vertex 1"]
    lines += [f"property float {name}" for name in ("x", "y", "z", "echo")]
    lines += ["element face 1", "property list uchar int vertex_indices", "property float quality"]
    lines += ["element edge 1", "property int vertex1", "end_header", "0 0 0 1", "3 0 0 0 1", "0"]
    with pytest.warns(UserWarning, match="ignored") as caught:
        read_point_cloud("\n".join(lines).encode(), file_type="ply")
    message = str(caught.pop(UserWarning).message)
    assert message.endswith(
        "ignored: quality of faces, echo, element edge (a point cloud cannot store them); "
        "texture 'wood.png' (textures are not used)"
    )
    assert not any("ignored" in str(warning.message) for warning in caught)


def test_gltf_names_what_is_not_drawn_as_points_or_triangles():
    positions = SQUARE.tobytes()
    document = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": 48, "uri": "data:," + "".join(f"%{byte:02x}" for byte in positions)}],
        "bufferViews": [{"buffer": 0, "byteLength": 48}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 1}]}],
    }
    with raises(PointCloudFileError, naming="no points or triangles"):
        read(json.dumps(document), "gltf")
    document["meshes"][0]["primitives"].append({"attributes": {"POSITION": 0, "_HEAT": 0, "TEXCOORD_0": 0}, "mode": 0})
    cloud, told = read(json.dumps(document), "gltf")
    assert len(cloud) == 4 and "lines" in told and "_HEAT" in told and "TEXCOORD" not in told
    draco = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    document["meshes"][0]["primitives"] = [{"attributes": {"POSITION": 0}, "extensions": draco}]
    document["accessors"][0].pop("bufferView")
    with raises(PointCloudFileError, naming="KHR_draco_mesh_compression"):
        read(json.dumps(document), "gltf")


@pytest.mark.parametrize("file_type", ["npz", "ply", "obj"])
def test_up_axis_and_unit_are_written_and_read(file_type, tmp_path):
    path = tmp_path / f"a.{file_type}"
    write_point_cloud(path, PointCloudData(SQUARE, **FRAME))
    cloud, told = read(path.read_bytes(), file_type)
    assert (cloud.up_axis, cloud.meters_per_unit) == tuple(FRAME.values()) and not told
    plain, told = read(point_cloud_bytes(PointCloudData(SQUARE), file_type), file_type)
    assert plain.up_axis is None and plain.meters_per_unit is None and not told


def test_what_obj_has_no_place_for_is_told():
    cloud = PointCloudData(
        SQUARE, labels=np.arange(4), faces=TRIANGLES, face_colors=np.eye(3)[:2], intensity=np.ones(4), ring=np.ones(4)
    )
    with pytest.warns(UserWarning, match="ignored: labels, intensity, ring, face_colors "):
        point_cloud_bytes(cloud, "obj")
    for file_type in ("ply", "npz"):
        back, told = read(point_cloud_bytes(cloud, file_type), file_type)
        assert not told and back.labels.tolist() == [0, 1, 2, 3] and (back.face_colors == cloud.face_colors).all()


def test_arrays_of_an_archive_that_are_not_read_are_named():
    told = read(npz(points=SQUARE, velocity=SQUARE, up_axis=np.array("forward"), note=np.array("a")), "npz")[1]
    assert all(name in told for name in ("velocity", "up_axis", "note"))
