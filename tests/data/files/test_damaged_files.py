"""Damaged at random, a file of any type gives a sound cloud or one clear error, in bounded memory."""

import tracemalloc
import warnings
import zlib

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud

from .builders import SQUARE, TRIANGLES, gltf, gltf_square, las, lzf, npy, npz, pcd, ply_square, stl
from .conftest import FILES

PIECES = [b"-1", b"99999999999", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"0", b"nan", b"1e300", b" ", b"\n"]
ROUNDS = 250


def _square_archive() -> bytes:
    return npz(points=SQUARE, faces=TRIANGLES, colors=SQUARE / 2, normals=SQUARE)


def _packed_pcd() -> bytes:
    body = np.arange(300, dtype=np.float32).tobytes()
    packed = lzf(body)
    sizes = np.uint32([len(packed), len(body)]).tobytes()
    return pcd("x y z", "4 4 4", "F F F", sizes + packed, 100, "binary_compressed")


def _head(name: str, lines: int) -> bytes:
    return b"".join((FILES / name).read_bytes().splitlines(keepends=True)[:lines])


SEEDS = {
    "chair.npy": lambda: (FILES / "chair.npy").read_bytes(),
    "colours.npy": lambda: npy(np.hstack([SQUARE, SQUARE / 2])),
    "chair.npz": lambda: (FILES / "chair.npz").read_bytes(),
    "square.npz": _square_archive,
    "ascii.ply": lambda: ply_square("ascii"),
    "little.ply": lambda: ply_square("binary_little_endian"),
    "big.ply": lambda: ply_square("binary_big_endian"),
    "chair_points.ply": lambda: (FILES / "chair_points.ply").read_bytes(),
    "screwdriver.ply": lambda: (FILES / "screwdriver.ply").read_bytes(),
    "chair.pcd": lambda: (FILES / "chair.pcd").read_bytes(),
    "ascii.pcd": lambda: (FILES / "chair_ascii.pcd").read_bytes(),
    "packed.pcd": _packed_pcd,
    "screwdriver.obj": lambda: (FILES / "screwdriver.obj").read_bytes(),
    "screwdriver.off": lambda: (FILES / "screwdriver.off").read_bytes(),
    "screwdriver.stl": lambda: (FILES / "screwdriver.stl").read_bytes(),
    "square.stl": lambda: stl(SQUARE[TRIANGLES]),
    "bottle.glb": lambda: (FILES / "bottle.glb").read_bytes(),
    "square.glb": lambda: gltf(*gltf_square()),
    "chair.txt": lambda: _head("chair.txt", 40),
    "chair.xyz": lambda: _head("chair.xyz", 40),
    "plain.las": lambda: las(False)[1],
    "packed.laz": lambda: las(True)[1],
    "layered.laz": lambda: las(True, 7)[1],
}


def damage(data: bytes, generator: np.random.Generator, kind: int) -> bytes:
    """Cut off, change bytes at the start or anywhere, take out a part, or write a telling piece over it."""
    changed = bytearray(data)
    size = len(changed)
    if kind == 0:
        return data[: generator.integers(size)]
    if kind in (1, 2):
        for _ in range(generator.integers(1, 6)):
            changed[generator.integers(min(size, 300) if kind == 1 else size)] = generator.integers(256)
    elif kind == 3:
        start = generator.integers(size)
        del changed[start : start + generator.integers(1, 64)]
    else:
        at = generator.integers(min(size, 500))
        changed[at : at + generator.integers(0, 5)] = PIECES[generator.integers(len(PIECES))]
    return bytes(changed)


@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_file_gives_a_sound_cloud_or_one_clear_error(name):
    data, kind = SEEDS[name](), name.partition(".")[2]
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    assert len(read_point_cloud(data, file_type=kind)), "the seed itself must read"
    clouds = errors = 0
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            for i in range(ROUNDS):
                damaged = damage(data, generator, i % 5)
                tracemalloc.reset_peak()
                try:
                    cloud = read_point_cloud(damaged, file_type=kind)
                except PointCloudFileError as error:
                    errors += 1
                    assert str(error).startswith("<") and len(str(error)) < 400
                else:
                    clouds += 1
                    assert np.isfinite(cloud.points).all() and cloud.points.dtype == np.float32
                    if cloud.is_mesh:
                        assert 0 <= cloud.faces.min() and cloud.faces.max() < len(cloud)
                assert tracemalloc.get_traced_memory()[1] < 20e6 + 200 * len(data), i
    finally:
        tracemalloc.stop()
    assert clouds + errors == ROUNDS and errors > ROUNDS // 10
