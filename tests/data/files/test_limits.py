"""Limits of one file: they apply to every reader, and small files cannot allocate much."""

import io
import os
import struct
import zipfile

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, ReadLimits, gltf as gltf_reader, read_point_cloud, source
from tests.errors import raises

from .builders import SQUARE, gltf, gltf_square, npy, ply
from .seeds import POINTS, SEEDS

READ = list(SEEDS)


@pytest.fixture
def reading(tmp_path):
    """Write files, the first to be read, and read it."""

    def read(files, **limits):
        if isinstance(files, tuple):
            files = {files[0]: files[1]}
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return read_point_cloud(tmp_path / next(iter(files)), limits=ReadLimits(**limits) if limits else None)

    return read


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*ignored")
@pytest.mark.parametrize("name", READ)
def test_every_reader_respects_the_limits_and_names_the_one_exceeded(name, reading, monkeypatch):
    for seed in SEEDS[name]():
        cloud = reading(seed)
        counts = {"points": len(cloud), "faces": len(cloud.faces) if cloud.is_mesh else 0}
        counts["bytes"] = sum(map(len, seed.values()))
        for limit, count in counts.items():
            if count < 2:
                continue
            with pytest.raises(PointCloudFileError, match=rf"\w+\.\w+: \d+ {limit}; at most 1 are read .*{limit}=…"):
                reading(seed, **{limit: 1})
            if limit != "bytes":
                # Points that are left out count, and so do lines of comments.
                with_more = {"little", "binary", "splats", "splat", "spz", "ptx", "txt", "xyz", "pts", "csv"}
                more = POINTS if with_more & {*name.split()} else 0
                assert len(reading(seed, **{limit: count + more})) == len(cloud)
            monkeypatch.setenv("HF_ANY3D_READ_LIMITS", f"{limit}=1")
            with pytest.raises(PointCloudFileError, match=f"{limit}; at most 1 are read"):
                reading(seed)
            monkeypatch.delenv("HF_ANY3D_READ_LIMITS")


def test_limits_are_whole_numbers_and_the_variable_names_them(monkeypatch):
    monkeypatch.setenv("HF_ANY3D_READ_LIMITS", " points=5, expansion=7,")
    assert ReadLimits.current() == ReadLimits(points=5, expansion=7)
    for text in ("points", "points=many", "dots=5", "points=1e9"):
        monkeypatch.setenv("HF_ANY3D_READ_LIMITS", text)
        with pytest.raises((TypeError, ValueError)):
            ReadLimits.current()


@pytest.mark.slow
def test_a_scan_of_millions_of_points_still_opens(reading):
    points = np.random.default_rng(0).random((3_000_000, 3), np.float32)
    header = "element vertex 3000000\nproperty float x\nproperty float y\nproperty float z"
    np.testing.assert_array_equal(reading(("scan.ply", ply(header, points.tobytes()))).points, points)
    assert ReadLimits().points >= 50_000_000 and ReadLimits().bytes >= 1 << 32


@pytest.fixture
def little_free(monkeypatch):
    """Files are compared with what they expand to from a kilobyte on, not only from 128 MB."""
    monkeypatch.setattr(source, "FREE_BYTES", 1000)


def test_primitives_that_share_one_table_are_counted_before_any_is_created(reading, little_free):
    document, _ = gltf_square()
    corners = 1_200
    document["meshes"] = [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}] * 20}]
    document["accessors"][1] = {"bufferView": 1, "componentType": 5121, "count": corners, "type": "SCALAR"}
    document["bufferViews"][1] = {"buffer": 0, "byteOffset": 48, "byteLength": corners}
    document["buffers"] = [{"byteLength": 48 + corners}]
    with pytest.raises(PointCloudFileError, match=r"some\.glb: \d+ times the \d+ bytes of the file; at most 32"):
        reading(("some.glb", gltf(document, SQUARE.tobytes() + bytes(corners))))
    document["meshes"][0]["primitives"] = document["meshes"][0]["primitives"][:2]
    assert len(reading(("some.glb", gltf(document, SQUARE.tobytes() + bytes(corners)))).faces) == corners // 3 * 2


def test_a_scene_of_very_many_small_parts_is_refused(reading, monkeypatch):
    monkeypatch.setattr(gltf_reader, "_MAX_PARTS", 30)
    document, chunk = gltf_square(meshes=[{"primitives": [{"attributes": {"POSITION": 2}}] * 31}])
    document["accessors"].append({**document["accessors"][0], "count": 0})
    with pytest.raises(PointCloudFileError, match="more than 30 parts"):
        reading(("some.glb", gltf(document, chunk)))


def test_a_table_of_normals_longer_than_its_points_is_not_read(reading):
    document, chunk = gltf_square(meshes=[{"primitives": [{"attributes": {"POSITION": 0, "NORMAL": 2}}]}])
    document["accessors"].append({**document["accessors"][0], "count": 3})
    with pytest.raises(PointCloudFileError, match="4 points and 3 values of NORMAL"):
        reading(("some.glb", gltf(document, chunk)))


def test_an_obj_that_names_thousands_of_files_is_refused(reading):
    names = b"".join(b"mtllib %d.mtl\n" % number for number in range(3000))
    with pytest.raises(PointCloudFileError, match="refers to more than 256 files"):
        reading(("some.obj", names + b"v 1 2 3\n"))


def test_referenced_files_count_as_bytes(reading):
    files = {"some.obj": b"mtllib some.mtl\nv 1 2 3\nv 1 2 4\n", "some.mtl": b"newmtl a\n" + b"#" * 1000}
    with pytest.raises(PointCloudFileError, match="1009 bytes; at most 500 are read"):
        reading(files, bytes=500)


