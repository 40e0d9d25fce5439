"""E57, the exchange format of scanners on tripods (ASTM E2807): coordinates, colors and intensities of its scans."""

import struct
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from hf_any3d.data.files.attributes import usable_colors
from hf_any3d.data.files.point_cloud import PointCloudData
from hf_any3d.data.files.source import PointCloudError, Source
from hf_any3d.data.files.text_numbers import listed, shorten

_HEADER = struct.Struct("<8sIIQQQQ")
_PAGE, _CHECKSUM = 1024, 4
_SECTION = struct.Struct("<B7xQQQ")
_DATA_PACKET = 1
_CARTESIAN = ("cartesianX", "cartesianY", "cartesianZ")
_SPHERICAL = ("sphericalRange", "sphericalAzimuth", "sphericalElevation")
_COLORS = ("colorRed", "colorGreen", "colorBlue")
_INVALID = ("cartesianInvalidState", "sphericalInvalidState")
_MOST_SCANS = 4096
# Ranges beyond are those of the type, not of colors.
_WIDEST, _FARTHEST = 65535.0, 1e308
_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Field:
    """Form of a field's numbers: floats of a type, or integers from the least one on, perhaps scaled.

    `ends` are the least and largest number that the field declares, infinite where it does not.
    """

    bits: int
    dtype: str | None = None
    least: int = 0
    scale: float = 1.0
    offset: float = 0.0
    ends: tuple[float, float] = (-np.inf, np.inf)


def read(source: Source) -> PointCloudData:
    """Read all scans of a file as one cloud in their common frame, in meters, z up; images are left out.

    Points marked as invalid are left out with a warning. Colors and intensities are kept where all scans have them.
    Colors range from the limits of colors of a scan, else from those of its fields, else from 0 to 1 or 255.

    Raises:
        PointCloudError: a wrong header, a page with another checksum, or a scan that is damaged or of another layout.
    """
    data, xml = _logical(source.data)
    root = _tree(xml)
    scans = [child for child in _child(root, "data3D") or () if _child(child, "points") is not None]
    if not scans or len(scans) > _MOST_SCANS:
        raise PointCloudError(f"{len(scans)} scans of points; expected 1 to {_MOST_SCANS}")
    total = sum(_whole(_child(scan, "points"), "recordCount", 0) for scan in scans)
    source.check(points=total, decoded=40 * total)
    clouds = [cloud for scan in scans if (cloud := _scan(data, scan, source)) is not None]
    if not clouds:
        raise PointCloudError("there are no valid points; expected at least 1")
    steps = [cloud.pop("step") for cloud in clouds]
    joined: dict[str, Any] = {"step": None if None in steps else min(steps), "up_axis": "z"}
    for name in ("points", "colors", "intensity"):
        having = [cloud[name] for cloud in clouds if name in cloud]
        if len(having) == len(clouds):
            joined[name] = np.concatenate(having)
        elif having:
            source.warn(f"{len(clouds) - len(having)} of {len(clouds)} scans have no {name}; they are left out")
    return PointCloudData(**joined, meters_per_unit=1.0)


def _logical(data: bytes) -> tuple[bytes, bytes]:
    """Return the content of the pages, and of it the XML section."""
    if not data.startswith(b"ASTM-E57"):
        raise PointCloudError(f"starts with {data[:8]!r}; an E57 file starts with 'ASTM-E57'")
    _, major, minor, length, start, size, page = _HEADER.unpack_from(data[: _HEADER.size].ljust(_HEADER.size, b"\0"))
    if (major, page) != (1, _PAGE):
        raise PointCloudError(f"version {major}.{minor} with pages of {page} bytes; expected 1.0 with {_PAGE}")
    if length != len(data) or length % _PAGE:
        raise PointCloudError(f"{len(data)} bytes of {length}, in pages of {_PAGE}; the file may be cut off")
    pages = np.frombuffer(data, np.uint8).reshape(-1, _PAGE)
    stored = pages[:, -_CHECKSUM:].copy().view(">u4")[:, 0]
    if (wrong := np.flatnonzero(_checksums(pages[:, :-_CHECKSUM]) != stored)).size:
        raise PointCloudError(f"page {wrong[0]} of {len(pages)} is damaged: it has another checksum")
    logical = pages[:, :-_CHECKSUM].tobytes()
    at = _place(start, len(logical))
    return logical, logical[at : at + size]  # of an XML that is cut off, the end is missing


def _place(physical: int, size: int) -> int:
    page, rest = divmod(physical, _PAGE)
    place = page * (_PAGE - _CHECKSUM) + rest
    if rest >= _PAGE - _CHECKSUM or place >= size:
        raise PointCloudError(f"a section at byte {physical}, outside of the pages; the file may be damaged")
    return place


def _checksums(pages: np.ndarray) -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    crc = np.full(len(pages), 0xFFFFFFFF, np.uint32)
    for column in np.ascontiguousarray(pages.T):
        crc = table[(crc ^ column) & 0xFF] ^ crc >> 8
    return ~crc


