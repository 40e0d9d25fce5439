"""Units of the coordinates of a LAS file, by its coordinate reference system."""

import re
import struct

_RECORD_HEADER = 54
_KEYS, _TEXT = 34735, 2112
_MODEL, _GEOGRAPHIC, _UNIT = 1024, 2, 3076
# Codes of EPSG, as GeoTIFF keys name them.
_METERS = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937}


def meters_per_unit(data: bytes, start: int) -> float | None:
    """Return the length of a unit: meters, unless a record names feet.

    Args:
        data: The file.
        start: Where its points start.

    Returns:
        Its meters; None for degrees and for units that are not known.
    """
    found: float | None = 1.0
    at, number = struct.unpack_from("<H", data, 94)[0], struct.unpack_from("<I", data, 100)[0]
    for _ in range(number):
        if at + _RECORD_HEADER > start:
            break
        user, kind, size = struct.unpack_from("<2x16sHH", data, at)
        at += _RECORD_HEADER
        if user.rstrip(b"\0") == b"LASF_Projection" and at + size <= start:
            if kind == _KEYS:
                found = _of_keys(data[at : at + size])
            elif kind == _TEXT:
                return _of_text(data[at : at + size].decode("ascii", "replace"))
        at += size
    return found


def _of_keys(record: bytes) -> float | None:
    numbers = struct.unpack(f"<{len(record) // 2}H", record[: len(record) // 2 * 2])
    # After four numbers of a header: key, place of the value, count, and the value itself where the place is 0.
    values = {key: value for key, place, _, value in zip(*[iter(numbers[4:])] * 4, strict=False) if place == 0}
    if values.get(_MODEL) == _GEOGRAPHIC:
        return None
    return _METERS.get(values.get(_UNIT, 9001))


def _of_text(text: str) -> float | None:
    """Return the meters of the unit of a projection as well-known text; None without a projection."""
    if (projection := re.search(r"PROJ(?:CS|CRS)\[", text)) is None:
        return None
    horizontal = re.split(r"VERT(?:_CS|CRS)\[", text[projection.start() :])[0]
    # The last one: that of angles and those of the parameters come before.
    units = re.findall(r'(?:LENGTH)?UNIT\[\s*"([^"]*)"\s*,\s*([0-9.eE+-]+)', horizontal)
    lengths = [float(size) for name, size in units if "deg" not in name.lower()]
    return lengths[-1] if lengths else None
