"""Small files of every kind that is read, cut from the real ones in tests/files, for damaging.

A seed is a file with the files that it refers to: name -> bytes, the file itself first.
"""

import base64
import io
import json
from collections.abc import Callable
from functools import partial

import numpy as np

from .builders import (
    SQUARE,
    TRIANGLES,
    colmap_binary,
    colmap_text,
    compressed_splats,
    e57,
    gltf,
    gltf_square,
    las,
    lzf,
    npy,
    npz,
    pcd,
    ply_square,
    pnts,
    ptx,
    splat_rows,
    splats,
    spz,
    stl,
    sweep,
    threemf,
    threemf_mesh,
    threemf_model,
    threemf_plate,
)
from .conftest import FILES

Seed = dict[str, bytes]
POINTS = 40
_MESH = threemf_mesh(SQUARE, TRIANGLES)


def _alone(kind: str, *contents: bytes) -> list[Seed]:
    return [{f"some.{kind}": content} for content in contents]


def _head(name: str, lines: int = POINTS) -> bytes:
    return b"".join((FILES / name).read_bytes().splitlines(keepends=True)[:lines])


def _ply_points(order: str) -> bytes:
    """The first points of a real cloud with normals and colors."""
    head, _, body = (FILES / "chair_points.ply").read_bytes().partition(b"end_header\n")
    row = [(f"f{i}", "<f4") for i in range(6)] + [(f"c{i}", "u1") for i in range(3)]
    table = np.frombuffer(body, row, POINTS)
    head = head.replace(b"vertex 1024", f"vertex {POINTS}".encode()).replace(b"binary_little_endian", order.encode())
    if order == "ascii":
        rows = "".join(" ".join(map(str, line)) + "\n" for line in table.tolist())
        return head + b"end_header\n" + rows.encode()
    if order == "binary_big_endian":
        table = table.astype([(name, kind.replace("<", ">")) for name, kind in row])
    return head + b"end_header\n" + table.tobytes()


def _vertices_and_faces() -> tuple[list[bytes], list[list[int]]]:
    """The first vertices of a real mesh, as text, and the polygons between them, counted from 0."""
    lines = _head("screwdriver.off", 10_000).splitlines()
    points, faces = (int(count) for count in lines[1].split()[:2])
    polygons = [[int(word) for word in line.split()] for line in lines[2 + points : 2 + points + faces]]
    kept = [row[1 : 1 + row[0]] for row in polygons]
    return lines[2 : 2 + POINTS], [row for row in kept if max(row) < POINTS]


def _off(*, glued: bool = False, colored: bool = False) -> bytes:
    vertices, faces = _vertices_and_faces()
    lines = [f"{'C' if colored else ''}OFF{' ' if glued else chr(10)}{len(vertices)} {len(faces)} 0".encode()]
    lines[0] = lines[0].replace(b"OFF ", b"OFF")
    lines += [vertex + b" 255 128 0 255" if colored else vertex for vertex in vertices]
    lines += [" ".join(map(str, [len(row), *row, *([255, 0, 0, 255] if colored else [])])).encode() for row in faces]
    return b"\n".join(lines) + b"\n"


