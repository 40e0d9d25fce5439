"""LAS and LAZ, the formats of airborne laser scans."""

import io
import struct
from collections.abc import Iterator
from importlib import import_module

import numpy as np

from hf_any3d.data.files.attributes import usable_colors, usable_numbers
from hf_any3d.data.files.las_units import meters_per_unit
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source

# By point format: size of the smallest record, and offset of the colors, or None.
_SIZES = (20, 28, 26, 34, 57, 63, 30, 36, 38, 59, 67)
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
_REWRITE = "rewrite the file with another program, such as `laszip` or `pdal translate`"
_LAYERS = {10: 9, 11: 1, 12: 2, 13: 1}
# The entropy coder of LAZ needs at least about 0.002 bits per point.
_MAX_POINTS_PER_BYTE = 4000


def read(source: Source) -> PointCloudData:
    """Read coordinates in the units of the file, colors, intensities, and the class of each point as its label.

    LAS needs no further packages, LAZ needs lazrs from the extra `files`. Coordinates of map projections are too large
    for float32; see `PointCloudData.offset`. Intensities are 0 to 65535. There are no colors if all of them are 0, and
    no intensities.

    Raises:
        PointCloudError: a wrong header, a file that is cut off, or LAZ without lazrs.
    """
    data = source.data
    if not data.startswith(b"LASF"):
        raise PointCloudError(f"starts with {data[:8]!r}; a LAS file starts with 'LASF'")
    if len(data) < _HEADER_SIZE:
        raise PointCloudError(f"{len(data)} bytes; the header alone has {_HEADER_SIZE}, so the file may be cut off")
    # From byte 96: start of the points, point format, size of a point, number of points.
    start, kind, size, count = struct.unpack_from("<I4xBHI", data, 96)
    # LAZ sets the highest bit of the point format.
    compressed, kind = kind >= 128, kind & 63
    # From version 1.4 on, the number of points has 64 bits, and the old field may be 0.
    if data[25] >= 4 and len(data) >= 255:
        count = max(count, int.from_bytes(data[247:255], "little"))
    if kind >= len(_SIZES) or size < _SIZES[kind]:
        raise PointCloudError(f"point format {kind} with records of {size} bytes; expected format 0 to 10")
    if not _HEADER_SIZE <= start <= len(data):
        raise PointCloudError(f"the points start at byte {start} of {len(data)}; the file may be cut off")
    if not count:
        raise PointCloudError("there are no points; expected at least 1")
    row = _row_type(kind, size)
    source.check(points=count, decoded=count * max(size, 32))
    if compressed:
        blocks = _decompressed(data, start, row, count)
    elif count * size > len(data) - start:
        raise PointCloudError(f"{len(data) - start} bytes of points; {count} points need {count * size}: cut off")
    else:
        blocks = iter([np.frombuffer(data, row, count, start)])
    # Coordinates are stored as integers: times scale, plus offset.
    scale, offset = np.frombuffer(data, "<f8", 3, 131), np.frombuffer(data, "<f8", 3, 155)
    # Block by block, since most bytes of a record are not needed.
    points, labels, at = np.empty((count, 3)), np.empty(count, np.int64), 0
    intensity = np.empty(count, np.uint16)
    colors = None if _COLORS[kind] is None else np.empty((count, 3), np.uint16)
    for block in blocks:
        rows = slice(at, at + len(block))
        with np.errstate(over="ignore", invalid="ignore"):
            points[rows] = block["xyz"] * scale + offset
        # The older formats keep flags in the upper three bits of the class.
        labels[rows] = block["class"] if kind >= 6 else block["class"] & 31
        intensity[rows] = block["intensity"]
        if colors is not None:
            colors[rows] = block["rgb"]
        at += len(block)
    # The standard has 0 where a sensor measures none. Z is the elevation in LAS.
    usable = usable_colors(colors, source) if colors is not None and colors.any() else None
    measured = usable_numbers(intensity, "intensities", source) if intensity.any() else None
    unit, step = meters_per_unit(data, start), np.abs(scale)
    return PointCloudData(
        points, usable, labels=labels, intensity=measured, up_axis="z", meters_per_unit=unit, step=step
    )


def _row_type(kind: int, size: int) -> np.dtype:
    names, formats = ["xyz", "intensity", "class"], [("<i4", 3), "<u2", "u1"]
    offsets = [0, 12, 16 if kind >= 6 else 15]
    if (color := _COLORS[kind]) is not None:
        names.append("rgb")
        formats.append(("<u2", 3))
        offsets.append(color)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


