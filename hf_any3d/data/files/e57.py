"""E57 (ASTM E2807), the exchange format of terrestrial laser scanners: scans with colors, normals and intensities."""

import struct
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from hf_any3d.data.files.attributes import (
    USABLE,
    join_scans,
    usable_colors,
    usable_normals,
    usable_numbers,
    with_stand_ins,
)
from hf_any3d.data.files.column_names import fields_of
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.poses import finite, rotations
from hf_any3d.data.files.source import NoPointsError, PointCloudError, Source
from hf_any3d.data.files.text_numbers import listed, shorten

# Marks of points, and of their values, that must not be used.
_INVALID = ("cartesianInvalidState", "sphericalInvalidState")
_INVALID_VALUES = ("isIntensityInvalid", "isColorInvalid")
# Fields of the standard that say how a point was measured.
_HOW_MEASURED = (
    "rowIndex",
    "columnIndex",
    "returnIndex",
    "returnCount",
    "timeStamp",
    "isTimeStampInvalid",
    *_INVALID_VALUES,
)
NOT_READ = "row and column in the scan grid, return numbers, time stamps; names, dates and devices of scans"


@dataclass(frozen=True)
class Field:
    """Form of a field's numbers: floats of a type, or integers from the least one on, perhaps scaled."""

    bits: int
    dtype: str | None = None
    least: int = 0
    scale: float = 1.0
    offset: float = 0.0
    ends: tuple[float, float] = (-np.inf, np.inf)  # least and largest number


_OF_EXTENSIONS = ("labels", "ring")


def read(source: Source) -> PointCloudData:
    """Read all scans of a file as one cloud in their common frame, in meters, z up.

    Points marked as invalid, images and fields of extensions are left out with a warning, normals are read. Colors,
    intensities and normals are kept where all scans have them, and colors and intensities that are 0 everywhere are
    none. Of points whose color or intensity alone is marked as invalid, it is 0, with a warning.
    Colors range from the limits of colors of a scan, else from those of its fields, else from 0 to 1 or 255.
    Intensities are in the units of the sensor, or from 0 to 1 if scans state different limits.
    """
    data, root = _content(source)
    scans = [child for child in _child(root, "data3D") or () if _child(child, "points") is not None]
    total = sum(_whole(_child(scan, "points"), "recordCount", 0) for scan in scans)
    # Of all scans together, before any is decoded: float64 coordinates, and what points have beside them.
    source.check(points=total, decoded=40 * total)
    images = len(_child(root, "images2D") or ())
    clouds = []
    for number, scan in enumerate(scans, 1):
        cloud = _scan(data, scan, f"scan {number}", source)
        if cloud is not None:
            clouds.append(cloud)
    if not clouds:
        raise NoPointsError(f"has no points: none of {len(scans)} scans has valid ones (images: {images})")
    if images:
        source.leave_out([f"{images} images"])
    # The finest step counts, and one scan of floats, which have none, leaves the whole cloud without.
    steps = [cloud.pop("step") for cloud in clouds]
    step = None if None in steps else min(steps)
    joined = join_scans(clouds, source, ("normals", *_OF_EXTENSIONS))
    for name, called in (("colors", "colors"), ("intensity", "intensities")):
        if name in joined:
            joined[name] = usable_numbers(joined[name], called, source, "marked as invalid, or NaN")
    return PointCloudData(**joined, step=step, up_axis="z", meters_per_unit=1.0)


# Mark, major and minor version, length of the file, place and length of the XML section, and size of a page.
_HEADER = struct.Struct("<8sIIQQQQ")
# Bytes of a page, with those of the checksum at its end.
_PAGE, _CHECKSUM = 1024, 4


def _content(source: Source) -> tuple[bytes, Any]:
    """Return the bytes of the file without checksums, which are compared, and its XML section."""
    mark, major, minor, length, start, size, page_size = _HEADER.unpack_from(source.data)
    if mark == b"ASTM-E57" and major > 1:
        raise PointCloudError(f"E57 version {major}.{minor}; version 1 is supported")
    if (mark, major, page_size, length) != (b"ASTM-E57", 1, _PAGE, len(source.data)) or length % _PAGE:
        raise PointCloudError(
            f"cut off, damaged, or not E57: first bytes {shorten(mark)}, version {major}, {len(source.data)} of "
            f"{length} bytes, pages of {page_size}; copy or download it again"
        )
    pages = np.frombuffer(source.data, np.uint8).reshape(-1, _PAGE)
    stored = pages[:, -_CHECKSUM:].copy().view(">u4")[:, 0]
    wrong = np.flatnonzero(_checksums(pages[:, :-_CHECKSUM]) != stored)
    if wrong.size:
        raise PointCloudError(f"page {wrong[0]} of {len(pages)} is damaged: it has another checksum")
    data = pages[:, :-_CHECKSUM].tobytes()
    xml = data[_place(start) : _place(start) + size]
    # E57 has no entities, and what they stand for has no limit here.
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise PointCloudError("the XML section declares entities; expected none")
    return data, ElementTree.fromstring(xml.rstrip(b"\0"))