def _obj(*, colored: bool = False) -> Seed:
    vertices, faces = _vertices_and_faces()
    names = [line.split()[1] for line in _head("screwdriver.mtl", 1000).splitlines() if line.startswith(b"newmtl")]
    lines = [b"# a part of a screwdriver", b"mtllib some.mtl", b"o part"]
    lines += [b"v " + vertex + (b" 0.5 0.25 1" if colored else b"") for vertex in vertices]
    if colored:
        lines += [b"vn 0 0 1"] * len(vertices)
    for number, row in enumerate(faces):
        if number % 8 == 0:
            lines.append(b"usemtl " + names[number // 8 % len(names)])
        corners = [f"{at + 1}//{at + 1}" if colored else str(at + 1 if number % 3 else at - POINTS) for at in row]
        lines.append(b"f " + " ".join(corners).encode())
    return {"some.obj": b"\n".join(lines) + b"\n", "some.mtl": (FILES / "screwdriver.mtl").read_bytes()}


def _ply_mesh(order: str) -> bytes:
    if order != "ascii":
        return ply_square(order)
    vertices, faces = _vertices_and_faces()
    head = f"ply\nformat ascii 1.0\nelement vertex {len(vertices)}\nproperty float x\nproperty float y\n"
    head += f"property float z\nelement face {len(faces)}\nproperty list uchar int vertex_indices\n"
    head += "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    rows = [" ".join(map(str, [len(row), *row, 255, 0, 9])).encode() for row in faces]
    return head.encode() + b"\n".join([*vertices, *rows]) + b"\n"


def _ragged_ply() -> bytes:
    """Binary faces of three and four corners, which cannot be read as one table."""
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(SQUARE)}\nproperty float x\nproperty float y\n"
    head += "property float z\nelement face 2\nproperty list uchar int vertex_indices\nproperty uchar flags\n"
    faces = [b"\3" + np.int32([0, 1, 2]).tobytes() + b"\1", b"\4" + np.int32([0, 1, 2, 3]).tobytes() + b"\2"]
    return head.encode() + b"end_header\n" + SQUARE.tobytes() + b"".join(faces)


def _pcd_table() -> np.ndarray:
    body = (FILES / "chair.pcd").read_bytes().partition(b"DATA binary\n")[2]
    return np.frombuffer(body, "<f4", POINTS * 4).reshape(-1, 4)


def _real_pcd(name: str, body: bytes | None = None) -> bytes:
    head, found, text = (FILES / name).read_bytes().partition(b"\nDATA ")
    kind, _, rows = text.partition(b"\n")
    kept = b"".join(rows.splitlines(keepends=True)[:POINTS]) if body is None else body
    return head.replace(b"1024", str(POINTS).encode()) + found + kind + b"\n" + kept


def _packed_pcd() -> bytes:
    columns = _pcd_table().T.tobytes() + b"\1\0\0\0" * POINTS
    packed = lzf(columns)
    sizes = np.uint32([len(packed), len(columns)]).tobytes()
    return pcd("x y z rgb label", "4 4 4 4 4", "F F F F U", sizes + packed, POINTS, "binary_compressed")


def _organized_pcd() -> bytes:
    rows = _pcd_table().copy()
    rows[::7, :3] = np.nan
    return pcd("x y z rgb", "4 4 4 4", "F F F F", rows.tobytes(), 8, HEIGHT="5")


def _stl_part(name: str) -> bytes:
    data = (FILES / name).read_bytes()
    if data.startswith(b"solid"):
        parts = data.split(b"endfacet")
        return b"endfacet".join(parts[:15]) + b"endfacet\nendsolid\n"
    return data[:80] + (20).to_bytes(4, "little") + data[84 : 84 + 20 * 50]


def _npz_part() -> bytes:
    with np.load(FILES / "chair.npz", allow_pickle=False) as archive:
        return npz(**{name: value[:POINTS] if value.ndim else value for name, value in archive.items()})


def _mesh_archive() -> bytes:
    file = io.BytesIO()
    np.savez(
        file, vertices=SQUARE.astype("f8"), faces=TRIANGLES, face_colors=np.float32([[0, 1, 0]] * 2), offset=SQUARE[1]
    )
    return file.getvalue()


def _npy_part(name: str) -> np.ndarray:
    return np.load(FILES / name, allow_pickle=False)[:POINTS]


def _named_rows() -> np.ndarray:
    rows = np.zeros(
        8, [(name, "<f8") for name in "xyz"] + [("red", "u1"), ("green", "u1"), ("blue", "u1"), ("label", "<i2")]
    )
    rows["x"], rows["label"] = np.arange(8) + 5e6, np.arange(8)
    return rows


def _rich_gltf() -> tuple[dict, bytes]:
    """A square with normals, colors of bytes, a material, a moved node and a sparse accessor."""
    document, chunk = gltf_square()
    normals = np.float32([[0, 0, 1]] * 4).tobytes()
    colors, places, values = (
        np.full((4, 4), 200, np.uint8).tobytes(),
        np.uint16([1, 3]).tobytes(),
        SQUARE[:2].tobytes(),
    )
    for piece in (normals, colors, places, values):
        chunk += b"\0" * (-len(chunk) % 4)
        document["bufferViews"].append({"buffer": 0, "byteOffset": len(chunk), "byteLength": len(piece)})
        chunk += piece
    document["accessors"] += [
        {"bufferView": 2, "componentType": 5126, "count": 4, "type": "VEC3"},
        {"bufferView": 3, "componentType": 5121, "normalized": True, "count": 4, "type": "VEC4"},
    ]
    indices, replaced = {"bufferView": 4, "componentType": 5123}, {"bufferView": 5}
    document["accessors"][0]["sparse"] = {"count": 2, "indices": indices, "values": replaced}
    document["meshes"][0]["primitives"][0]["attributes"].update(NORMAL=2, COLOR_0=3)
    document["meshes"][0]["primitives"].append({"attributes": {"POSITION": 0}, "mode": 5, "material": 0})
    document["materials"] = [{"pbrMetallicRoughness": {"baseColorFactor": [1, 0.5, 0, 1]}}]
    turned = {"rotation": [0, 0, 0.6, 0.8], "scale": [1, 2, 3], "translation": [1, 0, 0], "mesh": 0}
    document["nodes"] = [{"children": [1, 2]}, turned, {"matrix": np.eye(4).reshape(-1).tolist(), "mesh": 0}]
    document["buffers"] = [{"byteLength": len(chunk)}]
    return document, chunk


def _gltf_with_buffers() -> list[Seed]:
    seeds = []
    for document, chunk in (gltf_square(), _rich_gltf()):
        document = {"asset": {"version": "2.0"}, **document}
        for uri in ("some.bin", "data:application/octet-stream;base64," + base64.b64encode(chunk).decode()):
            document["buffers"] = [{"byteLength": len(chunk), "uri": uri}]
            seeds.append({"some.gltf": json.dumps(document).encode(), "some.bin": chunk})
    return seeds


def _splats_of(version: int) -> list[Seed]:
    generator = np.random.default_rng(version)
    points = generator.normal(size=(POINTS, 3)).astype(np.float32)
    colors, opacities = generator.integers(0, 256, (POINTS, 3)), generator.integers(0, 256, POINTS).tolist()
    if not version:
        return _alone("splat", splat_rows(points, colors, opacities))
    return _alone("spz", *(spz(points, colors, opacities, version, degree) for degree in (0, 3)))


def _compressed_splats() -> bytes:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**32, (POINTS, 4), dtype=np.uint64)
    words[:, 3] |= 255
    limits = np.repeat([0.0, 9.0, -5.0, -1.0, 0.0, 1.0], 3)[None]
    return compressed_splats(words, limits, generator.integers(0, 256, (POINTS, 9)))