KINDS = [("uchar", "B"), ("char", "b"), ("ushort", "H"), ("uint", "I"), ("int", "i")]


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("kind, code", KINDS)
def test_lists_of_any_lengths_between_numbers_are_read(order, kind, code, reading):
    generator = np.random.default_rng(0)
    # Along a parabola, so that all polygons are convex
    points = np.arange(100)[:, None] ** [1, 2, 0]
    polygons = [sorted(generator.integers(0, 100, generator.integers(0, 7)).tolist()) for _ in range(200)]
    others = [generator.integers(0, 99, generator.integers(0, 3)).tolist() for _ in polygons]
    header = "element vertex 100\nproperty float x\nproperty float y\nproperty float z\nelement face 200\n"
    header += f"property uchar flags\nproperty list {kind} int vertex_indices\nproperty float weight\n"
    header += f"property list {kind} uchar more\nproperty ushort number"
    if order == "ascii":
        rows = [[7, len(face), *face, 0.5, len(more), *more, 9] for face, more in zip(polygons, others, strict=True)]
        body = "".join(" ".join(map(str, row)) + "\n" for row in [*points.tolist(), *rows]).encode()
    else:
        sign = "<" if "little" in order else ">"
        body = points.astype(f"{sign}f4").tobytes()
        for face, more in zip(polygons, others, strict=True):
            form = f"{sign}B{code}{len(face)}if{code}{len(more)}BH"
            body += struct.pack(form, 7, len(face), *face, 0.5, len(more), *more, 9)
    cloud = reading(("some.ply", ply(header, body, order)))
    assert cloud.faces.tolist() == [[own[0], *own[n : n + 2]] for own in polygons for n in range(1, len(own) - 1)]
    for cut in (1, len(body) // 2):
        with raises(PointCloudFileError, naming="line" if order == "ascii" else "cut off"):
            reading(
                ("some.ply", ply(header, body[:-cut].rpartition(b" ")[0] if order == "ascii" else body[:-cut], order))
            )


@pytest.mark.slow
def test_millions_of_empty_lists_take_little_more_memory_than_the_file(reading):
    import tracemalloc

    count = 100_000
    header = "element vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    header += f"element face {count}\nproperty list uchar int vertex_indices"
    for first in (0, 1):  # all of one length, and not
        body = SQUARE.tobytes() + bytes([first]) + bytes(4 * first) + bytes(count - 1)
        tracemalloc.start()
        assert not reading(("some.ply", ply(header, body))).is_mesh
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 80 * count


def test_a_laz_that_unpacks_to_much_more_is_refused(reading, little_free):
    import laspy

    header = laspy.LasHeader(point_format=0, version="1.2")
    cloud = laspy.LasData(header)
    cloud.x = cloud.y = cloud.z = np.zeros(5000)
    file = io.BytesIO()
    file.close = lambda: None
    cloud.write(file, do_compress=True)
    with pytest.raises(PointCloudFileError, match=r"some\.laz: \d+ times the \d+ bytes of the file; at most 32"):
        reading(("some.laz", file.getvalue()))


def test_an_archive_that_unpacks_to_much_more_is_refused_before_it_is_unpacked(reading, little_free):
    zeros = npy(np.zeros((5000, 3), np.float32))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("points.npy", zeros)
        archive.writestr("normals.npy", zeros)
        archive.writestr("colors.npy", zeros)
    with pytest.raises(PointCloudFileError, match=r"some\.npz: \d+ times the \d+ bytes of the file; at most 32"):
        reading(("some.npz", file.getvalue()))


def test_a_compressed_pcd_that_unpacks_to_much_more_is_refused_before_it_is_unpacked(reading, little_free):
    references = b"\x00\x00" + b"\xe0\xff\x00" * 600
    count = (1 + 264 * 600) // 12
    header = f"VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH {count}\nHEIGHT 1\nDATA binary_compressed\n"
    content = header.encode() + struct.pack("<II", len(references), 12 * count) + references
    with pytest.raises(PointCloudFileError, match=r"some\.pcd: \d+ times the \d+ bytes of the file; at most 32"):
        reading(("some.pcd", content))


def test_one_polygon_of_very_many_corners_is_cut_within_bounds(reading):
    corners = 100_000
    header = "element vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 1\nproperty list uint uchar vertex_indices"
    body = SQUARE.tobytes() + struct.pack("<I", corners) + (bytes(range(4)) * corners)[:corners]
    assert len(reading(("some.ply", ply(header, body))).faces) == corners - 2
    with pytest.raises(PointCloudFileError, match="99998 faces; at most 1000 are read"):
        reading(("some.ply", ply(header, body)), faces=1000)


@pytest.mark.parametrize("fields", ["x y z x", "x y z f0 x", "x x:1 y z x"])
def test_a_pcd_that_declares_a_field_twice_is_refused(fields, reading):
    count = len(fields.split())
    header = (
        f"VERSION 0.7\nFIELDS {fields}\nSIZE {'4 ' * count}\nTYPE {'F ' * count}\nWIDTH 2\nHEIGHT 1\nDATA binary\n"
    )
    with raises(PointCloudFileError, naming="two columns are called 'x'; rename one"):
        reading(("some.pcd", header.encode() + bytes(8 * count)))


def test_a_file_whose_name_is_not_utf8_is_named_in_printable_text(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff\xe9.ply")
    with open(path, "wb") as file:
        file.write(b"ply\n")
    with raises(PointCloudFileError, naming="udce9.ply") as raised:
        read_point_cloud(os.fsdecode(path))
    str(raised.value).encode()
