"""Inputs that once failed without one clear error, and counts that are impossible for the size of the file."""

import json
import struct
from importlib import import_module

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudError, PointCloudFileError, ReadLimits, read_point_cloud
from hf_any3d.data.files.hdf5 import open_hdf5
from hf_any3d.data.files.text_numbers import integers
from hf_any3d.registry import FORMATS
from tests.fuzz.damage import bounded, traced

from .builders import SQUARE, gltf, gltf_square, las, npy, npz, pcd, ply, stl

# Far more than the files hold and limits allow, and yet little enough for any other reader.
HUGE, LIMITS = 10**6, ReadLimits(points=10**5, faces=10**5)
# Imported here, so that what imports take is not counted.
for module in set(FORMATS.values()):
    import_module(f"hf_any3d.data.files.{module}")


def read(path, content):
    path.write_bytes(content)
    with bounded(megabytes=64) as begin, traced() as peak:
        begin()
        try:
            return read_point_cloud(path, limits=LIMITS)
        finally:
            assert peak() < 1 << 20


NAMES_OF_ANY_BYTES = {
    "a.npz": npz(**{"\x1b[31mpoints": SQUARE, "\x1bothers": SQUARE, "colors": SQUARE / 2}),
    "a.pcd": b"VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\n" + b"v\x8c\x00\x9c" * 400 + b" 1\nDATA binary\n",
    "b.pcd": pcd("\x07x y z", "4 4 4", "F F F", SQUARE.tobytes(), 4),
    "a.ply": ply("element " + "\x1bvertex" * 300 + " 4\nproperty float x", SQUARE.tobytes()),
    "b.ply": ply("element vertex 4\nproperty float " + "x\x01" * 900, SQUARE.tobytes()),
    "a.txt": b"x y z\x00"[:5] + b" label\x02" + b"a" * 3000 + b"\n1 2 3\n",
    "a.npy": npy(np.zeros(4, [("\x1bx", "f4"), ("y" * 3000, "f4"), ("z", "f4")])),
}


@pytest.mark.parametrize("name", NAMES_OF_ANY_BYTES)
def test_names_in_a_file_are_short_and_printable_in_errors(name, tmp_path):
    with pytest.raises(PointCloudFileError) as raised:
        read(tmp_path / name, NAMES_OF_ANY_BYTES[name])
    text = str(raised.value)
    assert text.isprintable() and len(text) < 400 + len(str(tmp_path))


def test_an_hdf5_file_with_names_of_any_bytes_is_one_clear_error(tmp_path):
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["\x1b[31m" + "a" * 3000] = SQUARE
    with pytest.raises(PointCloudFileError) as raised:
        with open_hdf5(tmp_path / "a.h5", ["data"]):
            pass
    assert str(raised.value).isprintable() and len(str(raised.value)) < 400 + len(str(tmp_path))


def test_signalling_nans_of_glb_are_an_error_without_a_warning(tmp_path):
    document, chunk = gltf_square()
    with pytest.raises(PointCloudFileError):
        read(tmp_path / "a.glb", gltf(document, struct.pack("<I", 0x7F800001) + chunk[4:]))


def huge_gltf():
    document, chunk = gltf_square()
    document["accessors"][0]["count"] = document["bufferViews"][0]["byteLength"] = HUGE
    return document, chunk


def huge_las(compressed):
    data = bytearray(las(compressed, 7, 40)[1])
    data[247:255] = HUGE.to_bytes(8, "little")
    return bytes(data)


HUGE_COUNTS = {
    "ascii.ply": ply(f"element vertex {HUGE}\nproperty float x", b"1\n", "ascii"),
    "binary.ply": ply(f"element vertex {HUGE}\nproperty float x", bytes(64)),
    "without_properties.ply": ply(f"element other {HUGE}\nelement vertex 1\nproperty float x", bytes(64)),
    "list.ply": ply(
        "element vertex 1\nproperty float x\nelement face 1\nproperty list uint uint vertex_indices",
        bytes(4) + struct.pack("<I", HUGE) + bytes(64),
    ),
    "a.off": f"OFF\n{HUGE} {HUGE} 0\n0 0 0\n".encode(),
    "corners.off": f"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n{HUGE} 0 1 2\n".encode(),
    "a.obj": f"v 0 0 0\nf 1 1 {HUGE}\n".encode(),
    "a.stl": stl(SQUARE[:3][None])[:80] + struct.pack("<I", HUGE) + bytes(50),
    "a.glb": gltf(*huge_gltf()),
    "a.gltf": json.dumps({"asset": {"version": "2.0"}, **huge_gltf()[0]}).encode(),
    "a.npy": npy(SQUARE).replace(b"(4, 3), }" + b" " * 6, b"(%d, 3), }" % HUGE),
    "ascii.pcd": pcd("x y z", "4 4 4", "F F F", b"1 2 3\n", HUGE, "ascii"),
    "binary.pcd": pcd("x y z", "4 4 4", "F F F", bytes(120), HUGE),
    "packed.pcd": pcd("x y z", "4 4 4", "F F F", struct.pack("<III", 4, 12 * HUGE, 0), HUGE, "binary_compressed"),
    "a.pts": f"{HUGE}\n1 2 3\n".encode(),
    "a.las": huge_las(False),
    "a.laz": huge_las(True),
}


@pytest.mark.parametrize("name", HUGE_COUNTS)
def test_declared_counts_beyond_the_file_are_refused_before_memory_is_taken(name, tmp_path):
    with pytest.raises(PointCloudFileError):
        read(tmp_path / name, HUGE_COUNTS[name])


def test_a_vertex_of_text_stl_with_a_comment_sign_is_named(tmp_path):
    facet = b"facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex # 1 0\nvertex 1 1 0\nendloop\nendfacet\n"
    with pytest.raises(PointCloudFileError):
        read(tmp_path / "a.stl", b"solid a\n" + facet + b"endsolid a\n")


def test_numbers_of_half_precision_are_whole_or_refused_without_a_warning(recwarn):
    assert integers(np.array([3, 2048], np.float16), "class").tolist() == [3, 2048]
    with pytest.raises(PointCloudError):
        integers(np.array([0.5], np.float16), "class")
    assert not recwarn.list


def test_a_blank_last_line_is_not_a_face(tmp_path):
    with pytest.raises(PointCloudFileError):
        read(tmp_path / "a.off", b"OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n ")
