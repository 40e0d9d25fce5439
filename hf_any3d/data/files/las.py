"""LAS and LAZ, the formats of airborne laser scans."""

import io
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from mmap import ACCESS_READ, mmap
from typing import Any, BinaryIO

import numpy as np

from hf_any3d.data.classes.las_classes import CURRENT, LEGACY
from hf_any3d.data.files.attributes import further_column, usable_colors, usable_labels, usable_numbers
from hf_any3d.data.files.coordinate_systems import (
    CoordinateSystem,
    Units,
    ground_scale_at,
    heights_of_keys,
    heights_part,
    horizontal_part,
    name_of_keys,
    name_of_system,
    units_of_keys,
    units_of_text,
)
from hf_any3d.data.files.las_layout import (
    EXTRA_BYTES,
    HEADER_SIZE,
    LONGEST_HEADER,
    SIZES,
    ExtraDimension,
    Header,
    extra_dimensions,
    records_before,
)
from hf_any3d.data.files.point_cloud import PointCloudData, points_of_integers
from hf_any3d.data.files.source import NoPointsError, PointCloudError, Source
from hf_any3d.data.files.text_numbers import shorten
from hf_any3d.data.options import package
from hf_any3d.utils.messages import cut

WITH_WAVEFORMS = (4, 5, 9, 10)
"""Point formats with packets of waveforms."""
LASZIP_RECORD = (b"laszip encoded", 22204)
"""User and number of the record that says how points are compressed."""
LASZIP_ITEMS = 34
"""Where the items of a record 'laszip encoded' start, after their number."""
EXTENDED_HEADER = 60
"""Bytes of the header of a record after the points."""
REPROJECT = "reproject it to a map in meters or feet, for example with pdal's filters.reprojection"
"""Next step for coordinates that are no lengths on the ground."""
FLAGS = {"synthetic": 1, "withheld": 4}
"""Flags of points that are read: their bits in formats 6 to 10, and of the three above the class in older ones."""
NOT_READ = (
    "GPS time, scan angle, scanner channel, user data, point source ID, flags except withheld and synthetic; records "
    "(VLRs) that do not describe the coordinate system"
)


def read(source: Source) -> PointCloudData:
    """Read coordinates in the units of the file, colors, intensities, returns, and the class of each point, its label.

    LAZ needs lazrs from the extra `files`. Extra dimensions that are not asked for as columns, near infrared,
    waveforms and records beyond the declared number are left out with a warning. Where heights have another unit
    than x and y, or are depths, another warning says so. There is no `meters_per_unit` without a coordinate system, or
    without pyproj, which reads it, from the extra `files`. Coordinates of
    map projections are too large for float32; see `PointCloudData.offset`. Intensities are 0 to 65535. Colors or
    intensities that are all 0 are left out.
    """
    header = _read_header(source)
    # Coordinates are stored as integers: times scale, plus offset.
    scale = np.frombuffer(source.data, "<f8", 3, 131)
    offset = np.frombuffer(source.data, "<f8", 3, 155)
    columns = _read_columns(source, header)
    points, shift = points_of_integers(columns.integers, scale, offset)
    # The standard has 0 where a sensor measures no color or intensity, and programs that know of no returns leave
    # their byte 0.
    colors = intensity = return_number = number_of_returns = None
    if columns.colors is not None and columns.colors.any():
        colors = usable_colors(columns.colors, source)
    is_label = "intensity" in source.chosen_fields
    if columns.intensity is not None and columns.intensity.any() and not is_label:
        intensity = usable_numbers(columns.intensity, "intensities", source)
    if columns.returns is not None and columns.returns.any():
        # The return number and how many there were, in four bits each since format 6, and in three before.
        bits = 4 if header.point_format >= 6 else 3
        mask = (1 << bits) - 1
        return_number = columns.returns & mask
        number_of_returns = columns.returns >> bits & mask
    stated = _stated(source, header, points, shift)
    label_codes = CURRENT if header.point_format >= 6 else LEGACY
    # Numbers of a dimension of the user's own mean what the user says.
    if "label" in (header.row.names or ()):
        label_codes = None
    # Flags that any point has
    flags = {}
    if columns.flags.any():
        found = {name: columns.flags & bit > 0 for name, bit in FLAGS.items()}
        flags = {name: values for name, values in found.items() if values.any()}
    return PointCloudData(
        points,
        colors,
        labels=None if columns.labels is None else usable_labels(columns.labels, source),
        offset=shift,
        intensity=intensity,
        **stated,
        return_number=return_number,
        number_of_returns=number_of_returns,
        label_codes=label_codes,
        further={**columns.further, **flags} or None,
        step=np.abs(scale),
    )


