"""Small files of many kinds, written without the readers' own code."""

import gzip
import io
import json
import struct
import zipfile

import numpy as np

SQUARE = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]], np.float32)
TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]])


def npy(array: np.ndarray, **kwargs) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def ply(header: str, body: bytes, order: str = "binary_little_endian") -> bytes:
    return f"ply\nformat {order} 1.0\n{header}\nend_header\n".encode() + body


def ply_square(order: str) -> bytes:
    """A square as one polygon of four corners, with labels and colors, in the given byte order."""
    header = (
        "element vertex 4\nproperty float x\nproperty double y\nproperty float z\nproperty ushort label\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\n"
        "element face 1\nproperty list uchar uint vertex_indices"
    )
    rows = [(*map(float, point), i, 51 * i, 0, 255) for i, point in enumerate(SQUARE)]
    if order == "ascii":
        lines = [f"{x} {y} {z} {label} {r} {g} {b}" for x, y, z, label, r, g, b in rows]
        return ply(header, ("\n".join(lines) + "\n4 0 1 2 3\n").encode(), order)
    sign = {"binary_little_endian": "<", "binary_big_endian": ">"}[order]
    body = b"".join(struct.pack(sign + "fdfHBBB", *row) for row in rows)
    return ply(header, body + struct.pack(sign + "B4I", 4, 0, 1, 2, 3), order)


def stl(triangles: np.ndarray) -> bytes:
    rows = b"".join(struct.pack("<12fH", 0, 0, 0, *triangle.reshape(-1), 0) for triangle in triangles)
    return b"\0" * 80 + struct.pack("<I", len(triangles)) + rows