def _tree(xml: bytes) -> ElementTree.Element:
    # Entities could expand without end, and E57 has none.
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise PointCloudError("the XML section declares entities; expected none")
    try:
        return ElementTree.fromstring(xml.rstrip(b"\0"))
    except (ElementTree.ParseError, ValueError, RecursionError, LookupError) as error:
        raise PointCloudError(f"the XML section is damaged ({str(error)[:80]})") from None


def _child(element: Any, name: str) -> Any:
    return next((child for child in element if child.tag.rpartition("}")[2] == name), None)


def _scan(data: bytes, scan: Any, source: Source) -> dict[str, Any] | None:
    """Read the valid points of one scan, None if there are none."""
    points = _child(scan, "points")
    count = _whole(points, "recordCount", 0)
    prototype = _child(points, "prototype")
    children = () if prototype is None else tuple(prototype)
    names = [child.tag.rpartition("}")[2] for child in children]
    fields = {name: _field(child) for name, child in zip(names, children, strict=True)}
    kind = next((kind for kind in (_CARTESIAN, _SPHERICAL) if fields.keys() >= {*kind}), None)
    if kind is None:
        raise PointCloudError(f"a scan with the fields {listed(names)}; expected {', '.join(_CARTESIAN)}")
    if not count:
        return None
    streams = _streams(data, _whole(points, "fileOffset", 0), len(names))
    wanted = [*kind, *(name for name in (*_INVALID, "intensity", *_COLORS) if name in fields)]
    values = {name: _numbers(streams[names.index(name)], fields[name], count, name) for name in wanted}
    xyz = np.stack([values[name] for name in kind], axis=1).astype(np.float64)  # (points, 3)
    if kind is _SPHERICAL:
        reach, azimuth, elevation = xyz.T
        flat = reach * np.cos(elevation)
        xyz = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), reach * np.sin(elevation)], axis=1)
    found: dict[str, Any] = {"points": _posed(xyz, _child(scan, "pose"))}
    # A pose turns and moves the points, but what the scanner tells apart stays.
    are_scaled = kind is _CARTESIAN and all(fields[name].dtype is None for name in kind)
    step = min(abs(fields[name].scale) for name in kind) if are_scaled else None
    if "intensity" in values:
        found["intensity"] = values["intensity"].astype(np.float32)
    if all(name in values for name in _COLORS):
        limits = _limits(_child(scan, "colorLimits"))
        ends = [limits.get(name, fields[name].ends) for name in _COLORS]
        if (colors := _unit(np.stack([values[name] for name in _COLORS], axis=1), ends, source)) is not None:
            found["colors"] = colors
    invalid = next((values[name] != 0 for name in _INVALID if name in values), None)
    if invalid is not None and invalid.any():
        source.warn(f"{invalid.sum():,} of {count:,} points of a scan are marked as invalid and are left out")
        found = {name: value[~invalid] for name, value in found.items()}
    return {**found, "step": step} if len(found["points"]) else None


def _field(element: Any) -> Field:
    if (kind := element.get("type")) == "Float":
        ends = _decimal(element, "minimum", -_FARTHEST), _decimal(element, "maximum", _FARTHEST)
        return Field(32, "<f4", ends=ends) if element.get("precision") == "single" else Field(64, "<f8", ends=ends)
    if kind not in ("Integer", "ScaledInteger"):
        raise PointCloudError(f"a field of type {shorten(str(kind))}; expected Float, Integer or ScaledInteger")
    least, most = _whole(element, "minimum", -(2**63)), _whole(element, "maximum", 2**63 - 1)
    if not -(2**63) <= least <= most < 2**63:
        raise PointCloudError(f"a field of integers from {least} to {most}; expected 64 bits at most")
    scale, offset = _decimal(element, "scale", 1), _decimal(element, "offset", 0)
    return Field(
        (most - least).bit_length(), None, least, scale, offset, (least * scale + offset, most * scale + offset)
    )


def _streams(data: bytes, offset: int, count: int) -> list[bytes]:
    """Return the bytes of each field of a scan, joined over its packets."""
    at = _place(offset, len(data))
    section, length, start, _ = _SECTION.unpack_from(data[at : at + _SECTION.size].ljust(_SECTION.size, b"\0"))
    if section != 1 or length > len(data) - at:
        raise PointCloudError(f"a section of kind {section} with {length} bytes; expected 1, within the file")
    stop, at = at + length, _place(start, len(data))
    pieces: list[list[bytes]] = [[] for _ in range(count)]
    while at + 4 <= stop:
        kind, size = data[at], int.from_bytes(data[at + 2 : at + 4], "little") + 1
        if at + size > stop or size % 4:
            raise PointCloudError(f"a packet of {size} bytes ends after its section; the file may be damaged")
        if kind == _DATA_PACKET:
            place = at + 6 + 2 * count
            if int.from_bytes(data[at + 4 : at + 6], "little") != count or place > at + size:
                raise PointCloudError(f"a packet with other fields than the {count} of its scan")
            for piece, bytes_ in zip(pieces, struct.unpack_from(f"<{count}H", data, at + 6), strict=True):
                piece.append(data[place : place + bytes_])
                place += bytes_
            if place > at + size:
                raise PointCloudError("a packet with more bytes than it declares; the file may be damaged")
        at += size
    return [b"".join(piece) for piece in pieces]


