"""LAS and LAZ, the formats of airborne laser scans."""

import io
import math
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from hf_any3d.data.files.attributes import usable_colors, usable_numbers
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.options import package

# Offset of the colors by point format, or None.
_COLORS = (None, None, 20, 28, None, 28, None, 30, 30, None, 30)
_HEADER_SIZE = 227
_RECORD_HEADER = 54
# Where the items of a record 'laszip encoded' start, after their number.
_ITEMS = 34
_BLOCK = 1 << 18
# Compressors that lazrs reads, with the versions of their items: in chunks, and in chunks with layers, those of point
# formats 6 to 10. Number of layers by kind of item; other items have one per byte.
_LAYERED = 3
_VERSIONS = {2: (1, 2), _LAYERED: (3,)}
_LAYERS = {10: 9, 11: 1, 12: 2, 13: 1}
# Keys of GeoTIFF, and codes of units of EPSG.
_GEO_KEYS, _WELL_KNOWN_TEXT = 34735, 2112
_MODEL, _GEOGRAPHIC, _UNIT, _UNIT_OF_HEIGHTS = 1024, 2, 3076, 4099
_METERS = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937}


def read(source: Source) -> PointCloudData:
    """Read coordinates in the units of the file, colors, intensities, returns, and the class of each point, its label.

    LAZ needs lazrs from the extra `files`. Coordinates of map projections are too large for float32; see
    `PointCloudData.offset`. Intensities are 0 to 65535. Colors or intensities that are all 0 are left out.
    """
    data = source.data
    # From byte 96: start of the points, point format, size of a point, number of points.
    start, kind, size, count = struct.unpack_from("<I4xBHI", data, 96)
    # LAZ sets the highest bit of the point format.
    compressed, kind = kind >= 128, kind & 63
    # From version 1.4 on, the number of points has 64 bits, and the old field may be 0.
    if data[25] >= 4 and len(data) >= 255:
        count = max(count, int.from_bytes(data[247:255], "little"))
    is_cut = start < _HEADER_SIZE or (not compressed and start + count * size > len(data))
    if is_cut or not data.startswith(b"LASF"):
        raise PointCloudError(
            f"starts with {data[:4]!r}, {count} points from byte {start} of {len(data)}; may be cut off"
        )
    row = _row_type(kind, size)
    source.check(points=count, decoded=count * max(size, 32))
    blocks = _decompressed(data, start, row, count) if compressed else [np.frombuffer(data, row, count, start)]
    # Coordinates are stored as integers: times scale, plus offset.
    scale, offset = np.frombuffer(data, "<f8", 3, 131), np.frombuffer(data, "<f8", 3, 155)
    # Block by block, since most bytes of a record are not needed.
    points, labels, at = np.empty((count, 3)), np.empty(count, np.int64), 0
    intensity, returns = np.empty(count, np.uint16), np.empty(count, np.uint8)
    colors = None if _COLORS[kind] is None else np.empty((count, 3), np.uint16)
    for block in blocks:
        rows = slice(at, at + len(block))
        with np.errstate(over="ignore", invalid="ignore"):
            points[rows] = block["xyz"] * scale + offset
        # The older formats keep flags in the upper three bits of the class.
        labels[rows] = block["class"] if kind >= 6 else block["class"] & 31
        intensity[rows] = block["intensity"]
        returns[rows] = block["returns"]
        if colors is not None:
            colors[rows] = block["rgb"]
        at += len(block)
    # The standard has 0 where a sensor measures none. Z is the elevation in LAS.
    usable = usable_colors(colors, source) if colors is not None and colors.any() else None
    measured = usable_numbers(intensity, "intensities", source) if intensity.any() else None
    # The return number and how many there were, in four bits each since format 6, and in three before.
    bits = 4 if kind >= 6 else 3
    mask = (1 << bits) - 1
    unit, heights, step = _meters_per_unit(data, start), _meters_per_height(data, start), np.abs(scale)
    return PointCloudData(
        points,
        usable,
        labels=labels,
        intensity=measured,
        up_axis="z",
        meters_per_unit=unit,
        meters_per_height=None if heights is None or math.isclose(heights, unit or 0) else heights,
        # Programs that know of no returns leave the byte 0.
        return_number=returns & mask if returns.any() else None,
        number_of_returns=returns >> bits & mask if returns.any() else None,
        step=step,
    )


def _row_type(kind: int, size: int) -> np.dtype:
    names, formats = ["xyz", "intensity", "returns", "class"], [("<i4", 3), "<u2", "u1", "u1"]
    offsets = [0, 12, 14, 16 if kind >= 6 else 15]
    if (color := _COLORS[kind]) is not None:
        names.append("rgb")
        formats.append(("<u2", 3))
        offsets.append(color)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


