"""What is no damage is not called so: clouds without points, newer versions; and what is, such as negative counts."""

import gzip
import io
import json
import struct
import zipfile

import numpy as np
import pytest

from hf_any3d.data.files import NoPointsError, PointCloudFileError, read_point_cloud
from hf_any3d.registry import FORMATS
from tests.errors import raises

from . import builders
from .builders import SQUARE

NONE = np.zeros((0, 3), np.float32)
XYZ = "property float x\nproperty float y\nproperty float z"
COLORED = f"{XYZ}\nproperty uchar red\nproperty uchar green\nproperty uchar blue\nproperty int label"
FACES = "element face 0\nproperty list uchar int vertex_indices"
FIELDS = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]


def las(version, point_format, *, compressed=False):
    import laspy

    file = builders._KeptFile()
    laspy.LasData(laspy.LasHeader(version=version, point_format=point_format)).write(file, do_compress=compressed)
    return file.getvalue()


def glb(**document):
    return builders.gltf({"asset": {"version": "2.0"}, **document}, b"")


def empty_files():
    """Files without points as programs write them: (type, bytes)."""
    for version, point_format in (("1.2", 3), ("1.4", 7), ("1.5", 6), ("1.5", 10)):
        for kind in ("las", "laz"):
            yield kind, las(version, point_format, compressed=kind == "laz")
    for order in ("ascii", "binary_little_endian", "binary_big_endian"):
        for header in (XYZ, COLORED, f"{XYZ}\n{FACES}"):
            yield "ply", builders.ply(f"element vertex 0\n{header}", b"", order)
    yield "ply", builders.ply(f"element points 0\n{XYZ}", b"")
    yield "ply", builders.splats().replace(b"vertex 4", b"vertex 0").partition(b"end_header\n")[0] + b"end_header\n"
    yield "ply", builders.compressed_splats(np.zeros((0, 4)), np.zeros((0, 18)))
    for kind, body in (("ascii", b""), ("binary", b""), ("binary_compressed", struct.pack("<II", 0, 0))):
        yield "pcd", builders.pcd("x y z rgb label", "4 4 4 4 4", "F F F U U", body, 0, kind)
    yield "e57", builders.e57([(f"cartesian{axis}", 0, 9, np.zeros(0, int)) for axis in "XYZ"])
    yield "npy", builders.npy(NONE)
    yield "npy", builders.npy(np.zeros(0))
    yield "npy", builders.npy(np.zeros(0, FIELDS))
    yield "npz", builders.npz(points=NONE)
    yield "npz", builders.npz(points=NONE, colors=NONE, normals=NONE, labels=np.zeros(0, int), intensity=np.zeros(0))
    yield "stl", builders.stl(np.zeros((0, 3, 3)))
    yield "stl", b"solid a\nendsolid a\n"
    yield "obj", b"# nothing\no a\n"
    yield "off", b"OFF\n0 0 0\n"
    yield "off", b"COFF\n0 0 0\n"
    yield "glb", glb()
    yield "glb", glb(scenes=[{"nodes": [0]}], scene=0, nodes=[{"name": "a"}])
    yield "gltf", json.dumps({"asset": {"version": "2.0"}}).encode()
    yield "3mf", builders.threemf(builders.threemf_model("", ""))
    for version in (1, 2, 3, 4):
        yield "spz", builders.spz(NONE, np.zeros((0, 3), int), [], version, 0)
    for kind in ("xyz", "txt", "asc", "csv", "pts"):
        yield from ((kind, text) for text in (b"x y z\n", b"x,y,z,red,green,blue,label\n", b"\n\n", b"# x y z\n"))
    yield "pts", b"0\n"
    yield "ptx", builders.ptx((np.zeros((0, 7)), np.eye(4)))
    yield "colmap", b"# 3D point list\n#   POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]\n# Number of points: 0\n"
    yield "colmap", struct.pack("<Q", 0)
    for features in (None, {"POINTS_LENGTH": 0}, {"POINTS_LENGTH": 0, "POSITION": {"byteOffset": 0}}):
        yield "pnts", builders.pnts(features, b"")


EMPTY = list(empty_files())


def test_all_formats_have_files_without_points():
    # Of bare rows such a file has no bytes.
    assert {kind for kind, _ in EMPTY} == {*FORMATS} - {"bin", "kitti", "nuscenes", "splat"}


@pytest.mark.parametrize(("kind", "data"), EMPTY, ids=[kind for kind, _ in EMPTY])
def test_a_cloud_without_points_says_so_by_its_own_error(kind, data, tmp_path):
    path = tmp_path / f"tile.{kind}"
    path.write_bytes(data)
    with pytest.raises(NoPointsError, match="no points") as told:
        read_point_cloud(path, file_type=kind)
    assert isinstance(told.value, PointCloudFileError)
    assert str(told.value).startswith(f"{path}: ") and "damaged" not in str(told.value)


def changed(data, at, form, *values):
    data = bytearray(data)
    struct.pack_into(form, data, at, *values)
    return bytes(data)


def npz_of(array):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("points.npy", array)
    return file.getvalue()


def without_bytes(value: object) -> str | None:
    """Name a case by its words alone."""
    return "data" if isinstance(value, bytes) else None