@dataclass(frozen=True)
class _Header:
    """The part of a header that is about the points."""

    start: int  # byte of the first point
    point_format: int  # 0 to 10: which fields a record has
    row: np.dtype  # of a record; its field "label" is what labels were chosen to be read from
    further: dict[str, "_Dimension"]  # further columns that are read, each a field of a record
    count: int  # declared number of points
    is_compressed: bool


@dataclass(frozen=True)
class _Columns:
    """The columns of all points, one row each; None where the format has none, or they are not asked for."""

    integers: np.ndarray  # (points, 3) int32, coordinates without their scale and offset
    labels: np.ndarray | None  # (points,) uint8; of the type of the dimension that was chosen for them
    intensity: np.ndarray | None  # (points,) uint16
    returns: np.ndarray | None  # (points,) uint8
    flags: np.ndarray  # (points,) uint8, with the bits of `FLAGS`
    colors: np.ndarray | None  # (points, 3) uint16
    further: dict[str, np.ndarray]  # (points,) float64 by the names that were asked for


@dataclass(frozen=True)
class _Dimension:
    """An extra dimension that is one number: its type and byte, and what its numbers stand for."""

    kind: str
    at: int
    scale: float = 1.0
    offset: float = 0.0
    no_data: float | int | None = None  # the stored number that means that there is none

    def values(self, stored: np.ndarray) -> np.ndarray:
        """Return measurements (points,) float64, NaN where there is none."""
        values = further_column(stored.astype(np.float64) * self.scale + self.offset)
        if self.no_data is not None:
            values[stored == self.no_data] = np.nan
        return values


_NEWEST_MINOR = 5  # version of LAS, 1.5
_MOST_PER_BYTE = 10_000  # points that are declared for each byte of a compressed file


def _read_header(source: Source) -> _Header:
    """Read the header, check it against the size of the file, and warn of what is left out."""
    data = source.data
    if data[:4] != b"LASF":
        raise PointCloudError(f"not a LAS or LAZ file: its first bytes are {shorten(data[:4])}; expected 'LASF'")
    if len(data) < HEADER_SIZE:
        raise PointCloudError(
            f"incomplete LAS header ({len(data)} of {HEADER_SIZE} bytes); the file is cut off: copy or "
            "download it again"
        )
    major = data[24]
    minor = data[25]
    if major != 1 or minor > _NEWEST_MINOR:
        raise PointCloudError(
            f"LAS {major}.{minor}; versions 1.0 to 1.{_NEWEST_MINOR} are read, not newer ones; rewrite it as "
            "LAS 1.4, for example with `pdal translate` or laspy"
        )
    header = Header.of(data)
    start, point_format, size, count = header.start, header.point_format, header.point_size, header.count
    if not HEADER_SIZE <= start <= len(data):
        raise PointCloudError(f"points start at byte {start:,} of {len(data):,}; the file is damaged or cut off")
    if point_format >= len(SIZES):
        raise PointCloudError(f"has points of format {point_format}; formats 0 to {len(SIZES) - 1} are supported")
    if size < SIZES[point_format]:
        raise PointCloudError(
            f"points of format {point_format} with {size} bytes each; they have {SIZES[point_format]} bytes or more, "
            "so the header is damaged"
        )
    if not header.is_packed and start + count * size > len(data):
        stored = (len(data) - start) // size
        raise PointCloudError(f"{_declared(count)}, and the file has {stored:,}; it may be cut off")
    # No compressor gets so many points into each byte.
    if count > _MOST_PER_BYTE * len(data):
        raise PointCloudError(f"{_declared(count)} in {len(data):,} bytes; the file is damaged")
    if not count:
        raise NoPointsError()
    row = _with_label(_row_type(source, point_format, size), source, header)
    further = {}
    if source.columns:
        dimensions = list(_described(data, header))
        source.note_columns(name for name, _ in dimensions)
        described = dict(dimensions)
        for wanted, name in source.further_columns_of_points(described).items():
            further[wanted] = described[name]
            row = _with_field(row, f"further {wanted}", (described[name].kind, described[name].at), name)
    source.check(points=count, decoded=count * max(size, 32))
    read = {f"extra dimension {name}".lower() for name in (source.label_field, *source.columns)}
    extra = _extra_dimensions(data, header)
    source.leave_out(name for name in extra if name.lower() not in read)
    if not header.is_packed and (more := _records_after(data, start + count * size, size)):
        _warn_of_more(source, count, f"{more:,}")
    return _Header(start, point_format, row, further, count, header.is_packed)