def _numbers(stream: bytes, field: Field, count: int, name: str) -> np.ndarray:
    """Decode (count,) numbers of a field."""
    if 8 * len(stream) < count * field.bits:
        raise PointCloudError(
            f"{len(stream)} bytes of {name} for {count} points of {field.bits} bits; it may be cut off"
        )
    if field.dtype is not None:
        return np.frombuffer(stream, field.dtype, count)
    stored = np.zeros(count, np.uint64)
    if field.bits in (8, 16, 32, 64):
        stored[:] = np.frombuffer(stream, f"<u{field.bits // 8}", count)
    elif field.bits:
        weights = np.uint64(1) << np.arange(field.bits, dtype=np.uint64)
        for first in range(0, count, _AT_ONCE):
            some = min(_AT_ONCE, count - first)
            begin = first * field.bits // 8
            packed = np.frombuffer(stream, np.uint8, (some * field.bits + 7) // 8, begin)
            bits = np.unpackbits(packed, count=some * field.bits, bitorder="little").reshape(some, -1)
            stored[first : first + some] = bits.astype(np.uint64) @ weights
    # Modulo 2**64, which is right for all numbers that the field can hold.
    whole = (stored + np.uint64(field.least % 2**64)).view(np.int64)
    return whole if (field.scale, field.offset) == (1.0, 0.0) else whole * field.scale + field.offset


def _limits(element: Any) -> dict[str, tuple[float, float]]:
    """Return the least and largest value of each color that the limits of a scan name."""
    numbers = {}
    for child in element if element is not None else ():
        # The text of an empty element is 0, and that of a scaled integer is not scaled.
        value = _decimal({"value": child.text or "0"}, "value", 0)
        numbers[child.tag.rpartition("}")[2]] = value * _decimal(child, "scale", 1) + _decimal(child, "offset", 0)
    pairs = {name: (f"{name}Minimum", f"{name}Maximum") for name in _COLORS}
    return {
        name: (numbers[low], numbers[high]) for name, (low, high) in pairs.items() if {low, high} <= numbers.keys()
    }


def _unit(values: np.ndarray, ends: list[tuple[float, float]], source: Source) -> np.ndarray | None:
    """Scale colors (points, 3) to [0, 1] by their ranges, or by their values where no range fits them."""
    low, high = np.array(ends, dtype=np.float64).T
    fits = (low < high) & (high - low <= _WIDEST) & (values.min(axis=0) >= low) & (values.max(axis=0) <= high)
    if fits.all():
        return ((values - low) / (high - low)).clip(0, 1).astype(np.float32)
    has_16_bits = values.min() >= 0 and 255 < values.max() <= _WIDEST
    return usable_colors(values.astype(np.uint16) if has_16_bits else values, source)


def _posed(xyz: np.ndarray, pose: Any) -> np.ndarray:
    turn, move = (None if pose is None else _child(pose, name) for name in ("rotation", "translation"))
    if turn is not None:
        quaternion = np.array([_decimal(_texts(turn), name, 0) for name in "wxyz"])
        if not 0 < (length := np.linalg.norm(quaternion)) < np.inf:
            raise PointCloudError(f"a scan is turned by a quaternion of length {length:g}; expected 1")
        w, *axis = quaternion / length
        cross = np.cross(axis, xyz)
        xyz = xyz + 2 * (w * cross + np.cross(axis, cross))
    return xyz if move is None else xyz + [_decimal(_texts(move), name, 0) for name in "xyz"]


def _texts(element: Any) -> dict[str, str]:
    # Of an element without text, the value is 0.
    return {child.tag.rpartition("}")[2]: child.text or "0" for child in element}


def _whole(element: Any, name: str, default: int) -> int:
    text, sign = str(element.get(name, default)).strip(), "-" if name in ("minimum", "maximum") else ""
    if not text.removeprefix(sign).isdecimal() or not text.isascii() or len(text) > 20:
        raise PointCloudError(f"{name} is {shorten(text)}; expected a whole number")
    return int(text)


def _decimal(element: Any, name: str, default: float) -> float:
    try:
        value = float(element.get(name, default))
    except ValueError:
        value = np.nan
    if not abs(value) < np.inf:
        raise PointCloudError(f"{name} is {shorten(str(element.get(name)))}; expected a finite number")
    return value