def _tiles() -> list[bytes]:
    generator = np.random.default_rng(0)
    place = {"byteOffset": 0, "componentType": "FLOAT", "type": "SCALAR"}
    plain = {"POINTS_LENGTH": POINTS, "POSITION": {"byteOffset": 0}, "RGB": {"byteOffset": 12 * POINTS}}
    plain |= {"NORMAL": {"byteOffset": 15 * POINTS}}
    body = b"".join(
        values.tobytes()
        for values in (
            generator.normal(size=(POINTS, 3)).astype("<f4"),
            generator.integers(0, 256, (POINTS, 3)).astype("u1"),
            generator.normal(size=(POINTS, 3)).astype("<f4"),
        )
    )
    packed = {"POINTS_LENGTH": POINTS, "RTC_CENTER": [1e6, -4e6, 4e6], "QUANTIZED_VOLUME_OFFSET": [-5, 0, 1]}
    packed |= {"QUANTIZED_VOLUME_SCALE": [10, 20, 30], "POSITION_QUANTIZED": {"byteOffset": 0}}
    packed |= {"RGB565": {"byteOffset": 6 * POINTS}, "NORMAL_OCT16P": {"byteOffset": 8 * POINTS}}
    packed |= {"BATCH_ID": {"byteOffset": 10 * POINTS, "componentType": "UNSIGNED_BYTE"}, "BATCH_LENGTH": 5}
    bits = generator.integers(0, 256, 10 * POINTS).astype("u1").tobytes()
    ids = (np.arange(POINTS) % 5).astype("u1").tobytes()
    classes = {"Classification": [2, 6, 5, 9, 1], "Intensity": place}
    return [
        pnts(plain, body, {"Intensity": place}, np.arange(POINTS, dtype="<f4").tobytes()),
        pnts(packed, bits + ids, classes, np.arange(5, dtype="<f4").tobytes()),
    ]