def _decompressed(data: bytes, start: int, row: np.dtype, count: int) -> Iterator[np.ndarray]:
    lazrs = package("lazrs", "files")
    record = next(body for user, kind, body in _records(data, start) if (user, kind) == (b"laszip encoded", 22204))
    compressor, number = struct.unpack_from("<H", record)[0], struct.unpack_from("<H", record, _ITEMS - 2)[0]
    items = [struct.unpack_from("<HHH", record, _ITEMS + 6 * item) for item in range(number)]
    versions = sorted({version for _, _, version in items})
    if not {*versions} <= {*_VERSIONS.get(compressor, ())}:
        raise PointCloudError(
            f"compressor {compressor} of LAZ with items of version {', '.join(map(str, versions))}; expected "
            "compressor 2 with version 1 or 2, or 3 with 3: rewrite the file, such as with `pdal translate`"
        )
    # lazrs trusts the number of chunks. Each chunk starts with one uncompressed point.
    table = int.from_bytes(data[start : start + 8], "little", signed=True)
    # Of a writer that could not go back: then the end of the file says where the table is.
    if table == -1:
        table = int.from_bytes(data[-8:], "little", signed=True)
    chunks = int.from_bytes(data[table + 4 : table + 8], "little")
    if not start + 8 <= table <= len(data) - 8 or chunks * row.itemsize > len(data):
        raise PointCloudError(f"{chunks} chunks with a table at byte {table} of {len(data)}; the file may be cut off")
    file = io.BytesIO(data)
    file.seek(start)
    try:
        if lazrs.LazVlr(record).item_size() != row.itemsize:
            raise PointCloudError(f"the compressed records do not have the declared {row.itemsize} bytes")
        if compressor == _LAYERED:
            _check_layers(data, start, items, lazrs.read_chunk_table(file, lazrs.LazVlr(record)), count)
        file.seek(start)
        decompressor = lazrs.LasZipDecompressor(file, record)
        for first in range(0, count, _BLOCK):
            block = np.zeros(min(count - first, _BLOCK) * row.itemsize, np.uint8)
            decompressor.decompress_many(block)
            yield block.view(row)
    except BaseException as error:
        # A failed check in lazrs raises PanicException, which is not an Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise PointCloudError(f"the compressed points are damaged or cut off ({str(error)[:80]})") from None


def _records(data: bytes, start: int) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield user, kind and content of the records between the header and the points."""
    at, number = struct.unpack_from("<H", data, 94)[0], struct.unpack_from("<I", data, 100)[0]
    for _ in range(number):
        if at + _RECORD_HEADER > start:
            break
        user, kind, size = struct.unpack_from("<2x16sHH", data, at)
        at += _RECORD_HEADER + size
        if at <= start:
            yield user.rstrip(b"\0"), kind, data[at - size : at]


def _check_layers(data: bytes, start: int, items: list[Any], chunks: list[tuple[int, int]], count: int) -> None:
    # In layered chunks, lazrs allocates as much memory as each layer claims.
    # After the last chunk lazrs would read the table as another one.
    if count > (stored := sum(points for points, _ in chunks)):
        raise PointCloudError(f"{count} points declared, {stored} in {len(chunks)} chunks; the file may be cut off")
    layers = sum(_LAYERS.get(kind) or size for kind, size, _ in items)
    first_point = sum(size for _, size, _ in items)
    at = start + 8
    for number, (_, size) in enumerate(chunks):
        # A chunk starts with its first point, the number of points, and the size of each layer.
        claimed = first_point + 4 + 4 * layers + sum(struct.unpack_from(f"<{layers}I", data, at + first_point + 4))
        if claimed != size or at + size > len(data):
            raise PointCloudError(f"chunk {number} has {size} bytes, its layers claim {claimed}; it may be cut off")
        at += size


def _geo_values(body: bytes) -> dict[int, int]:
    """Return the numbers among the keys of a GeoTIFF record."""
    numbers = struct.unpack(f"<{len(body) // 2}H", body[: len(body) // 2 * 2])
    # After a header of four numbers: key, place of the value, count, and the value itself if the place is 0.
    return {key: value for key, place, _, value in zip(*[iter(numbers[4:])] * 4, strict=False) if place == 0}


def _meters_per_height(data: bytes, start: int) -> float | None:
    """Return the length of a unit of heights if a record names one for them, else None."""
    length: float | None = None
    for user, kind, body in _records(data, start):
        if user == b"LASF_Projection" and kind == _GEO_KEYS:
            length = _METERS.get(_geo_values(body).get(_UNIT_OF_HEIGHTS, 0))
        elif user == b"LASF_Projection" and kind == _WELL_KNOWN_TEXT:
            vertical = re.split(r"VERT(?:_CS|CRS)\[", body.decode("ascii", "replace"), maxsplit=1)[1:]
            units = re.findall(r'(?:LENGTH)?UNIT\[\s*"[^"]*"\s*,\s*([0-9.eE+-]+)', "".join(vertical))
            if units:
                return float(units[-1])
    return length


def _meters_per_unit(data: bytes, start: int) -> float | None:
    """Return the length of a unit: meters, unless a record names feet; None for degrees and unknown units."""
    length: float | None = 1.0
    for user, kind, body in _records(data, start):
        if user == b"LASF_Projection" and kind == _GEO_KEYS:
            values = _geo_values(body)
            length = None if values.get(_MODEL) == _GEOGRAPHIC else _METERS.get(values.get(_UNIT, 9001))
        elif user == b"LASF_Projection" and kind == _WELL_KNOWN_TEXT:
            text = body.decode("ascii", "replace")
            projection = re.search(r"PROJ(?:CS|CRS)\[", text)
            horizontal = re.split(r"VERT(?:_CS|CRS)\[", text[projection.start() :])[0] if projection else ""
            units = re.findall(r'(?:LENGTH)?UNIT\[\s*"([^"]*)"\s*,\s*([0-9.eE+-]+)', horizontal)
            lengths = [float(size) for name, size in units if "deg" not in name.lower()]
            # The last one: that of angles and those of the parameters come before.
            return lengths[-1] if lengths else None
    return length