def _declared(count: int) -> str:
    # A number of 20 digits is no number of points, and nobody has to read it.
    return (
        f"the header declares {count:,} points"
        if count < 10**12
        else "the header declares more points than any file holds"
    )


def _read_columns(source: Source, header: _Header) -> _Columns:
    """Collect the columns block by block, since most bytes of a record are not needed."""
    count = header.count
    row = header.row
    names = row.names or ()
    is_recent = header.point_format >= 6
    if header.is_compressed:
        tell_of_more = partial(_warn_of_more, source, count)
        layers = _layers(row) if is_recent else None
        blocks = decompressed(source.data, header.start, row, count, tell_of_more=tell_of_more, layers=layers)
    else:
        blocks = _records_of(source.data, header.start, row, count)
    label = "label" if "label" in names else "class"
    columns = _Columns(
        integers=np.empty((count, 3), np.int32),
        labels=np.empty(count, row[label]) if label in names and source.wants("labels") else None,
        intensity=np.empty(count, np.uint16) if "intensity" in names else None,
        returns=np.empty(count, np.uint8) if "returns" in names else None,
        flags=np.empty(count, np.uint8),
        colors=np.empty((count, 3), np.uint16) if "rgb" in names else None,
        further={name: np.empty(count) for name in header.further},
    )
    has_infrared = False
    first = 0
    for block in blocks:
        rows = slice(first, first + len(block))
        # Axis by axis: numpy copies rows of three numbers many times slower.
        for axis in range(3):
            columns.integers[rows, axis] = block["xyz"][:, axis]
            if columns.colors is not None:
                columns.colors[rows, axis] = block["rgb"][:, axis]
        # The older formats keep flags in the upper three bits of the class, newer ones in a byte before it.
        columns.flags[rows] = block["flags"] if is_recent else block["class"] >> 5
        if columns.labels is not None:
            columns.labels[rows] = block[label] if is_recent or label == "label" else block["class"] & 31
        if columns.intensity is not None:
            columns.intensity[rows] = block["intensity"]
        if columns.returns is not None:
            columns.returns[rows] = block["returns"]
        for name, dimension in header.further.items():
            columns.further[name][rows] = dimension.values(block[f"further {name}"])
        if "infrared" in names and not has_infrared and block["infrared"].any():
            has_infrared = True
        first += len(block)
    if has_infrared:
        source.leave_out(["near infrared"])
    return columns


_BLOCK_ALIGNED = 1 << 13  # points, copied to be read


def _records_of(data: bytes, start: int, row: np.dtype, count: int) -> Iterator[np.ndarray]:
    """Yield the records of points that are not compressed, block by block, in memory that the next block reuses.

    Numbers begin at places that are multiples of four there, as numpy reads others many times slower.
    """
    size = row.itemsize
    records = np.frombuffer(data, np.uint8, count * size, start).reshape(count, size)
    padded = size + -size % 4
    fields: Any = row.fields
    wider = _row_of({name: (field[0], field[1]) for name, field in fields.items()}, padded)
    memory = np.zeros((min(count, _BLOCK_ALIGNED), padded), np.uint8)
    for first in range(0, count, _BLOCK_ALIGNED):
        block = memory[: count - first]
        block[:, :size] = records[first : first + len(block)]
        yield block.view(wider)[:, 0]


# Offset of the colors by point format, or None.
_COLORS = (None, None, 20, 28, None, 28, None, 30, 30, None, 30)
_WITH_INFRARED = (8, 10)