def _place(physical: int) -> int:
    """Return where a byte is without the checksums."""
    page, rest = divmod(physical, _PAGE)
    return page * (_PAGE - _CHECKSUM) + rest


_POLYNOMIAL = np.uint32(0x82F63B78)  # of CRC-32C, bits reversed


def _checksums(pages: np.ndarray) -> np.ndarray:
    """Return the CRC-32C of each page (pages, bytes), as ASTM E2807 prescribes."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ _POLYNOMIAL, table >> 1)
    crc = np.full(len(pages), 0xFFFFFFFF, np.uint32)
    # Byte by byte over all pages at once, since each byte's checksum depends on the one before.
    for column in np.ascontiguousarray(pages.T):
        crc = table[(crc ^ column) & 0xFF] ^ crc >> 8
    return ~crc


def _name(element: Any) -> str:
    """Return the name of an element without its namespace."""
    return element.tag.rpartition("}")[2]


def _child(element: Any, name: str) -> Any:
    """Return the first child of a name, None without one."""
    return next((child for child in element if _name(child) == name), None)


_CARTESIAN = ("cartesianX", "cartesianY", "cartesianZ")
_SPHERICAL = ("sphericalRange", "sphericalAzimuth", "sphericalElevation")


def _scan(data: bytes, scan: Any, name: str, source: Source) -> dict[str, Any] | None:
    """Read the valid points of one scan, None if there are none."""
    fields, values = _columns(data, scan, source)
    if not fields:
        return None
    kind = _CARTESIAN if _CARTESIAN[0] in fields else _SPHERICAL
    points = np.stack([values[name] for name in kind], axis=1).astype(np.float64)  # (points, 3)
    if kind is _SPHERICAL:
        # Range, azimuth and elevation to x, y and z.
        reach, azimuth, elevation = points.T
        flat = reach * np.cos(elevation)
        points = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), reach * np.sin(elevation)], axis=1)
    rotation, translation = _pose(scan, name)
    cloud: dict[str, Any] = {"points": _rotated(points, rotation) + translation}
    cloud |= _attributes(scan, fields, values, rotation, source)
    cloud = _without_invalid(cloud, values, source)
    if not len(cloud["points"]):
        return None
    # A scan without a pose may be of several places, or moved. Angles and distances are measured from the scanner.
    if kind is _SPHERICAL or _child(scan, "pose") is not None:
        cloud["scanner"] = translation
    if "intensity" in cloud:
        # The least and the largest intensity that are stated; None if they are not, or not kept.
        cloud["intensity_limits"] = None
        limits = _limits(scan, "intensityLimits")
        low = limits.get("intensityMinimum")
        high = limits.get("intensityMaximum")
        if low is not None and high is not None and low < high:
            measured = cloud["intensity"][np.isfinite(cloud["intensity"])]
            # Up to rounding of float32
            slack = 1e-6 * max(abs(low), abs(high))
            if not len(measured) or (measured.min() >= low - slack and measured.max() <= high + slack):
                cloud["intensity_limits"] = (low, high)
    # A pose turns and moves the points, but what the scanner tells apart stays.
    are_scaled = kind is _CARTESIAN and all(fields[name].dtype is None for name in kind)
    cloud["step"] = min(abs(fields[name].scale) for name in kind) if are_scaled else None
    return cloud


_COLORS = ("colorRed", "colorGreen", "colorBlue")
_NORMALS = ("normalX", "normalY", "normalZ")  # of the extension for surface normals


def _attributes(
    scan: Any, fields: dict[str, Field], values: dict[str, np.ndarray], rotation: np.ndarray | None, source: Source
) -> dict[str, np.ndarray]:
    """Return what the points of a scan have beside their coordinates."""
    cloud = {}
    if "intensity" in values:
        intensity = values["intensity"].astype(np.float32)
        # NaN until the scans have been joined, as 0 is a value like others before they are on one scale.
        cloud["intensity"] = np.where(_marked(values, "isIntensityInvalid"), np.float32(np.nan), intensity)
    for field in _OF_EXTENSIONS:
        for name in fields_of(fields).get(field, ()):
            numbers = USABLE[field](values[name], source)
            if numbers is not None:
                cloud[field] = numbers
    if _NORMALS[0] in fields:
        normals = usable_normals(np.stack([values[name] for name in _NORMALS], axis=1), source)
        if normals is not None:
            # Like the points, normals are in the frame of the scanner; a translation leaves them as they are.
            cloud["normals"] = _rotated(normals.astype(np.float64), rotation)
    if _COLORS[0] in fields:
        stored = np.stack([values[name] for name in _COLORS], axis=1)  # (points, 3)
        are_invalid = _marked(values, "isColorInvalid")
        # What is stated for the scan counts before what the fields can hold.
        limits = _limits(scan, "colorLimits")
        ends = []
        for color in _COLORS:
            low = limits.get(f"{color}Minimum")
            high = limits.get(f"{color}Maximum")
            ends.append(fields[color].ends if low is None or high is None else (low, high))
        colors = _unit(with_stand_ins(stored, are_invalid), ends, source)
        if colors is not None:
            cloud["colors"] = np.where(are_invalid[:, None], np.float32(np.nan), colors)
    return cloud


def _marked(values: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return which points (points,) have a value that is marked as invalid; none in scans without marks."""
    count = len(next(iter(values.values())))
    return values[name] != 0 if name in values else np.zeros(count, dtype=bool)