las_12, laz_14, array = builders.las(False)[1], builders.las(True, 7)[1], builders.npy(SQUARE)
spz_3, spz_4 = (builders.spz(SQUARE, np.zeros((4, 3), int), [255] * 4, version, 0) for version in (3, 4))


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("las", changed(las_12, 25, "<B", 6), "LAS 1.6; versions 1.0 to 1.5"),
        ("las", changed(las_12, 24, "<BB", 2, 0), "LAS 2.0; versions 1.0 to 1.5"),
        ("laz", changed(laz_14, 25, "<B", 9), "LAS 1.9; versions"),
        ("las", changed(las_12, 104, "<B", 11), "point"),
        ("e57", builders.paged(changed(builders.e57(is_paged=False), 8, "<I", 2)), "version 2.0; version 1"),
        ("npy", changed(array, 6, "<B", 4), "version 4.0 of the format; 1.0 to 3.0"),
        ("npz", npz_of(changed(array, 6, "<B", 4)), "array 'points' has version 4.0"),
        ("spz", changed(spz_4, 4, "<I", 5), "version 5; versions 1 to 4"),
        ("spz", gzip.compress(changed(gzip.decompress(spz_3), 4, "<I", 7), mtime=0), "version 7"),
        ("glb", builders.gltf({"asset": {"version": "3.0"}}, b""), "glTF version '3.0'"),
        ("pnts", builders.pnts({"POINTS_LENGTH": 1}, b"", version=2), "version 2 of point cloud tiles; version 1 is"),
    ],
    ids=without_bytes,
)
def test_a_newer_version_is_named_and_is_no_damage(kind, data, words):
    with raises(PointCloudFileError, naming=words) as told:
        read_point_cloud(data, file_type=kind)
    assert "damaged" not in str(told.value) and "cut off" not in str(told.value)


points_pcd = builders.pcd("x y z", "4 4 4", "F F F", SQUARE.tobytes(), 4, COUNT="1 1 1", POINTS="4")
unpacked_spz = gzip.decompress(spz_3)
e57 = builders.e57(is_paged=False)


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        *(("ply", builders.ply(f"element vertex -4\n{XYZ}", body, order), "'vertex' is '-4'")
          for order, body in (("ascii", b""), ("binary_little_endian", SQUARE.tobytes()))),
        ("ply", builders.ply(f"element vertex 4\n{XYZ}\n{FACES.replace('0', '-1')}", SQUARE.tobytes()), "is '-1'"),
        *(("pcd", points_pcd.replace(f"{key} {value}".encode(), f"{key} -{value}".encode()), f"{key} is '-")
          for key, value in (("WIDTH", 4), ("HEIGHT", 1), ("POINTS", 4), ("COUNT", 1), ("SIZE", 4))),
        ("off", b"OFF\n-3 0 0\n0 0 0\n", "-3"),
        ("e57", builders.paged(e57.replace(b'recordCount="40"', b'recordCount="-4"')), "recordCount of a scan is -4"),
        *(("npy", array.replace(b"(4, 3), }  ", f"{shape}, }}".encode()[:11].ljust(11)), "no negative number")
          for shape in ("(-1, 3)", "(-4, 3)", "(4, -1)")),
        ("npz", npz_of(array.replace(b"(4, 3), } ", b"(-4, 3), }")), "array 'points' declares the shape (-4, 3)"),
        ("las", changed(las_12, 107, "<i", -1), "declares 4,294,967,295 points, and the file has 200"),
        ("spz", gzip.compress(changed(unpacked_spz, 8, "<i", -1), mtime=0), "4294967295 points; at most"),
        ("stl", changed(builders.stl(SQUARE[None, :3]), 80, "<i", -1), "at most"),
        ("colmap", b"\xff" * 8 + builders.colmap_binary()[8:], "18446744073709551615 points need"),
        ("ptx", builders.ptx((np.ones((4, 7)), np.eye(4))).replace(b"4", b"-4", 1), "number of columns of a scan, is"),
        ("pnts", builders.pnts({"POINTS_LENGTH": -4, "POSITION": {"byteOffset": 0}}, SQUARE.tobytes()),
         "POINTS_LENGTH is '-4'"),
    ],
    ids=without_bytes,
)  # fmt: skip
def test_a_negative_count_is_refused_by_its_name(kind, data, words):
    with raises(PointCloudFileError, naming=words):
        read_point_cloud(data, file_type=kind)


BLACK = np.zeros((4, 3), np.uint8)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("npy", builders.npy(np.array([(*row, 0, 0, 0) for row in SQUARE.tolist()], FIELDS))),
        ("npz", builders.npz(points=SQUARE, colors=BLACK)),
        ("ply", builders.ply("element vertex 4\n" + XYZ + COLORED[len(XYZ) : -19],
                             b"".join(row.tobytes() + b"\0\0\0" for row in SQUARE))),
        ("pcd", builders.pcd("x y z rgb", "4 4 4 4", "F F F U", np.c_[SQUARE, np.zeros(4, "f4")].tobytes(), 4)),
        ("pnts", builders.pnts({"POINTS_LENGTH": 4, "POSITION": {"byteOffset": 0}, "RGB": {"byteOffset": 48}},
                               SQUARE.tobytes() + bytes(12))),
    ],
)  # fmt: skip
def test_colors_that_are_zero_everywhere_are_none_and_told_of(kind, data):
    with pytest.warns(UserWarning, match=r"ignored: .* \(zero everywhere\)"):
        assert read_point_cloud(data, file_type=kind).colors is None