def _row_type(source: Source, point_format: int, size: int) -> np.dtype:
    """Return the type of a record of `size` bytes, with the fields that are read."""
    fields: dict[str, tuple[Any, int]] = {"xyz": (("<i4", 3), 0)}
    # Format 6 and its successors have two bytes of flags before the class, the older ones one, and flags in the class.
    if point_format >= 6:
        fields["flags"] = ("u1", 15)
    if point_format < 6 or source.wants("labels"):
        fields["class"] = ("u1", 16 if point_format >= 6 else 15)
    if source.wants("intensity"):
        fields["intensity"] = ("<u2", 12)
    if source.wants("return_number") or source.wants("number_of_returns"):
        fields["returns"] = ("u1", 14)
    color = _COLORS[point_format]
    if color is not None and source.wants("colors"):
        fields["rgb"] = (("<u2", 3), color)
    # Only to tell that it is left out, of which nobody who asks for less need be told
    if point_format in _WITH_INFRARED and source.fields is None:
        fields["infrared"] = ("<u2", 36)
    return _row_of(fields, size)


def _row_of(fields: dict[str, tuple[Any, int]], size: int) -> np.dtype:
    """Return the type of a record of `size` bytes by the types and bytes of its fields."""
    return np.dtype(
        {
            "names": list(fields),
            "formats": [kind for kind, _ in fields.values()],
            "offsets": [at for _, at in fields.values()],
            "itemsize": size,
        }
    )


def _layers(row: np.dtype) -> int:
    """Return which layers of compressed points of formats 6 to 10 hold fields of a record, in the bits of lazrs."""
    lazrs = package("lazrs", "files")
    # First byte of what a layer holds. Of the bytes after the usual ones, such as colors, all layers are taken that
    # may hold a field.
    layers = (
        (0, lazrs.SELECTIVE_DECOMPRESS_XY_RETURNS_CHANNEL),
        (8, lazrs.SELECTIVE_DECOMPRESS_Z),
        (12, lazrs.SELECTIVE_DECOMPRESS_INTENSITY),
        (14, lazrs.SELECTIVE_DECOMPRESS_XY_RETURNS_CHANNEL),
        (15, lazrs.SELECTIVE_DECOMPRESS_FLAGS),
        (16, lazrs.SELECTIVE_DECOMPRESS_CLASSIFICATION),
        (17, lazrs.SELECTIVE_DECOMPRESS_USER_DATA),
        (18, lazrs.SELECTIVE_DECOMPRESS_SCAN_ANGLE),
        (20, lazrs.SELECTIVE_DECOMPRESS_POINT_SOURCE_ID),
        (22, lazrs.SELECTIVE_DECOMPRESS_GPS_TIME),
        (
            30,
            lazrs.SELECTIVE_DECOMPRESS_RGB
            | lazrs.SELECTIVE_DECOMPRESS_NIR
            | lazrs.SELECTIVE_DECOMPRESS_WAVEPACKET
            | lazrs.SELECTIVE_DECOMPRESS_ALL_EXTRA_BYTES,
        ),
    )
    taken = 0
    fields: Any = row.fields
    for kind, at, *_ in fields.values():
        ends = [begin for begin, _ in layers[1:]] + [row.itemsize]
        for (begin, layer), end in zip(layers, ends, strict=True):
            if begin < at + kind.itemsize and at < end:
                taken |= layer
    return taken


# Dimensions of every point that labels may be chosen from: type and byte, since format 6 and before.
_DIMENSIONS = {
    "classification": None,  # what labels are anyway
    "user_data": ("u1", 17, 17),
    "point_source_id": ("<u2", 20, 18),
    "intensity": ("<u2", 12, 12),
}


def _with_label(row: np.dtype, source: Source, header: Header) -> np.dtype:
    """Return the type of a record with the dimension that was chosen for labels as its field "label"."""
    if source.label_field is None:
        return row
    places: dict[str, tuple[str, int] | None] = {}
    described = list(_described(source.data, header))
    source.note_columns(name for name, _ in described)
    for name, place in _DIMENSIONS.items():
        if place is not None:
            kind, since_6, before = place
            places[name] = (kind, since_6 if header.point_format >= 6 else before)
        else:
            places[name] = None
    for name, dimension in described:
        # Scaled numbers are measurements.
        if (dimension.scale, dimension.offset) == (1.0, 0.0):
            places[name] = (dimension.kind, dimension.at)
    chosen = source.chosen_label(places)
    if chosen is None or (place := places[chosen]) is None:
        return row
    return _with_field(row, "label", place, chosen)