def _without_invalid(cloud: dict[str, Any], values: dict[str, np.ndarray], source: Source) -> dict[str, Any]:
    marks = next((values[name] for name in _INVALID if name in values), None)
    if marks is None or not marks.any():
        return cloud
    valid = marks == 0
    source.warn(f"{(~valid).sum():,} of {len(valid):,} points of a scan are marked as invalid and are skipped")
    return {name: value[valid] for name, value in cloud.items()}


def _columns(data: bytes, scan: Any, source: Source) -> tuple[dict[str, Field], dict[str, np.ndarray]]:
    """Read all fields of a scan that are used, and list the others; both are empty without points.

    Returns:
        Name -> form of the numbers, and name -> numbers (points,).
    """
    points = _child(scan, "points")
    count = _whole(points, "recordCount", 0)
    # The prototype describes a point: an element for each field, in the order of their streams.
    prototype = _child(points, "prototype")
    children = () if prototype is None else tuple(prototype)
    names = [_name(child) for child in children]
    # Coordinates may be stored in both ways; those that need no conversion count.
    kind = next((kind for kind in (_CARTESIAN, _SPHERICAL) if {*names} >= {*kind}), None)
    if count < 0:
        raise PointCloudError(f"the recordCount of a scan is {count}; expected a number from 0")
    if kind is None:
        raise PointCloudError(f"{count} points with the fields {listed(names)}; expected {', '.join(_CARTESIAN)}")
    if not count:
        return {}, {}
    used: list[str] = list(kind)
    for group in (_NORMALS, _COLORS):
        if {*names} >= {*group}:
            used += group
    used += [name for name in (*_INVALID, *_INVALID_VALUES, "intensity") if name in names]
    # Extensions name classes and rings as other formats do.
    used += [name for field in _OF_EXTENSIONS for name in fields_of(names).get(field, ())]
    expected = {*used, *_HOW_MEASURED, *_CARTESIAN, *_SPHERICAL}
    source.note_columns(names)
    source.check_once(used)
    source.leave_out(name for name in names if name not in expected)
    streams = _streams(data, _whole(points, "fileOffset", 0), len(names))
    fields = {}
    values = {}
    for name in used:
        place = names.index(name)
        fields[name] = _field(children[place])
        values[name] = _numbers(streams[place], fields[name], count)
    return fields, values