def paged(logical: bytes) -> bytes:
    """Divide the content of an E57 file into pages with checksums, of which it gets the number in its header."""
    logical += b"\0" * (-len(logical) % 1020)
    size = len(logical) // 1020 * 1024
    logical = logical[:16] + struct.pack("<Q", size) + logical[24:]
    pages = (logical[at : at + 1020] for at in range(0, len(logical), 1020))
    return b"".join(page + struct.pack(">I", _crc32c(page)) for page in pages)


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def e57(fields: list[tuple[str, int, int, np.ndarray]] | None = None, *, is_paged: bool = True) -> bytes:
    """A file of one scan: fields of integers (name, lowest, highest, values), or by default 40 points of doubles."""
    if fields is None:
        xyz = np.random.default_rng(0).normal(size=(40, 3))
        kinds = [f'<cartesian{axis} type="Float"/>' for axis in "XYZ"]
        streams, count = [xyz[:, i].astype("<f8").tobytes() for i in range(3)], 40
    else:
        kinds = [f'<{name} type="Integer" minimum="{low}" maximum="{high}"/>' for name, low, high, _ in fields]
        streams, count = [], len(fields[0][3])
        for _, low, high, values in fields:
            width = (high - low).bit_length()
            together = sum((int(value) - low) << width * place for place, value in enumerate(values))
            streams.append(together.to_bytes((width * count + 7) // 8, "little"))
    head = struct.pack(f"<{len(streams)}H", *map(len, streams))
    packet = struct.pack("<H", len(streams)) + head + b"".join(streams)
    packet += b"\0" * (-(len(packet) + 4) % 4)
    packet = struct.pack("<BBH", 1, 0, len(packet) + 3) + packet
    section = struct.pack("<B7xQQQ", 1, 32 + len(packet), 80, 0) + packet
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><e57Root type="Structure" '
        'xmlns="http://www.astm.org/COMMIT/E57/2010-e57-v1.0"><data3D type="Vector"><vectorChild type="Structure">'
        f'<points type="CompressedVector" fileOffset="48" recordCount="{count}"><prototype type="Structure">'
        f"{''.join(kinds)}</prototype></points></vectorChild></data3D></e57Root>"
    ).encode()
    place = 48 + len(section)
    header = struct.pack("<8sIIQQQQ", b"ASTM-E57", 1, 0, 0, place // 1020 * 1024 + place % 1020, len(xml), 1024)
    logical = header + section + xml
    return paged(logical) if is_paged else logical


def e57_of_doubles(columns: dict[str, np.ndarray]) -> bytes:
    """A file of one scan of doubles, by the names of its fields."""
    least, most = -(2**63), 2**63 - 1
    # `e57` counts integers from the least one on, so that the stored ones are the bits of doubles.
    bits = {name: np.asarray(values, np.float64).view(np.uint64).tolist() for name, values in columns.items()}
    logical = e57([(name, least, most, [n + least for n in own]) for name, own in bits.items()], is_paged=False)
    old, new = f'type="Integer" minimum="{least}" maximum="{most}"'.encode(), b'type="Float"'
    size = struct.unpack_from("<Q", logical, 32)[0] - (len(old) - len(new)) * len(columns)
    logical = logical.replace(old, new)
    return paged(logical[:32] + struct.pack("<Q", size) + logical[40:])


def splats(**terms: float | list[float]) -> bytes:
    """Four Gaussian splats, as programs for them write them."""
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "f_rest_0", "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0"]
    rows = np.zeros((4, len(names)), "<f4")
    rows[:, :3] = np.arange(12).reshape(4, 3)
    for name, values in terms.items():
        rows[:, names.index(name)] = values
    return ply("element vertex 4\n" + "\n".join(f"property float {name}" for name in names), rows.tobytes())


def sweep_rows(columns: int, count: int) -> np.ndarray:
    """Rows (count, columns) of a scanner on a car: x, y, z and intensity, of five columns also the ring."""
    generator = np.random.default_rng(count)
    xyz = generator.normal(size=(count, 3)) * [20, 20, 1] - [0, 0, 1.5]
    rest = [generator.random(count)] if columns == 4 else [generator.integers(256, size=count), np.arange(count) % 32]
    return np.column_stack([xyz, *rest]).astype("<f4")


def sweep(columns: int, count: int) -> bytes:
    return sweep_rows(columns, count).tobytes()


def pcd(fields: str, sizes: str, types: str, body: bytes, count: int, kind: str = "binary", **header: str) -> bytes:
    lines = {"VERSION": "0.7", "FIELDS": fields, "SIZE": sizes, "TYPE": types, "WIDTH": str(count), "HEIGHT": "1"}
    lines.update(header)
    return "".join(f"{key} {value}\n" for key, value in lines.items()).encode() + f"DATA {kind}\n".encode() + body


def lzf(data: bytes) -> bytes:
    """Compress with plain runs and references to the same eight bytes, wherever they last stood."""
    out, plain, last, at = bytearray(), bytearray(), {}, 0

    def flush():
        for start in range(0, len(plain), 32):
            piece = plain[start : start + 32]
            out.append(len(piece) - 1)
            out.extend(piece)
        plain.clear()

    while at < len(data):
        seen = last.get(data[at : at + 8])
        last[data[at : at + 8]] = at
        if seen is None or at - seen > 8191 or at + 8 > len(data):
            plain.append(data[at])
            at += 1
            continue
        flush()
        length = 8
        while length < 264 and at + length < len(data) and data[seen + length] == data[at + length]:
            length += 1
        distance = at - seen - 1
        out.append((min(length - 2, 7) << 5) | distance >> 8)
        out.extend((length - 9, distance & 255) if length > 8 else (distance & 255,))
        at += length
    flush()
    return bytes(out)


def srgb(linear: np.ndarray) -> np.ndarray:
    """Colors as screens and scanners have them, for the linear ones of glTF."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def gltf(document: dict, chunk: bytes = b"") -> bytes:
    """A .glb of a document and its binary chunk."""
    text = json.dumps({"asset": {"version": "2.0"}, **document}).encode()
    text += b" " * (-len(text) % 4)
    chunk += b"\0" * (-len(chunk) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(chunk), b"BIN\0") + chunk
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def gltf_square(**changes) -> tuple[dict, bytes]:
    """A document of one square, and its bytes; `changes` replace its top keys."""
    chunk = SQUARE.tobytes() + TRIANGLES.astype("<u2").tobytes()
    document = {
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 6, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 48},
            {"buffer": 0, "byteOffset": 48, "byteLength": 12},
        ],
        "buffers": [{"byteLength": 60}],
    }
    return {**document, **changes}, chunk


def las(compressed: bool, point_format: int = 2, count: int = 200) -> tuple[np.ndarray, bytes]:
    """Coordinates (count, 3) float64 as of a map projection, and a file of them with classes and colors."""
    import laspy

    header = laspy.LasHeader(point_format=point_format, version="1.4" if point_format > 5 else "1.2")
    header.scales, header.offsets = np.full(3, 0.001), np.array([5e5, 5e6, 0])
    cloud = laspy.LasData(header)
    generator = np.random.default_rng(0)
    cloud.x, cloud.y, cloud.z = (generator.random((count, 3)) * 10 + header.offsets).T
    if point_format not in (0, 1, 4, 6, 9):
        cloud.red, cloud.green, cloud.blue = generator.integers(0, 65536, (3, count))
    cloud.classification = np.arange(count) % 7
    cloud.intensity = np.arange(count) * 300 % 65536
    file = _KeptFile()
    cloud.write(file, do_compress=compressed)
    return np.asarray(cloud.xyz), file.getvalue()


class _KeptFile(io.BytesIO):
    """laspy closes what it wrote to."""

    def close(self):
        pass


COLMAP_POINTS = np.array([[0.5, -1.25, 3.0], [1e3 + 1e-9, 2.0, -0.125], [4.0, 5.0, 6.5]])
COLMAP_COLORS = np.array([[255, 0, 10], [1, 2, 3], [0, 128, 255]], np.uint8)
_TRACKS = [[(1, 7), (2, 9)], [], [(5, 0), (1, 1), (4, 4)]]


def colmap_text(*, titled: bool = True) -> bytes:
    """Three points with tracks of different lengths."""
    lines = ["# 3D point list with one line of data per point:"] * titled
    lines += ["#   POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"] * titled
    lines += ["# Number of points: 3, mean track length: 1.6667"] * titled
    for number, (xyz, rgb, track) in enumerate(zip(COLMAP_POINTS, COLMAP_COLORS, _TRACKS, strict=True), 11):
        row = [number, *xyz.tolist(), *rgb.tolist(), 0.5, *(value for pair in track for value in pair)]
        lines.append(" ".join(map(repr, row)))
    return "\n".join([*lines, ""]).encode()


def colmap_binary() -> bytes:
    """The same points in COLMAP's binary form."""
    rows = []
    for number, (xyz, rgb, track) in enumerate(zip(COLMAP_POINTS, COLMAP_COLORS, _TRACKS, strict=True), 11):
        rows.append(struct.pack("<Q3d3BdQ", number, *xyz, *rgb, 0.5, len(track)))
        rows += [struct.pack("<2i", *pair) for pair in track]
    return struct.pack("<Q", len(_TRACKS)) + b"".join(rows)


def ptx(*scans: tuple[np.ndarray, np.ndarray]) -> bytes:
    """Scans, each of rows `x y z intensity (red green blue)` and a transform (4, 4) of rows of points."""
    lines = []
    for rows, transform in scans:
        lines += [str(len(rows)), "1", "0 0 0", "1 0 0", "0 1 0", "0 0 1"]
        lines += [" ".join(map(repr, row)) for row in transform.tolist()]
        lines += [f"{x!r} {y!r} {z!r} {' '.join(f'{value:g}' for value in more)}" for x, y, z, *more in rows.tolist()]
    return "\r\n".join([*lines, ""]).encode()


def splat_rows(points: np.ndarray, colors: np.ndarray, opacities: list[int]) -> bytes:
    """Splats as web viewers load them."""
    rows = zip(points, colors, opacities, strict=True)
    return b"".join(struct.pack("<6f8B", *xyz, 1, 1, 1, *rgb, alpha, 128, 128, 128, 255) for xyz, rgb, alpha in rows)


def spz_content(points: np.ndarray, colors: np.ndarray, opacities: list[int], version: int = 3, degree: int = 1):
    """Header and parts of splats as SPZ packs them, with 12 bits of fractions."""
    count = len(points)
    if version == 1:
        places = points.astype("<f2").tobytes()
    else:
        whole = np.rint(points * 4096).astype(int).reshape(-1).tolist()
        places = b"".join((value % 2**24).to_bytes(3, "little") for value in whole)
    turns = bytes(count * (3 if version < 3 else 4))
    harmonics = bytes([128]) * (count * (0, 9, 24, 45, 72)[degree])
    parts = [places, bytes(opacities), np.asarray(colors, np.uint8).tobytes(), bytes(3 * count), turns, harmonics]
    header = struct.pack("<4sIIBB", b"NGSP", version, count, degree, 0 if version == 1 else 12)
    return header, [part for part in parts if part]


def spz(points: np.ndarray, colors: np.ndarray, opacities: list[int], version: int = 3, degree: int = 1) -> bytes:
    """A file of splats of a version of SPZ."""
    header, parts = spz_content(points, colors, opacities, version, degree)
    if version < 4:
        return gzip.compress(header + bytes(2) + b"".join(parts), mtime=0)
    import pyarrow

    streams = [pyarrow.compress(part, codec="zstd", asbytes=True) for part in parts]
    table = [struct.pack("<QQ", len(stream), len(part)) for stream, part in zip(streams, parts, strict=True)]
    header += struct.pack("<BBI12x", 0, len(parts), 32)
    return header + b"".join([*table, *streams])


_3MF = 'xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"'
_3MF_MORE = (
    'xmlns:m="http://schemas.microsoft.com/3dmanufacturing/material/2015/02" '
    'xmlns:p="http://schemas.microsoft.com/3dmanufacturing/production/2015/06"'
)


def threemf_model(resources: str, items: str, unit: str | None = "centimeter") -> str:
    """A model of 3MF."""
    named = "" if unit is None else f' unit="{unit}"'
    head = f'<?xml version="1.0" encoding="UTF-8"?><model{named} {_3MF} {_3MF_MORE}>'
    return f"{head}<resources>{resources}</resources><build>{items}</build></model>"


def threemf_mesh(points: np.ndarray, faces: np.ndarray, more: list[str] | None = None) -> str:
    """A mesh of 3MF, with further attributes of its triangles."""
    vertices = "".join(f'<vertex x="{x}" y="{y}" z="{z}"/>' for x, y, z in points.tolist())
    rows = zip(faces.tolist(), more or [""] * len(faces), strict=True)
    triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}" {own}/>' for (a, b, c), own in rows)
    return f"<mesh><vertices>{vertices}</vertices><triangles>{triangles}</triangles></mesh>"