def _scans() -> bytes:
    generator = np.random.default_rng(0)
    rows = np.column_stack([generator.normal(size=(20, 3)), generator.random(20), generator.integers(0, 256, (20, 3))])
    rows[::5, :3] = 0
    moved = np.eye(4)[[1, 0, 2, 3]]
    moved[3] = 10, 20, 30, 1
    return ptx((rows, np.eye(4)), (rows[:7], moved))


SEEDS: dict[str, Callable[[], list[Seed]]] = {
    "ply ascii": lambda: _alone("ply", _ply_points("ascii"), ply_square("ascii"), _ply_mesh("ascii")),
    "ply little endian": lambda: _alone(
        "ply", _ply_points("binary_little_endian"), ply_square("binary_little_endian"), _ragged_ply()
    ),
    "ply big endian": lambda: _alone("ply", _ply_points("binary_big_endian"), ply_square("binary_big_endian")),
    "obj": lambda: [_obj(), _obj(colored=True)],
    "off": lambda: _alone("off", _off(), _off(glued=True), _off(colored=True)),
    "stl ascii": lambda: _alone("stl", _stl_part("screwdriver.stl")),
    "stl binary": lambda: _alone("stl", _stl_part("lamp.stl"), stl(SQUARE[TRIANGLES])),
    "glb": lambda: _alone("glb", gltf(*gltf_square()), gltf(*_rich_gltf()), (FILES / "bottle.glb").read_bytes()),
    "gltf": _gltf_with_buffers,
    "npy": lambda: _alone("npy", npy(_npy_part("chair.npy")), npy(_npy_part("chair_xyzrgb.npy")), npy(_named_rows())),
    "npz": lambda: _alone("npz", _npz_part(), _mesh_archive()),
    "xyz": lambda: _alone("xyz", _head("chair.xyz"), b"#x y z label\n" + b"1 2 3 4\n5 6 7 8\n"),
    "asc": lambda: _alone("asc", b"//X Y Z Classification\n36\n" + b"1 2 3 4\n5 6 7 8\n" * 18, _head("chair.xyz")),
    "txt": lambda: _alone("txt", _head("chair.txt"), b"x y z red green blue\n1 2 3 0 0 255\n"),
    "csv": lambda: _alone("csv", b"x,y,z,label\r\n" + b"0.5,1e3,-2,1\r\n" * 9, _head("chair.txt")),
    "pts": lambda: _alone("pts", _head("chair.pts"), b"9\n" + b"1 2 3 -500 10 20 30\n" * 9),
    "pcd ascii": lambda: _alone("pcd", _real_pcd("chair_ascii.pcd")),
    "pcd binary": lambda: _alone("pcd", _real_pcd("chair.pcd", _pcd_table().tobytes()), _organized_pcd()),
    "pcd binary_compressed": lambda: _alone("pcd", _packed_pcd()),
    "las": lambda: _alone("las", las(False, count=POINTS)[1], las(False, 7, POINTS)[1]),
    "laz": lambda: _alone("laz", las(True)[1], las(True, 7)[1]),
    "splats": lambda: _alone("ply", splats(f_dc_1=0.5), splats(opacity=[1, -9, 0, 3], f_dc_1=0.5)),
    "compressed splats": lambda: _alone("ply", _compressed_splats()),
    "pnts": lambda: _alone("pnts", *_tiles()),
    "e57": lambda: _alone("e57", e57(), e57([(f"cartesian{axis}", 0, 999, np.arange(40)) for axis in "XYZ"])),
    "bin": lambda: _alone("bin", sweep(4, 41), sweep(5, 41), sweep(4, POINTS)),
    "kitti": lambda: _alone("kitti", sweep(4, POINTS)),
    "nuscenes": lambda: _alone("nuscenes", sweep(5, POINTS)),
    "colmap text": lambda: [*_alone("colmap", colmap_text()), {"points3D.txt": colmap_text(titled=False)}],
    "colmap binary": lambda: [*_alone("colmap", colmap_binary()), {"points3D.bin": colmap_binary()}],
    "ptx": lambda: _alone("ptx", _scans()),
    "splat": lambda: _splats_of(0),
    **{f"spz {version}": partial(_splats_of, version) for version in (1, 2, 3, 4)},
    "3mf": lambda: _alone(
        "3mf", threemf_plate(), threemf(threemf_model(f'<object id="1">{_MESH}</object>', '<item objectid="1"/>'))
    ),
}
"""Reader and variant -> whole files of it."""