def _pose(scan: Any, name: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the rotation of a scan (3, 3), None for none, and its place (3,)."""
    pose = _child(scan, "pose")
    place = _of_pose(pose, "translation", "xyz", name)
    rotation = rotations(_of_pose(pose, "rotation", "wxyz", name)[None], f"the rotation (w x y z) of {name}")[0]
    # Coordinates that are not turned keep the decimals by which their step is told.
    return None if np.array_equal(rotation, np.eye(3)) else rotation, place


def _of_pose(pose: Any, part: str, names: str, scan: str) -> np.ndarray:
    """Return the numbers of a part of a pose, (names,) float64; those that are missing are 0."""
    element = None if pose is None else _child(pose, part)
    texts = {} if element is None else _texts(element)
    try:
        numbers = [_decimal(texts, name, 0) for name in names]
    except ValueError as error:
        raise PointCloudError(f"the {part} of {scan}: {error}; correct it, or export without it") from None
    return finite(np.array(numbers), f"the {part} ({' '.join(names)}) of {scan}")


def _rotated(rows: np.ndarray, rotation: np.ndarray | None) -> np.ndarray:
    return rows if rotation is None else rows @ rotation.T


def _limits(scan: Any, name: str) -> dict[str, float]:
    """Return the numbers of a structure of limits of a scan, by the names of its elements; empty without one."""
    limits = {}
    for child in _child(scan, name) or ():
        # The text of an empty element is 0, and that of a scaled integer is not scaled.
        value = float(child.text or "0") * _decimal(child, "scale", 1) + _decimal(child, "offset", 0)
        limits[_name(child)] = value
    return limits


# Ranges beyond are those of the type, not of colors.
_WIDEST, _FARTHEST = 65535.0, 1e308


def _field(element: Any) -> Field:
    """Return the form of a field's numbers from its element in the prototype."""
    kind = element.get("type")
    if kind == "Float":
        ends = _decimal(element, "minimum", -_FARTHEST), _decimal(element, "maximum", _FARTHEST)
        if element.get("precision") == "single":
            return Field(32, "<f4", ends=ends)
        return Field(64, "<f8", ends=ends)
    least = _whole(element, "minimum", -(2**63))
    most = _whole(element, "maximum", 2**63 - 1)
    if kind not in ("Integer", "ScaledInteger") or not -(2**63) <= least <= most < 2**63:
        raise PointCloudError(f"a field of type {kind} from {least} to {most}; expected floats, or 64 bits at most")
    scale = _decimal(element, "scale", 1)
    offset = _decimal(element, "offset", 0)
    ends = least * scale + offset, most * scale + offset
    # Integers are stored as their distance from the least one, in as few bits as the largest distance needs.
    return Field((most - least).bit_length(), None, least, scale, offset, ends)


# Length of the section of a scan's points, and place of its first packet.
_SECTION = struct.Struct("<8xQQ")
_DATA_PACKET = 1


def _streams(data: bytes, offset: int, count: int) -> list[bytes]:
    """Return the bytes of each field of a scan, joined over its packets."""
    section = _place(offset)
    length, start = _SECTION.unpack_from(data, section)
    stop = section + length
    at = _place(start)
    pieces: list[list[bytes]] = [[] for _ in range(count)]
    # Packets begin with their kind, and their size less one. Those of an index are skipped, since all is read.
    while at + 4 <= stop:
        if data[at] == _DATA_PACKET:
            if int.from_bytes(data[at + 4 : at + 6], "little") != count:
                raise PointCloudError(f"a packet with other fields than the {count} of its scan")
            # Then come the sizes of the fields' pieces, and the pieces.
            sizes = struct.unpack_from(f"<{count}H", data, at + 6)
            place = at + 6 + 2 * count
            for field_pieces, size in zip(pieces, sizes, strict=True):
                field_pieces.append(data[place : place + size])
                place += size
        at += int.from_bytes(data[at + 2 : at + 4], "little") + 1
    return [b"".join(field_pieces) for field_pieces in pieces]


_AT_ONCE = 1 << 16  # numbers whose bits are unpacked together, one byte for each bit


def _numbers(stream: bytes, field: Field, count: int) -> np.ndarray:
    """Decode (count,) numbers of a field."""
    if field.dtype is not None:
        return np.frombuffer(stream, field.dtype, count)
    stored = np.zeros(count, np.uint64)
    if field.bits in (8, 16, 32, 64):
        stored[:] = np.frombuffer(stream, f"<u{field.bits // 8}", count)
    elif field.bits:
        # Numbers follow each other bit by bit, the lowest bit first; a multiple of 8 of them begins with a byte.
        weights = np.uint64(1) << np.arange(field.bits, dtype=np.uint64)
        for first in range(0, count, _AT_ONCE):
            some = min(_AT_ONCE, count - first)
            begin = first * field.bits // 8
            packed = np.frombuffer(stream, np.uint8, (some * field.bits + 7) // 8, begin)
            bits = np.unpackbits(packed, count=some * field.bits, bitorder="little").reshape(some, -1)  # (some, bits)
            stored[first : first + some] = bits.astype(np.uint64) @ weights
    # Modulo 2**64, which is right for all numbers that the field can hold.
    whole = (stored + np.uint64(field.least % 2**64)).view(np.int64)
    return whole if (field.scale, field.offset) == (1.0, 0.0) else whole * field.scale + field.offset


def _unit(values: np.ndarray, ends: list, source: Source) -> np.ndarray | None:
    """Scale colors (points, 3) to [0, 1] by their ranges, or by their values where no range fits them."""
    low, high = np.array(ends, dtype=np.float64).T  # (3,) each
    is_range = (low < high) & (high - low <= _WIDEST)
    is_within = (values.min(axis=0) >= low) & (values.max(axis=0) <= high)
    if (is_range & is_within).all():
        return ((values - low) / (high - low)).clip(0, 1).astype(np.float32)
    has_16_bits = values.min() >= 0 and 255 < values.max() <= _WIDEST
    return usable_colors(values.astype(np.uint16) if has_16_bits else values, source)


def _texts(element: Any) -> dict[str, str]:
    # Of an element without text, the value is 0.
    return {_name(child): child.text or "0" for child in element}


def _whole(element: Any, name: str, default: int) -> int:
    return int(element.get(name, default))


def _decimal(element: Any, name: str, default: float) -> float:
    return float(element.get(name, default))