def threemf(model: str, **others: str) -> bytes:
    """A package of 3MF with a model, and others in files of their names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        relation = 'Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"'
        archive.writestr(
            "_rels/.rels", f'<Relationships><Relationship {relation} Target="/3D/a.model"/></Relationships>'
        )
        archive.writestr("3D/a.model", model)
        for name, content in others.items():
            archive.writestr(f"3D/Objects/{name}.model", content)
    return file.getvalue()


def threemf_plate() -> bytes:
    """A square with colors of its triangles, twice, once as a component of another package's file."""
    colors = '<basematerials id="5"><base name="red" displaycolor="#FF0000"/></basematerials>'
    colors += '<m:colorgroup id="6"><m:color color="#0000FFFF"/><m:color color="#00FF0080"/></m:colorgroup>'
    mesh = threemf_mesh(SQUARE, TRIANGLES, ["", 'pid="6" p1="1"'])
    group = '<object id="2"><components><component objectid="1" p:path="/3D/Objects/square.model" '
    group += 'transform="0 1 0 -1 0 0 0 0 1 10 0 0"/></components></object>'
    square = f'{colors}<object id="1" pid="5" pindex="0">{mesh}</object>'
    items = '<item objectid="2" transform="2 0 0 0 2 0 0 0 2 0 0 1"/><item objectid="1"/>'
    return threemf(threemf_model(square + group, items), square=threemf_model(square, ""))