def _with_field(row: np.dtype, field_name: str, place: tuple[str, int], dimension: str) -> np.dtype:
    """Return the type of a record with one more field, which has the type and the byte of a dimension."""
    kind, at = place
    if at + np.dtype(kind).itemsize > row.itemsize:
        raise PointCloudError(f"dimension {dimension!r} ends after the {row.itemsize} bytes of a point")
    fields: dict[str, tuple[Any, int]] = {name: (field[0], field[1]) for name, field in (row.fields or {}).items()}
    return _row_of({**fields, field_name: (kind, at)}, row.itemsize)


# Bits among the options of an extra dimension, and where the numbers that they announce are in its description.
_HAS_NO_DATA, _HAS_SCALE, _HAS_OFFSET = 1, 8, 16
_NO_DATA_AT, _SCALE_AT, _OFFSET_AT = 40, 112, 136


def _described(data: bytes | mmap, header: Header) -> Iterator[tuple[str, _Dimension]]:
    """Yield name and place of each extra dimension that is one number."""
    at = SIZES[header.point_format]
    for described in _extra(data, header):
        if described.is_number:
            body = described.data
            options = described.options
            scale = struct.unpack_from("<d", body, _SCALE_AT)[0] if options & _HAS_SCALE else 1.0
            offset = struct.unpack_from("<d", body, _OFFSET_AT)[0] if options & _HAS_OFFSET else 0.0
            # Of any type of number, it is stored in the longest one of its kind.
            longest = {"u": "<Q", "i": "<q", "f": "<d"}[np.dtype(described.dtype).kind]
            no_data = struct.unpack_from(longest, body, _NO_DATA_AT)[0] if options & _HAS_NO_DATA else None
            yield described.name, _Dimension(described.dtype, at, scale, offset, no_data)
        at += described.size


def _extra(data: bytes | mmap, header: Header) -> Iterator[ExtraDimension]:
    """Yield the descriptions of extra bytes, in the order in which a point has them."""
    for user, number, body in records_before(data, header):
        if (user, number) == EXTRA_BYTES:
            yield from extra_dimensions(body)


def _extra_dimensions(data: bytes | mmap, header: Header) -> list[str]:
    """Return the names of what the records of points have beside the usual, which `NOT_READ` lists."""
    names = ["waveforms"] if header.point_format in WITH_WAVEFORMS else []
    extra = header.point_size - SIZES[header.point_format]
    if extra <= 0:
        return names
    described = [f"extra dimension {one.name}" for one in _extra(data, header)]
    return names + (described or [f"{extra} extra bytes of each point"])


def _records_after(data: bytes, end: int, size: int) -> int:
    """Return how many point records follow the declared ones, before the next part that the header names."""
    begins = [len(data)]
    if data[25] >= 3 and len(data) >= 235:
        begins.append(int.from_bytes(data[227:235], "little"))  # of waveforms
    if data[25] >= 4 and len(data) >= 247:
        begins.append(int.from_bytes(data[235:243], "little"))  # of extended records
    stop = min(begin for begin in begins if begin >= end)
    return (stop - end) // size if data[end:stop].strip(b"\0") else 0


def _warn_of_more(source: Source, count: int, more: str) -> None:
    source.warn(f"the header declares {count:,} points; {more} more follow and are ignored")


_CHUNKS_VARY = 0xFFFFFFFF  # instead of the number of points in a chunk
_EMPTY_CHUNKS = 1 << 20  # bytes that points of empty chunks would take
_BLOCK = 1 << 15  # points: their records stay in the cache of the processor
# Compressors that lazrs reads, with the versions of their items: in chunks, and in chunks with layers, those of point
# formats 6 to 10. Number of layers by kind of item; other items have one per byte.
_LAYERED = 3
_VERSIONS = {2: (1, 2), _LAYERED: (3,)}
_LAYERS = {10: 9, 11: 1, 12: 2, 13: 1}


