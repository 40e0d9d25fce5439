"""Gaussian splats: .splat, the 32-byte rows of web viewers, and .spz, Niantic's compressed format. Splats in .ply are
read, too.

Colors and opacities of splats in .ply are computed here, too, and those that SuperSplat compresses are unpacked.
"""

import struct
import zlib
from collections.abc import Collection, Mapping

import numpy as np

from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import listed, shorten

PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
"""Properties of splats in a compressed .ply of SuperSplat, 32 bits each."""
SPLAT_COLORS = ("f_dc_0", "f_dc_1", "f_dc_2")
LEAST_OPACITY = 0.1
"""Opacity below which a Gaussian splat is no point of a surface."""
# Mark, version, number of points, degree of harmonics, bits of fractions, flags, and streams from version 4 on.
_HEADER = struct.Struct("<4sIIBBBB")
_MARK, _VERSIONS = b"NGSP", (1, 2, 3, 4)


_NO_TURN = 0x80808080
_SPLAT = np.dtype([("points", "<f4", 3), ("scales", "<f4", 3), ("colors", "u1", 3), ("opacity", "u1"), ("turn", "u4")])


def read(source: Source) -> PointCloudData:
    """Read splats as points of the color that they have from all sides; .spz without extensions has y up.

    Those of an opacity below `LEAST_OPACITY`, and rows that are no splats, are left out with a warning, as in .ply.
    Scales, rotations and harmonics of further degrees have no place in a cloud.
    """
    if source.file_type != "splat":
        return _read_spz(source)
    count = len(source.data) // _SPLAT.itemsize
    source.check(points=count, decoded=24 * count)
    rows = np.frombuffer(source.data, _SPLAT)
    # A byte for each part of the rotation, in which 128 is 0; without a size along any axis, none is drawn either.
    is_splat = (rows["turn"] != _NO_TURN) & (rows["scales"] != 0).any(axis=1)
    kept = opaque_splats(rows["opacity"] / np.float32(255), is_splat, source)
    source.leave_out(["scales", "rotations"])
    return PointCloudData(rows["points"][kept], colors=rows["colors"][kept] / np.float32(255))


_CONSTANT_HARMONIC = np.float32(0.28209479)  # the spherical harmonic of degree 0, 1 / (2 sqrt(pi))


def splat_colors(harmonics: np.ndarray) -> np.ndarray:
    """Return the colors (splats, 3) in [0, 1] that splats have from all sides.

    Splats store (color - 0.5) / harmonic of degree 0, and may be brighter than white.
    """
    return (_CONSTANT_HARMONIC * harmonics.astype(np.float32) + np.float32(0.5)).clip(0, 1)


_CHUNK = 256  # splats that share the limits of their coordinates and colors