def pnts(features: dict, body: bytes, batches: dict | None = None, rows: bytes = b"", version: int = 1) -> bytes:
    """A point cloud tile of 3D Tiles with a feature table and a batch table, each JSON and a binary body."""
    texts = [b"" if table is None else json.dumps(table).encode() for table in (features, batches)]
    texts = [text + b" " * (-len(text) % 8) for text in texts]
    bodies = [each + b"\0" * (-len(each) % 8) for each in (body, rows)]
    parts = [texts[0], bodies[0], texts[1], bodies[1]]
    size = 28 + sum(map(len, parts))
    return struct.pack("<4s6I", b"pnts", version, size, *map(len, parts)) + b"".join(parts)


def compressed_splats(
    words: np.ndarray, chunks: np.ndarray, harmonics: np.ndarray | None = None, order: str = "binary_little_endian"
) -> bytes:
    """Splats as SuperSplat compresses them: words (splats, 4) of 32 bits, and 12 or 18 limits of each chunk of 256."""
    limits = [f"{end}_{name}" for prefix in ("", "scale_") for end in ("min", "max") for name in _of(prefix)]
    limits += [f"{end}_{name}" for end in ("min", "max") for name in "rgb"] * (chunks.shape[1] > 12)
    header = f"element chunk {len(chunks)}\n" + "".join(f"property float {name}\n" for name in limits)
    header += f"element vertex {len(words)}"
    header += "".join(f"\nproperty uint packed_{name}" for name in ("position", "rotation", "scale", "color"))
    if harmonics is not None:
        header += f"\nelement sh {len(harmonics)}"
        header += "".join(f"\nproperty uchar f_rest_{place}" for place in range(harmonics.shape[1]))
    tables = [chunks.astype("<f4"), words.astype("<u4"), *([] if harmonics is None else [harmonics.astype("u1")])]
    if order == "ascii":
        return ply(
            header, "".join(" ".join(map(repr, row)) + "\n" for t in tables for row in t.tolist()).encode(), order
        )
    if order == "binary_big_endian":
        tables = [table.astype(table.dtype.newbyteorder(">")) for table in tables]
    return ply(header, b"".join(table.tobytes() for table in tables), order)


def _of(prefix: str) -> list[str]:
    return [f"{prefix}{axis}" for axis in "xyz"]