def decompressed(
    data: bytes | mmap,
    start: int,
    row: np.dtype,
    count: int,
    file: BinaryIO | None = None,
    tell_of_more: Callable[[str], None] | None = None,
    layers: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield the records of compressed points, block by block.

    Args:
        data: The whole file.
        start: Where the points begin.
        row: Type of a record.
        count: Number of points that the header declares.
        file: The same file, to be read piece by piece; by default `data`.
        tell_of_more: Is told how many more points there are, if there are.
        layers: What is decompressed of points in layers, in the bits of lazrs; other bytes mean nothing. By default
            everything is.
    """
    lazrs = package("lazrs", "files")
    record, compressor, items = _read_laszip_record(data)
    # lazrs trusts the number of chunks. Each starts with one uncompressed point, but for the few without points.
    table = int.from_bytes(data[start : start + 8], "little", signed=True)
    # Of a writer that could not go back: then the end of the file says where the table is.
    if table == -1:
        table = int.from_bytes(data[-8:], "little", signed=True)
    chunks = int.from_bytes(data[table + 4 : table + 8], "little")
    if not start + 8 <= table <= len(data) - 8 or chunks * row.itemsize > len(data) + _EMPTY_CHUNKS:
        raise PointCloudError(f"{chunks} chunks with a table at byte {table} of {len(data)}; the file may be cut off")
    # All chunks but the last are full; a size of all ones says that each has a number of its own.
    full = int.from_bytes(record[12:16], "little")
    stored = 0 if full == _CHUNKS_VARY else (chunks - 1) * full + 1
    file = io.BytesIO(data) if file is None else file
    file.seek(start)
    try:
        if lazrs.LazVlr(record).item_size() != row.itemsize:
            raise PointCloudError(f"the compressed records do not have the declared {row.itemsize} bytes")
        sizes = lazrs.read_chunk_table(file, lazrs.LazVlr(record))
        if not all(points for points, _ in sizes):
            data = _without_empty_chunks(data, start, sizes, lazrs.LazVlr(record))
            sizes = [(points, size) for points, size in sizes if points]
            file = io.BytesIO(data)
            start = 0
        if compressor == _LAYERED:
            stored = _check_layers(data, start, items, sizes, count)
        if tell_of_more is not None and stored > count:
            least = "" if compressor == _LAYERED else "at least "
            tell_of_more(f"{least}{stored - count:,}")
        file.seek(start)
        # lazrs has a decompressor for many threads, too. It hangs in a process that was forked after another one used
        # it, as the workers of torch's data loaders are.
        if layers is None or compressor != _LAYERED:
            decompressor = lazrs.LasZipDecompressor(file, record)
        else:
            decompressor = lazrs.LasZipDecompressor(file, record, lazrs.DecompressionSelection(layers))
        for first in range(0, count, _BLOCK):
            block = np.zeros(min(count - first, _BLOCK) * row.itemsize, np.uint8)
            decompressor.decompress_many(block)
            yield block.view(row)
    except BaseException as error:
        # A failed check in lazrs raises PanicException, which is not an Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise PointCloudError(f"the compressed points are damaged or cut off ({cut(str(error), 80)})") from None


def _read_laszip_record(data: bytes | mmap) -> tuple[bytes, int, list[tuple[int, int, int]]]:
    """Read how points are compressed: the record, its compressor, and the kind, size and version of each item.

    Raises:
        PointCloudError: lazrs does not read this compressor with these versions.
    """
    records = records_before(data, Header.of(data))
    record = next(body for user, number, body in records if (user, number) == LASZIP_RECORD)
    (compressor,) = struct.unpack_from("<H", record)
    (count,) = struct.unpack_from("<H", record, LASZIP_ITEMS - 2)
    items = [struct.unpack_from("<HHH", record, LASZIP_ITEMS + 6 * item) for item in range(count)]
    versions = sorted({version for _, _, version in items})
    if not set(versions).issubset(_VERSIONS.get(compressor, ())):
        raise PointCloudError(
            f"compressor {compressor} of LAZ with items of version {', '.join(map(str, versions))}; expected "
            "compressor 2 with version 1 or 2, or 3 with 3: rewrite the file, for example with `pdal translate`"
        )
    return record, compressor, items


def _without_empty_chunks(data: bytes | mmap, start: int, sizes: list[tuple[int, int]], vlr: Any) -> bytes:
    """Return compressed points without the chunks that have none, as writers leave that finish a chunk twice.

    They have bytes, in which lazrs would look for a first point.
    """
    kept = []
    at = start + 8
    for points, size in sizes:
        if points:
            kept.append(data[at : at + size])
        at += size
    packed = b"".join(kept)
    file = io.BytesIO(struct.pack("<q", 8 + len(packed)) + packed)
    file.seek(0, 2)
    lazrs = package("lazrs", "files")
    lazrs.write_chunk_table(file, [(points, size) for points, size in sizes if points], vlr)
    return file.getvalue()


def _check_layers(data: bytes | mmap, start: int, items: list[Any], chunks: list[tuple[int, int]], count: int) -> int:
    """Check sizes of layers, and return the number of points that the chunks say they have.

    In layered chunks, lazrs allocates as much memory as each layer claims, and after the last chunk it would read the
    table of chunks as another one.
    """
    stored = sum(points for points, _ in chunks)
    if count > stored:
        raise PointCloudError(f"{count} points declared, {stored} in {len(chunks)} chunks; the file may be cut off")
    layers = sum(_LAYERS.get(kind) or size for kind, size, _ in items)
    first_point = sum(size for _, size, _ in items)  # bytes
    at = start + 8
    total = 0
    for number, (_, size) in enumerate(chunks):
        # A chunk starts with its first point, the number of points, and the size of each layer.
        sizes = struct.unpack_from(f"<{layers}I", data, at + first_point + 4)
        claimed = first_point + 4 + 4 * layers + sum(sizes)
        if claimed != size or at + size > len(data):
            raise PointCloudError(f"chunk {number} has {size} bytes, its layers claim {claimed}; it may be cut off")
        total += int.from_bytes(data[at + first_point : at + first_point + 4], "little")
        at += size
    return total


# User of the records with the coordinate system, and the number of the one that has it as text.
_PROJECTION, _WELL_KNOWN_TEXT = b"LASF_Projection", 2112


def system_of(path: str | os.PathLike) -> CoordinateSystem:
    """Return the coordinate system of a LAS or LAZ file; reads its header and records alone.

    It is empty if the file names no system, if its GeoTIFF keys define one of their own, or if it is no such file.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"LASF" or os.path.getsize(path) < HEADER_SIZE:
            return CoordinateSystem()
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            bodies = _projection_records(data)
            text = bodies.get(_WELL_KNOWN_TEXT, b"").decode("utf-8", "replace")
            by_text = CoordinateSystem(horizontal_part(text), heights_part(text))
            by_keys = CoordinateSystem(name_of_keys(bodies), heights_of_keys(bodies))
            found = (by_text, by_keys) if _prefers_text(data, Header.of(data).point_format) else (by_keys, by_text)
    return found[0] if found[0].flat is not None else found[1]


def has_no_points(path: str | os.PathLike) -> bool:
    """Return whether a file is a LAS or LAZ whose header declares no points."""
    with open(path, "rb") as file:
        data = file.read(LONGEST_HEADER)
    return data.startswith(b"LASF") and len(data) >= HEADER_SIZE and Header.of(data).count == 0


def extra_dimensions_of(path: str | os.PathLike) -> list[str]:
    """Return the names of the extra dimensions of a LAS or LAZ file that are one number, by its header and records.

    There are none in a file of another kind, and in one whose header is damaged.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"LASF" or os.path.getsize(path) < HEADER_SIZE:
            return []
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            header = Header.of(data)
            if header.point_format >= len(SIZES):
                return []
            return [name for name, _ in _described(data, header)]


def _projection_records(data: bytes | mmap) -> dict[int, bytes]:
    """Return the records with the coordinate system by their numbers."""
    records = list(records_before(data, Header.of(data)))
    # Those after the points, which LAS has from version 1.4 on, supersede those before them (LAS 1.4, section 2.7).
    if data[25] >= 4 and len(data) >= 247:
        at, count = struct.unpack_from("<QI", data, 235)
        for _ in range(count):
            if at + EXTENDED_HEADER > len(data):
                break
            user, number, size = struct.unpack_from("<2x16sHQ", data, at)
            at += EXTENDED_HEADER + size
            if at <= len(data):
                records.append((user.split(b"\0")[0], number, data[at - size : at]))
    return {number: body for user, number, body in records if user == _PROJECTION}


_TEXT_BIT = 1 << 4  # of the global encoding: the text counts, not the keys of GeoTIFF


def _prefers_text(data: bytes | mmap, point_format: int) -> bool:
    """Return whether well-known text counts where a file has GeoTIFF keys, too."""
    # A bit says so; point formats from 6 on allow nothing else.
    (encoding,) = struct.unpack_from("<H", data, 6)
    return bool(encoding & _TEXT_BIT) or point_format >= 6


_SAMPLED = 1000  # points of which the middle is looked for
# Feet and US survey feet differ by two millionths, which no height tells apart.
_SAME_UNIT = 1e-5


def _stated(source: Source, header: _Header, points: np.ndarray, shift: np.ndarray | None) -> dict[str, Any]:
    """Return the fields of a cloud that follow from its coordinate system, if it has one, for points (points, 3).

    Among them are the axis that points up, and the unit of heights, if it is another one than of x and y.
    """
    stated: dict[str, Any] = {"up_axis": "z"}  # Z is the elevation in LAS
    bodies = _projection_records(source.data)
    if not bodies:
        return stated
    try:
        found = _system_and_units(bodies, _prefers_text(source.data, header.point_format))
        if found is None:
            return stated
        text, units = found
        scale = None
        if text is not None and units.length is not None:
            # The middle of some points, which a few far ones do not move
            place = np.median(points[:: max(1, len(points) // _SAMPLED)], axis=0) + (0 if shift is None else shift)
            scale = ground_scale_at(text, place[:2].tolist())
    except ImportError as error:
        return {**stated, "no_map": f"its coordinate system says the unit of its coordinates; {error}"}
    if units.length is None and not units.in_degrees:
        source.warn("its coordinate system has no known horizontal unit; coordinates are read without a unit")
    stated |= {"meters_per_unit": units.length, "in_degrees": units.in_degrees or None}
    if units.is_geocentric:
        why = f"coordinates{_named(text)} are geocentric, so no axis points up"
        stated |= {"up_axis": None, "no_map": f"{why}; {REPROJECT}"}
    elif scale is not None and not scale.is_alike:
        why = f"the map{_named(text)} stretches one direction {scale.ratio:.2f} times as much as another at this place"
        stated["no_map"] = f"{why}; {REPROJECT}"
    elif scale is not None and not scale.is_true:
        stated["ground_scale"] = scale.scale
    if units.height is not None and units.height < 0:
        # What grows downward points up in no axis.
        stated |= {"up_axis": None, "meters_per_height": units.height}
        source.warn("z is a depth in its coordinate system, and grows downward; coordinates are not turned")
    elif units.has_heights and units.height is None:
        source.warn(
            "the unit of z is unknown, as its system of heights states none; it may be another than of x and y"
        )
    elif units.length is not None and units.height is not None and abs(units.height / units.length - 1) > _SAME_UNIT:
        stated["meters_per_height"] = units.height
        source.warn(
            f"x and y are in units of {units.length:g} m but z in units of {units.height:g} m; coordinates are not "
            "converted"
        )
    return stated


def _named(system: str | None) -> str:
    return "" if system is None else f" of {name_of_system(system)}"


def _system_and_units(bodies: dict[int, bytes], prefers_text: bool) -> tuple[str | None, Units] | None:
    """Return the system of x and y that the records state, as text or by its number, and its units; None if none."""
    found: list[tuple[str | None, Units]] = []
    if _WELL_KNOWN_TEXT in bodies:
        text = bodies[_WELL_KNOWN_TEXT].decode("utf-8", "replace")
        found.append((horizontal_part(text), units_of_text(text)))
    of_keys = units_of_keys(bodies)
    if of_keys is not None:
        found.append((name_of_keys(bodies), of_keys))
    if not prefers_text:
        found.reverse()
    known = (one for one in found if one[1].length is not None or one[1].in_degrees)
    return next(known, found[0] if found else None)