def unpacked_splats(packed: dict[str, np.ndarray], chunks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the properties that splats of a compressed .ply have without compression, but for scales and rotations.

    Source: PlayCanvas, splat-transform, `decompress-ply.ts`.

    Args:
        packed: `PACKED`, (splats,) each.
        chunks: The limits of each chunk of 256 splats, such as min_x and max_x, (chunks,) each.

    Returns:
        x, y, z, f_dc_0 to f_dc_2 and opacity (splats,), and the other properties as they are.
    """
    rest = {name: values for name, values in packed.items() if name not in PACKED}
    count = len(packed[PACKED[0]])
    expected = -(-count // _CHUNK)
    stored = len(chunks["min_x"]) if "min_x" in chunks else 0
    if stored != expected:
        raise PointCloudError(
            f"{stored} chunks of limits for {count} compressed splats; expected {expected}: export it again, or "
            "without compression"
        )
    chunk = np.arange(count) // _CHUNK
    positions = packed["packed_position"].astype(np.uint32)
    colors = packed["packed_color"].astype(np.uint32)
    shares = {"x": _share(positions, 21, 11), "y": _share(positions, 11, 10), "z": _share(positions, 0, 11)}
    shares |= {"r": _share(colors, 24, 8), "g": _share(colors, 16, 8), "b": _share(colors, 8, 8)}
    unpacked = {}
    for name, share in shares.items():
        # The first version had no limits of colors.
        if name in "rgb" and f"min_{name}" not in chunks:
            unpacked[name] = share
            continue
        low = chunks[f"min_{name}"][chunk].astype(np.float64)
        high = chunks[f"max_{name}"][chunk].astype(np.float64)
        unpacked[name] = low * (1 - share) + high * share
    columns = {name: unpacked[name].astype(np.float32) for name in "xyz"}
    for name, color in zip(SPLAT_COLORS, "rgb", strict=True):
        columns[name] = (unpacked[color] - 0.5) / _CONSTANT_HARMONIC
    share = _share(colors, 0, 8)
    # Of none and of full opacity the logits are infinite.
    with np.errstate(divide="ignore"):
        opacity = np.log(share) - np.log1p(-share)
    return {**columns, "opacity": opacity, **rest}


def _share(packed: np.ndarray, shift: int, bits: int) -> np.ndarray:
    """Return the number that some bits hold, from 0 to 1."""
    most = (1 << bits) - 1
    return (packed >> shift & most) / most


_SHAPE = ("opacity", "scale_0", "scale_1", "scale_2")
_TURN = ("rot_0", "rot_1", "rot_2", "rot_3")


def are_splats(names: Collection[str]) -> bool:
    """Return whether properties of vertices are those of Gaussian splats, whose colors may be harmonics or plain."""
    return {*names} >= {*SPLAT_COLORS, "opacity"} or {*names} >= {*_SHAPE, *_TURN}


def splats_of(vertices: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the opacities of splats in .ply by their properties, and which rows are splats, (splats,) each.

    Rows whose rotation is 0 0 0 0, which is none, only fill up the file.
    """
    # PLY files have logits.
    opacities = 1 / (1 + np.exp(-np.asarray(vertices["opacity"], dtype=np.float64)))
    is_splat = np.ones(len(opacities), bool)
    if vertices.keys() >= {*_TURN}:
        is_splat = np.any([vertices[name] != 0 for name in _TURN], axis=0)
    return opacities, is_splat


def opaque_splats(opacities: np.ndarray, is_splat: np.ndarray | None, source: Source) -> np.ndarray:
    """Return a mask of the splats that are points of a surface, with a warning that counts the others.

    Args:
        opacities: (splats,) from 0 to 1.
        is_splat: (splats,) whether each row is one; None if all are.
        source: The file, for the warning.
    """
    # NaN compares as False, and is left out.
    are_seen = np.asarray(opacities >= LEAST_OPACITY)
    kept = are_seen if is_splat is None else are_seen & is_splat
    empty = 0 if is_splat is None else int((~is_splat).sum())
    faint = int((~kept).sum()) - empty
    if empty:
        source.warn(f"{empty:,} of {len(kept):,} rows are empty, no Gaussian splats, and are skipped")
    if faint:
        source.warn(
            f"{faint:,} of {len(kept):,} Gaussian splats have an opacity below {LEAST_OPACITY} and are skipped"
        )
    return kept


_GZIP = 31  # zlib's sign for a header of gzip


def is_spz(data: bytes) -> bool:
    """Return whether a file is SPZ: packed as a whole up to version 3, in parts from version 4 on."""
    if data.startswith(_MARK):
        return True
    try:
        return data.startswith(b"\x1f\x8b") and zlib.decompressobj(_GZIP).decompress(data[:256], 4) == _MARK
    except zlib.error:
        return False


_HARMONICS = {0: 0, 1: 9, 2: 24, 3: 45, 4: 72}  # numbers of a splat, by degree
_MOST_FRACTION_BITS = 24
_HAS_EXTENSIONS, _MOST_EXTENSIONS = 2, 1 << 20
_COLOR_SCALE = np.float32(0.15)


def _read_spz(source: Source) -> PointCloudData:
    is_packed_in_parts = source.data.startswith(_MARK)
    start = source.data[: _HEADER.size]
    if not is_packed_in_parts:
        start = zlib.decompressobj(_GZIP).decompress(source.data, _HEADER.size)
    mark, version, count, degree, fraction_bits, flags, streams = _HEADER.unpack(start)
    if mark == _MARK and version > max(_VERSIONS):
        raise PointCloudError(
            f"SPZ version {version}; versions 1 to {max(_VERSIONS)} are supported; export it as .ply"
        )
    if mark != _MARK or version not in _VERSIONS or degree not in _HARMONICS or fraction_bits > _MOST_FRACTION_BITS:
        raise PointCloudError(
            f"damaged, or not SPZ: first bytes {shorten(mark)}, version {version}, degree {degree}, {fraction_bits} "
            "bits of fractions; expected 'NGSP', versions 1 to 4, degrees 0 to 4 and at most "
            f"{_MOST_FRACTION_BITS} bits"
        )
    # Bytes of a splat in each part: positions, opacities, colors, scales, rotations and harmonics.
    sizes = [6 if version == 1 else 9, 1, 3, 3, 3 if version < 3 else 4, _HARMONICS[degree]]
    source.check(points=count, decoded=(sum(sizes) + 32) * count)
    totals = [size * count for size in sizes]
    if is_packed_in_parts:
        places, opacities, colors = _parts_of_streams(source.data, totals, streams)
    else:
        places, opacities, colors = _parts_of_one(source, totals, bool(flags & _HAS_EXTENSIONS))
    kept = opaque_splats(np.frombuffer(opacities, np.uint8) / np.float32(255), None, source)
    has_extensions = bool(flags & _HAS_EXTENSIONS)
    further = ["spherical harmonics"] * (degree > 0) + ["extensions"] * has_extensions
    source.leave_out(["scales", "rotations", *further])
    # (points, 3), in half precision or three bytes for each coordinate, which float32 holds exactly
    if version == 1:
        points = np.frombuffer(places, "<f2").reshape(-1, 3).astype(np.float32)
    else:
        low, middle, high = np.frombuffer(places, np.uint8).reshape(-1, 3).T.astype(np.int32)
        # The sign is that of the highest byte.
        whole = low | middle << 8 | (high ^ 0x80) - 0x80 << 16
        points = np.ldexp(whole.astype(np.float32), -fraction_bits).reshape(-1, 3)
    shares = np.frombuffer(colors, np.uint8).reshape(-1, 3) / np.float32(255)
    harmonics = (shares - np.float32(0.5)) / _COLOR_SCALE
    # Coordinates are x right, y up, z backwards, unless an extension says otherwise.
    up_axis = None if has_extensions else "y"
    return PointCloudData(points[kept], colors=splat_colors(harmonics[kept]), up_axis=up_axis)


def _parts_of_one(source: Source, totals: list[int], has_more: bool) -> list[bytes]:
    """Unpack versions 1 to 3, in which all parts follow the header, and return the first three."""
    whole = _HEADER.size + sum(totals)
    stream = zlib.decompressobj(_GZIP)
    # To the end, where the checksum is; what programs add is of a few bytes.
    data = stream.decompress(source.data, whole + (_MOST_EXTENSIONS if has_more else 0) + 1)
    if len(data) < whole or not stream.eof:
        where = "more than" if len(data) > whole else "not all of"
        raise PointCloudError(f"{where} the {whole} bytes that the header declares; the file is damaged or cut off")
    ends = _HEADER.size + np.cumsum([0, *totals[:3]])
    return [data[start:stop] for start, stop in zip(ends, ends[1:], strict=False)]


# From version 4 on: place of the table of streams, whose rows have the packed and the plain size.
_TABLE_AT, _LONG_HEADER, _STREAM = struct.Struct("<I"), 32, struct.Struct("<QQ")


def _parts_of_streams(data: bytes, totals: list[int], number: int) -> list[bytes]:
    """Unpack the first three streams of version 4, compressed by Zstandard each; empty ones are not stored."""
    import pyarrow

    wanted = [total for total in totals if total]
    at = _TABLE_AT.unpack_from(data, _HEADER.size)[0]
    table = [_STREAM.unpack_from(data, at + _STREAM.size * place) for place in range(number)]
    # What unpacks to another size than the header says is refused before anything is unpacked.
    plain = [size for _, size in table]
    start = at + _STREAM.size * number
    if at < _LONG_HEADER or plain != wanted or start + sum(packed for packed, _ in table) > len(data):
        raise PointCloudError(
            f"streams of {listed(map(str, plain))} bytes in a file of {len(data)}; expected "
            f"{listed(map(str, wanted))}, so it may be cut off"
        )
    parts = []
    for packed, size in table[:3]:
        with pyarrow.CompressedInputStream(pyarrow.py_buffer(data[start : start + packed]), "zstd") as stream:
            # No more than declared is unpacked.
            parts.append(stream.read(size))
        start += packed
    return parts or [b"", b"", b""]
