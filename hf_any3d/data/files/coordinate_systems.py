"""Coordinate systems of files, by well-known text and by keys of GeoTIFF, as LAS stores them.

pyproj knows the systems; it is imported where a file states one, and only there. Files have x east and y north
whatever order of axes a system states, as PDAL and GDAL (`OAMS_TRADITIONAL_GIS_ORDER`) read and write them, so that
order is not looked at. A third axis that points down is: heights of depths have a negative unit.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from hf_any3d.data.options import package

FOOT, US_SURVEY_FOOT = 0.3048, 1200 / 3937
"""Lengths of the two feet in meters. They differ by two millionths: 1.3 m in the coordinates of a state."""
# A text has a few thousand characters. More is a damaged file.
_LONGEST = 1 << 20
_EPSG = "EPSG:"


@dataclass(frozen=True)
class Units:
    """Units of a coordinate system.

    Attributes:
        length: Length of a unit of x and y in meters, as the system has it; None where they are no lengths, or nothing
            is known of them.
        height: The same of heights, below 0 where they are depths; None where the system says nothing about them.
        in_degrees: Whether x and y are longitude and latitude.
        is_geocentric: Whether coordinates are from the center of the Earth, so that no axis points up.
        has_heights: Whether the system has heights, of which `height` may be unknown.
    """

    length: float | None = None
    height: float | None = None
    in_degrees: bool = False
    is_geocentric: bool = False
    has_heights: bool = False


UNKNOWN = Units()


@dataclass(frozen=True)
class CoordinateSystem:
    """The system of the points of a file, to be compared with that of another one.

    Attributes:
        flat: System of x and y, well-known text or a name such as "EPSG:2154"; None if the file names none.
        heights: Name of the system of heights, such as "EPSG:5720" or "NAVD88 height"; None without one.
    """

    flat: str | None = None
    heights: str | None = None

    def __str__(self) -> str:
        """Return its name, with its number where it has one."""
        flat = None if self.flat is None else name_of_system(self.flat)
        return " with heights in ".join(name for name in (flat, self.heights) if name is not None)

    def differs_from(self, other: CoordinateSystem) -> bool:
        """Return whether two systems are known to be different; what one does not say is not compared."""
        if self.flat is not None and other.flat is not None and _are_different(self.flat, other.flat):
            return True
        heights = (self.heights, other.heights)
        if None in heights:
            return False
        # A number in one file and a name in the other may be the same system.
        of_epsg = [name.startswith(_EPSG) for name in heights if name is not None]
        return heights[0] != heights[1] and of_epsg[0] == of_epsg[1]


def units_of_text(text: str) -> Units:
    """Return the units of a coordinate system in well-known text; unknown ones of text that is none, or cut off."""
    system = _system_of(text)
    if system is None:
        return UNKNOWN
    flat, heights = _parts(system)
    units = UNKNOWN if flat is None else _units_of(flat)
    if heights is not None:
        height = _units_of(heights).height
        units = replace(units, height=units.height if height is None else height, has_heights=True)
    return units


def horizontal_part(text: str) -> str | None:
    """Return the system of x and y of a coordinate system in well-known text, which may have one of heights, too.

    None for text that is none, or cut off.
    """
    system = _system_of(text)
    flat = None if system is None else _parts(system)[0]
    return None if flat is None else flat.to_wkt()


def heights_part(text: str) -> str | None:
    """Return the name of the system of heights of a coordinate system in well-known text; None without one."""
    system = _system_of(text)
    heights = None if system is None else _parts(system)[1]
    if heights is None:
        return None
    number = _number_of(heights)
    return heights.name if number is None else f"{_EPSG}{number}"


def name_of_system(text: str) -> str:
    """Return what a system is called, with its number where it has one; unknown text as it is."""
    system = _system_of(text)
    if system is None:
        return text
    number = _number_of(system)
    return system.name if number is None else f"{_EPSG}{number} ({system.name})"


# Share by which lengths on a map may differ from those on the ground before they are measured on the ground, and by
# which they may differ between two directions before x and y can have no common scale.
_TRUE, _ALIKE = 0.01, 0.05


@dataclass(frozen=True)
class GroundScale:
    """Scale of a map at a place: lengths on the ground by those on the map.

    Attributes:
        scale: Length on the ground of what is a meter long on the map, as the root of the ratio of areas.
        ratio: The longest length on the ground over the shortest, of what has one length on the map in all directions.
    """

    scale: float
    ratio: float

    @property
    def is_true(self) -> bool:
        """True if lengths on the map are those on the ground, within a percent in each direction."""
        return max(self.scale * self.ratio**0.5, self.ratio**0.5 / self.scale) <= 1 + _TRUE

    @property
    def is_alike(self) -> bool:
        """True if lengths in all directions have one scale, within five percent."""
        return self.ratio <= 1 + _ALIKE


_STEP = 50.0  # units of the map over which its scale is measured


def ground_scale_at(text: str, place: Sequence[float]) -> GroundScale | None:
    """Return the scale of a map at a place, which for EPSG:3857 is the cosine of the latitude.

    It is measured between the places that coordinates of the map stand for, on the ellipsoid.

    Args:
        text: Well-known text or a name such as "EPSG:3857".
        place: x and y on the map.

    Returns:
        None where the system is no map projection, where it is not known, or where the place is far from the area
        that the system is made for, so that the coordinates are not its own.
    """
    system = _system_of(text)
    flat = None if system is None else _parts(system)[0]
    length = None if flat is None else _units_of(flat).length
    ground = None if flat is None else flat.get_geod()
    if flat is None or ground is None or length is None or not flat.is_projected:
        return None
    x, y = place
    pyproj = package("pyproj", "files")
    try:
        longitudes, latitudes = _to_degrees(flat.to_wkt()).transform([x, x + _STEP, x], [y, y, y + _STEP])
        azimuths, _, lengths = ground.inv(
            [longitudes[0]] * 2, [latitudes[0]] * 2, longitudes[1:], latitudes[1:], radians=False
        )
    except (pyproj.exceptions.ProjError, ValueError):
        return None
    # A step along x and one along y, (2, 2), east and north in meters on the ground for each meter on the map
    turn = np.radians(azimuths)
    steps = np.stack([np.sin(turn), np.cos(turn)]) * np.array(lengths) / (_STEP * length)
    if not np.isfinite(steps).all() or not (longest := np.linalg.svd(steps)[1])[1] > 0:
        return None
    found = GroundScale(float(np.sqrt(longest.prod())), float(longest[0] / longest[1]))
    # Looked up only where it counts, as texts have no area, and their systems are searched for by what they say.
    if not found.is_true and not _is_near_area(flat, longitudes[0], latitudes[0]):
        return None
    return found


# Degrees of longitude and latitude beyond the area of a system up to which coordinates are taken for places of it.
# Further away are those of a local frame, whose scale no system knows.
_BEYOND = (12.0, 2.0)


def _is_near_area(system: Any, longitude: float, latitude: float) -> bool:
    """Return whether a place is near the area that a system is made for; True where no area is known."""
    area = system.area_of_use
    if area is None:
        number = _number_of(system) or system.to_epsg(min_confidence=60)
        known = None if number is None else _system_of(f"{_EPSG}{number}")
        area = None if known is None else known.area_of_use
    if area is None:
        return True
    width = (area.east - area.west) % 360 or 360
    # Degrees from the middle of the area, which may go over the date line
    from_middle = abs((longitude - area.west - width / 2 + 180) % 360 - 180)
    is_in_latitude = area.south - _BEYOND[1] <= latitude <= area.north + _BEYOND[1]
    return from_middle <= width / 2 + _BEYOND[0] and is_in_latitude


_KEPT = 64  # systems


@lru_cache(_KEPT)
def _to_degrees(text: str) -> Any:
    """Return what turns x and y of a map into longitudes and latitudes on its own ellipsoid, in degrees."""
    pyproj = package("pyproj", "files")
    system = pyproj.CRS.from_wkt(text)
    ground = system.get_geod()
    degrees = {"proj": "longlat", "a": ground.a, "b": ground.b}
    return pyproj.Transformer.from_crs(system, pyproj.CRS.from_dict(degrees), always_xy=True)


@lru_cache(_KEPT)
def _system_of(text: str) -> Any:
    """Return a coordinate system by well-known text or a name such as "EPSG:2154"; None if pyproj does not know it."""
    text = text.rstrip("\0 \t\r\n")
    if not text or len(text) > _LONGEST:
        return None
    pyproj = package("pyproj", "files")
    if "[" not in text:
        # OGC 01-009 allows parentheses, which pyproj does not know.
        text = text.translate({ord("("): "[", ord(")"): "]"})
    try:
        # Text of a file is no path, and no name of anything else that pyproj would look for.
        return pyproj.CRS.from_user_input(text) if text.startswith(_EPSG) else pyproj.CRS.from_wkt(text)
    except pyproj.exceptions.CRSError:
        return None


def _parts(system: Any) -> tuple[Any, Any]:
    """Return the system of x and y, which may have heights as a third axis, and the one of heights; None for none."""
    # One that is bound has its way to another system around it.
    while system.is_bound:
        system = system.source_crs
    if not system.is_compound:
        return (None, system) if system.is_vertical else (system, None)
    parts = [_parts(part) for part in system.sub_crs_list]
    flat = next((part[0] for part in parts if part[0] is not None), None)
    return flat, next((part[1] for part in parts if part[1] is not None), None)


def _units_of(system: Any) -> Units:
    """Return the units of one system, by its axes."""
    flat = []
    upward = []
    for axis in system.axis_info:
        size = axis.unit_conversion_factor
        # What GDAL does not know, it calls so, with 1 in place of the size.
        known = 0 < size < float("inf") and axis.unit_name != "unknown"
        length = _exact(size) if known else None
        if axis.direction in ("up", "down"):
            upward.append(-length if length is not None and axis.direction == "down" else length)
        else:
            flat.append(length)
    height = upward[0] if upward else None
    if system.is_geographic:
        return Units(None, height, in_degrees=True, has_heights=bool(upward))
    if system.is_geocentric:
        return Units(flat[0] if flat else None, is_geocentric=True)
    is_one = bool(flat) and all(length == flat[0] for length in flat)
    return Units(flat[0] if is_one else None, height, has_heights=bool(upward))


# Texts and EPSG round the US survey foot to seven digits or more, which is finer than what tells the two feet apart.
_ROUNDED = 2e-7


def _exact(length: float) -> float:
    """Return the US survey foot in full for one that is rounded."""
    return US_SURVEY_FOOT if abs(length / US_SURVEY_FOOT - 1) < _ROUNDED else length


def _number_of(system: Any) -> int | None:
    """Return the EPSG code that a system states, which is not looked for; None if it states none."""
    stated = system.to_json_dict().get("id", {})
    is_epsg = str(stated.get("authority")).upper() == "EPSG" and str(stated.get("code")).isdigit()
    return int(stated["code"]) if is_epsg else None


def _are_different(first: str, second: str) -> bool:
    """Return whether two systems of x and y, in text or by number, are known to be different."""
    one, other = _system_of(first), _system_of(second)
    if one is None or other is None:
        return False
    numbers = (_number_of(one), _number_of(other))
    if None not in numbers:
        return numbers[0] != numbers[1]
    facts, others = _facts_of(one), _facts_of(other)
    if facts is None or others is None:
        # Nothing but names, which each program writes in its own way
        return False
    return len(facts) != len(others) or not np.allclose(facts, others, rtol=1e-6, atol=1e-6)


def _facts_of(system: Any) -> list[float] | None:
    """Return the numbers that define a projected system, in order: parameters, ellipsoid, unit; None of others.

    Dialects differ in names and order, and in parameters that change nothing, 0 and 1.
    """
    flat = _parts(system)[0]
    if flat is None or not flat.is_projected or flat.coordinate_operation is None:
        return None
    # Each dialect has its own units of angles and lengths.
    values = [value.value * value.unit_conversion_factor for value in flat.coordinate_operation.params]
    facts = [float(abs(value)) for value in values if value not in (0.0, 1.0)]
    return sorted([*facts, flat.get_geod().a, _units_of(flat).length or 1.0])


# Keys of GeoTIFF 1.1 (OGC 19-008r4), the records that hold them, and what their numbers mean.
_MODEL, _GEOGRAPHIC_SYSTEM, _PROJECTED_SYSTEM, _UNIT, _UNIT_SIZE = 1024, 2048, 3072, 3076, 3077
_VERTICAL_SYSTEM, _VERTICAL_UNIT = 4096, 4099
_IS_PROJECTED, _IS_GEOGRAPHIC, _IS_GEOCENTRIC = 1, 2, 3


def name_of_keys(records: dict[int, bytes]) -> str | None:
    """Return the name of the system of x and y that the GeoTIFF keys name, such as "EPSG:2154".

    None if they name none, or define one of their own.
    """
    values = _values_of_keys(records)
    number = values.get(_PROJECTED_SYSTEM)
    if number is None and values.get(_MODEL, _IS_GEOGRAPHIC) in (_IS_GEOGRAPHIC, _IS_GEOCENTRIC):
        number = values.get(_GEOGRAPHIC_SYSTEM)
    return _epsg_name(number)


def heights_of_keys(records: dict[int, bytes]) -> str | None:
    """Return the name of the system of heights that the GeoTIFF keys name, such as "EPSG:5720"; None without one."""
    return _epsg_name(_values_of_keys(records).get(_VERTICAL_SYSTEM))


_USER_DEFINED = 32767  # in place of the number of a system


def _epsg_name(number: float | None) -> str | None:
    # 0 is undefined, and from 32767 on are systems that users define.
    return f"{_EPSG}{int(number)}" if number is not None and 0 < number < _USER_DEFINED else None


def units_of_keys(records: dict[int, bytes]) -> Units | None:
    """Return the units that the GeoTIFF keys name, or None if no key defines the horizontal unit.

    Args:
        records: Number of the record -> its content: 34735 has the keys, 34736 the numbers in double precision.
    """
    values = _values_of_keys(records)
    model = values.get(_MODEL)
    name = name_of_keys(records)
    heights = heights_of_keys(records)
    stated = UNKNOWN if name is None else units_of_text(name)
    has_heights = bool({_VERTICAL_SYSTEM, _VERTICAL_UNIT} & {*values}) or stated.has_heights
    own = None if heights is None else units_of_text(heights).height
    height = stated.height if own is None else own
    # The unit of a system that is defined here, or that differs from the one that EPSG gives it
    if (size := _length_of_code(values.get(_VERTICAL_UNIT))) is not None:
        height = -size if height is not None and height < 0 else size
    units = replace(stated, height=height, has_heights=has_heights)
    if stated.in_degrees or (name is None and model == _IS_GEOGRAPHIC):
        return replace(units, length=None, in_degrees=True)
    if model == _IS_GEOCENTRIC or stated.is_geocentric:
        return replace(units, length=stated.length or 1.0, is_geocentric=True)
    if _UNIT in values:
        length = _length_of_code(values[_UNIT])
        if length is None and 0 < values.get(_UNIT_SIZE, 0.0) < float("inf"):
            length = _exact(values[_UNIT_SIZE])
        return replace(units, length=length)
    return units if name is not None or model == _IS_PROJECTED or _PROJECTED_SYSTEM in values else None


def _length_of_code(code: float | None) -> float | None:
    """Return the length in meters of EPSG's unit of this number; None without one, and of a unit of angles."""
    return None if code is None else _lengths().get(int(code))


@lru_cache(1)
def _lengths() -> dict[int, float]:
    """Return number of a unit of length -> meters."""
    units = package("pyproj.database", "files").get_units_map(
        auth_name="EPSG", category="linear", allow_deprecated=True
    )
    return {int(unit.code): _exact(unit.conv_factor) for unit in units.values()}


_KEYS, _DOUBLES = 34735, 34736


def _values_of_keys(records: dict[int, bytes]) -> dict[int, float]:
    """Return the numbers of GeoTIFF keys by key."""
    keys = records.get(_KEYS, b"")
    doubles = records.get(_DOUBLES, b"")
    numbers = struct.unpack(f"<{len(keys) // 2}H", keys[: len(keys) // 2 * 2])
    reals = struct.unpack(f"<{len(doubles) // 8}d", doubles[: len(doubles) // 8 * 8])
    values: dict[int, float] = {}
    # After a header of four numbers: key, place of the value, count, and the value itself if the place is 0, or else
    # its number in the record of that place.
    for at in range(4, len(numbers) - 3, 4):
        key, place, _, value = numbers[at : at + 4]
        if place == 0:
            values[key] = value
        elif place == _DOUBLES and value < len(reals):
            values[key] = reals[value]
    return values