def _decompressed(data: bytes, start: int, row: np.dtype, count: int) -> Iterator[np.ndarray]:
    try:
        lazrs = import_module("lazrs")  # has no types
    except ImportError:
        raise PointCloudError('LAZ needs the extra `files`: pip install "hf-any3d[files]"') from None
    if count > len(data) * _MAX_POINTS_PER_BYTE:
        raise PointCloudError(f"{count} points in {len(data)} bytes; the file may be cut off")
    record = _laszip_record(data, start)
    kinds = _items(record)
    _check_chunk_table(data, start, row.itemsize)
    file = io.BytesIO(data)
    file.seek(start)
    try:
        if lazrs.LazVlr(record).item_size() != row.itemsize:
            raise PointCloudError(f"the compressed records do not have the declared {row.itemsize} bytes")
        if struct.unpack_from("<H", record)[0] == _LAYERED:
            _check_layers(data, start, kinds, lazrs.read_chunk_table(file, lazrs.LazVlr(record)), count)
        file.seek(start)
        decompressor = lazrs.LasZipDecompressor(file, record)
        for first in range(0, count, _BLOCK):
            block = np.zeros(min(count - first, _BLOCK) * row.itemsize, np.uint8)
            decompressor.decompress_many(block)
            yield block.view(row)
    except PointCloudError:
        raise
    except BaseException as error:
        # A failed check in lazrs raises PanicException, which is not an Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise PointCloudError(f"the compressed points are damaged or cut off ({str(error)[:80]})") from None
        raise


def _laszip_record(data: bytes, start: int) -> bytes:
    at, number = struct.unpack_from("<H", data, 94)[0], struct.unpack_from("<I", data, 100)[0]
    for _ in range(number):
        if at + _RECORD_HEADER > start:
            break
        user, kind, size = struct.unpack_from("<2x16sHH", data, at)
        at += _RECORD_HEADER
        if user.rstrip(b"\0") == b"laszip encoded" and kind == 22204 and at + size <= start:
            return data[at : at + size]
        at += size
    raise PointCloudError("no record 'laszip encoded'; expected one in a LAZ file")


def _items(record: bytes) -> list[tuple[int, int]]:
    """Return the kind and size of each item of a point, compressed in a way that lazrs reads."""
    if len(record) < _ITEMS or len(record) < _ITEMS + 6 * (number := struct.unpack_from("<H", record, _ITEMS - 2)[0]):
        raise PointCloudError(f"a record 'laszip encoded' of {len(record)} bytes; the file is damaged")
    compressor = struct.unpack_from("<H", record)[0]
    if compressor not in _VERSIONS:
        which = " (points that are not in chunks)" if compressor == 1 else ""
        raise PointCloudError(f"compressor {compressor} of LAZ{which}; expected 2 or 3: {_REWRITE}")
    items = [struct.unpack_from("<HHH", record, _ITEMS + 6 * item) for item in range(number)]
    if other := [version for _, _, version in items if version not in _VERSIONS[compressor]]:
        expected = " or ".join(map(str, _VERSIONS[compressor]))
        raise PointCloudError(
            f"compressor {compressor} of LAZ with items of version {other[0]}; expected {expected}: {_REWRITE}"
        )
    return [(kind, size) for kind, size, _ in items]


def _check_chunk_table(data: bytes, start: int, size: int) -> None:
    # lazrs trusts the number of chunks. Each chunk starts with one uncompressed point.
    table = int.from_bytes(data[start : start + 8], "little", signed=True)
    # Of a writer that could not go back: then the end of the file says where the table is.
    if table == -1:
        table = int.from_bytes(data[-8:], "little", signed=True)
    if not start + 8 <= table <= len(data) - 8:
        raise PointCloudError(f"the table of chunks starts at byte {table} of {len(data)}; the file may be cut off")
    chunks = int.from_bytes(data[table + 4 : table + 8], "little")
    if chunks * size > len(data):
        raise PointCloudError(f"{chunks} compressed chunks in {len(data)} bytes; the file is damaged")


def _check_layers(
    data: bytes, start: int, kinds: list[tuple[int, int]], chunks: list[tuple[int, int]], count: int
) -> None:
    # In layered chunks, lazrs allocates as much memory as each layer claims.
    # After the last chunk lazrs would read the table as another one.
    if count > (found := sum(points for points, _ in chunks)):
        raise PointCloudError(f"{count} points declared, {found} in {len(chunks)} chunks; the file may be cut off")
    layers = sum(_LAYERS.get(kind, size) for kind, size in kinds)
    first_point = sum(size for _, size in kinds)
    at = start + 8
    for number, (_, size) in enumerate(chunks):
        # A chunk starts with its first point, the number of points, and the size of each layer.
        header = first_point + 4 + 4 * layers
        if at + max(size, header) > len(data):
            raise PointCloudError(f"chunk {number} ends after the file; the file may be cut off")
        claimed = sum(struct.unpack_from(f"<{layers}I", data, at + first_point + 4))
        if header + claimed != size:
            raise PointCloudError(f"the layers of chunk {number} need {header + claimed} bytes; it has {size}")
        at += size
