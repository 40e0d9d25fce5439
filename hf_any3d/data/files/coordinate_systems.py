"""Coordinate systems and their units, by well-known text and by keys of GeoTIFF, as LAS stores them.

Read are the dialects of the text that programs write: WKT1 of OGC 01-009 and of GDAL, that of Esri, and WKT2 of 2015
and 2019 (OGC 18-010r7, ISO 19162).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from hf_any3d.data.files.epsg_table import LENGTHS
from hf_any3d.data.files.epsg_units import in_degrees, length_of_heights, length_of_unit

FOOT, US_SURVEY_FOOT = 0.3048, 1200 / 3937
"""Lengths of the two feet in meters. They differ by two millionths: 1.3 m in the coordinates of a state."""
# Texts round the US survey foot to seven digits or more, which is finer than what tells the two feet apart.
_ROUNDED = 2e-7

# Words of the text, all in capitals.
_COMPOUND = {"COMPD_CS", "COMPOUNDCRS"}
_PROJECTED = {"PROJCS", "PROJCRS", "PROJECTEDCRS", "DERIVEDPROJCRS"}
_GEODETIC = {"GEOGCS", "GEOGCRS", "GEOGRAPHICCRS", "GEODCRS", "GEODETICCRS", "GEOCCS"}
_LOCAL = {"LOCAL_CS", "ENGCRS", "ENGINEERINGCRS"}
_VERTICAL = {"VERT_CS", "VERTCS", "VERTCRS", "VERTICALCRS"}
_SYSTEMS = _COMPOUND | _PROJECTED | _GEODETIC | _LOCAL | _VERTICAL
# What is around a system: with its way to another system, fitted to it, or with the time of the coordinates. The
# system of the points is the first one inside, that of `SOURCECRS`.
_AROUND = {"BOUNDCRS", "SOURCECRS", "FITTED_CS", "COORDINATEMETADATA"}
_LENGTHS, _ANGLES = {"UNIT", "LENGTHUNIT"}, {"ANGLEUNIT"}
# Directions of axes that are heights, and not x or y.
_UPWARD = {"UP", "DOWN"}
# Names of units of angles, in dialects that have one word for all units.
_ANGLE_NAMES = re.compile(r"deg|grad|radian|\bgon\b", re.IGNORECASE)
_TOKEN = re.compile(
    r'\s*(?:"(?P<text>(?:[^"]|"")*)"|(?P<open>[\[(])|(?P<close>[\])])|(?P<comma>,)|(?P<word>[^\s\[\]()",]+))'
)
# A text has a few thousand characters and ten levels of brackets. More is a damaged file.
_LONGEST, _DEEPEST = 1 << 20, 64

# Keys of GeoTIFF 1.1 (OGC 19-008r4), the records that hold them, and what their numbers mean.
_MODEL, _GEOGRAPHIC_SYSTEM, _PROJECTED_SYSTEM, _UNIT, _UNIT_SIZE = 1024, 2048, 3072, 3076, 3077
_VERTICAL_SYSTEM, _VERTICAL_UNIT = 4096, 4099
_IS_PROJECTED, _IS_GEOGRAPHIC, _IS_GEOCENTRIC = 1, 2, 3
_USER_DEFINED = 32767  # in place of the number of a system
_KEYS, _DOUBLES = 34735, 34736


@dataclass(frozen=True)
class Units:
    """Units of a coordinate system.

    Attributes:
        length: Length of a unit of x and y in meters; None where they are no lengths, or nothing is known of them.
        height: The same of heights; None where the system says nothing about them.
        in_degrees: Whether x and y are longitude and latitude.
    """

    length: float | None = None
    height: float | None = None
    in_degrees: bool = False


UNKNOWN = Units()
_DEGREES = Units(in_degrees=True)


@dataclass
class _Node:
    """A word of the text with what is in its brackets."""

    word: str  # in capitals
    values: list[str | float] = field(default_factory=list)  # texts, numbers and bare words
    nodes: list[_Node] = field(default_factory=list)
    start: int = 0  # of its characters in the text
    end: int = 0

    def named(self, words: set[str]) -> Iterator[_Node]:
        """Yield the nodes directly inside that have one of these words."""
        return (node for node in self.nodes if node.word in words)


def units_of_text(text: str) -> Units:
    """Return the units of a coordinate system in well-known text; unknown ones of text that is none, or cut off."""
    roots = _parse(text)
    if roots is None:
        return UNKNOWN
    # Esri's programs write heights as a second system behind the first.
    return _joined([units for node in roots if (units := _units_of_node(node)) is not None])


def _parse(text: str) -> list[_Node] | None:
    """Return the outermost nodes; None if brackets do not match, or if it is too long for such a text."""
    top = _Node("")
    # Nodes whose brackets are open, the innermost last
    open_nodes = [top]
    word = ""
    word_start = 0
    at = 0
    text = text.rstrip("\0 \t\r\n")
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or len(open_nodes) > _DEEPEST or len(text) > _LONGEST:
            return None
        at = token.end()
        inside = open_nodes[-1]
        if token.lastgroup == "open":
            node = _Node(word.upper(), start=word_start)
            inside.nodes.append(node)
            open_nodes.append(node)
            word = ""
            continue
        # A word without brackets behind it is a value, such as a number or the direction of an axis.
        if word:
            try:
                inside.values.append(float(word))
            except ValueError:
                inside.values.append(word)
            word = ""
        if token.lastgroup == "word":
            word = token["word"]
            word_start = token.start("word")
        elif token.lastgroup == "text":
            inside.values.append(token["text"].replace('""', '"'))
        elif token.lastgroup == "close":
            open_nodes.pop().end = at
            if not open_nodes:
                return None
    return top.nodes if len(open_nodes) == 1 else None


def horizontal_part(text: str) -> str | None:
    """Return the system of x and y of a coordinate system in well-known text, which may have one of heights, too.

    None for text that is none, or cut off.
    """
    nodes = _parse(text) or []
    while nodes:
        node = next((node for node in nodes if node.word in (_SYSTEMS | _AROUND) - _VERTICAL), None)
        if node is None:
            return None
        if node.word not in _COMPOUND | _AROUND:
            return text[node.start : node.end]
        nodes = node.nodes
    return None


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


_EPSG = "EPSG:"


def heights_part(text: str) -> str | None:
    """Return the name of the system of heights of a coordinate system in well-known text; None without one."""
    waiting = list(_parse(text) or [])
    while waiting:
        node = waiting.pop(0)
        if node.word in _VERTICAL:
            number = _epsg_number(node)
            return f"{_EPSG}{number}" if number is not None else str((node.values or ["unknown heights"])[0])
        if node.word in _SYSTEMS | _AROUND:
            waiting += node.nodes
    return None


def heights_of_keys(records: dict[int, bytes]) -> str | None:
    """Return the name of the system of heights that the GeoTIFF keys name, such as "EPSG:5720"; None without one."""
    number = _values_of_keys(records).get(_VERTICAL_SYSTEM)
    return f"{_EPSG}{int(number)}" if number is not None and 0 < number < _USER_DEFINED else None


def name_of_system(text: str) -> str:
    """Return what a system in well-known text is called, with its number where it has one; other text as it is."""
    nodes = _parse(text)
    node = nodes[0] if nodes else None
    if node is None or not node.word:
        return text
    number = _epsg_number(node)
    name = str((node.values or ["unnamed"])[0])
    return name if number is None else f"{_EPSG}{number} ({name})"


def _are_different(first: str, second: str) -> bool:
    """Return whether two systems of x and y, in text or by number, are known to be different."""
    numbers = []
    for text in (first, second):
        nodes = _parse(text)
        number = text.removeprefix(_EPSG)
        if number.isdigit():
            numbers.append(int(number))
        else:
            numbers.append(_epsg_number(nodes[0]) if nodes else None)
    if None not in numbers:
        return numbers[0] != numbers[1]
    one = _facts_of(first, numbers[0])
    other = _facts_of(second, numbers[1])
    if one is None or other is None:
        # Nothing but names, which each program writes in its own way
        return False
    return len(one) != len(other) or any(abs(a - b) > 1e-6 * max(1.0, abs(a)) for a, b in zip(one, other, strict=True))


def _facts_of(text: str, number: int | None) -> list[float] | None:
    """Return the numbers that define a projected system, in order: parameters, ellipsoid, unit; None of others.

    Dialects differ in names and order, and in parameters that change nothing, 0 and 1.
    """
    if number is not None and text.startswith(_EPSG):
        # Only UTM is numbered by a rule: of WGS 84, ETRS89 and NAD83, whose numbers go on with the states' own zones.
        for base, last, south in ((32600, 60, False), (32700, 60, True), (25800, 60, False), (26900, 23, False)):
            if 1 <= number - base <= last:
                place = [6.0 * (number - base) - 183, 0.9996, 5e5, *([1e7] if south else [])]
                return sorted([*(value for value in place if value), 6378137.0])
        return None
    nodes = _parse(text)
    if not nodes or nodes[0].word not in _PROJECTED:
        return None
    found: list[float] = []
    waiting = [nodes[0]]
    while waiting:
        node = waiting.pop()
        if node.word == "PARAMETER":
            found += [value for value in node.values[1:2] if isinstance(value, float) and value not in (0.0, 1.0)]
        elif node.word in {"SPHEROID", "ELLIPSOID"}:
            found += [value for value in node.values[1:2] if isinstance(value, float)]
        else:
            waiting += node.nodes
    return sorted(found)


def _units_of_node(node: _Node) -> Units | None:
    """Return the units of a system; None of a node that is none, such as a time."""
    if node.word in _AROUND:
        inside = [units for part in node.nodes if (units := _units_of_node(part)) is not None]
        return inside[0] if inside else None
    if node.word in _COMPOUND:
        return _joined([units for part in node.nodes if (units := _units_of_node(part)) is not None])
    if node.word in _VERTICAL:
        length, _ = _lengths(node)
        return Units(height=length or length_of_heights(_epsg_number(node)))
    if node.word not in _SYSTEMS:
        return None
    units = _horizontal(node)
    # Some programs write the system of heights inside of the first.
    inside = [_units_of_node(part) for part in node.named(_VERTICAL)]
    return _joined([units, *(part for part in inside if part is not None)])


def _horizontal(node: _Node) -> Units:
    """Return the units of a system of x and y, which may have heights as a third axis."""
    number = _epsg_number(node)
    if node.word in _GEODETIC:
        # Geocentric coordinates are lengths along three axes through the center of the Earth.
        kinds = [str(part.values[0]).lower() for part in node.named({"CS"}) if part.values]
        if node.word != "GEOCCS" and "cartesian" not in kinds:
            return _DEGREES
    length, height = _lengths(node)
    if length is None:
        # The system, or its first axes, may be in degrees or another unit of angles.
        for place in (node, *node.named({"AXIS"})):
            for unit in place.nodes:
                if unit.word in _ANGLES or (unit.word == "UNIT" and _ANGLE_NAMES.search(str(unit.values[:1]))):
                    return _DEGREES
    if length is None and number is not None:
        return Units(length_of_unit(number), length_of_heights(number), in_degrees(number))
    return Units(length, height)


def _lengths(node: _Node) -> tuple[float | None, float | None]:
    """Return the lengths of a unit of the first axes, and of a third one that points up.

    A unit of all axes stands in the system itself, units that differ stand in each axis.
    """
    common = [size for unit in node.named(_LENGTHS) if (size := _size_of(unit)) is not None]
    flat = []
    upward = []
    for axis in node.named({"AXIS"}):
        own = [size for unit in axis.named(_LENGTHS) if (size := _size_of(unit)) is not None] or common
        directions = {str(value).upper() for value in axis.values[1:]}
        (upward if directions & _UPWARD else flat).extend(own[-1:])
    # A system of heights has one axis, and one of WKT1 may have none.
    sizes = flat or upward or common[-1:]
    if not sizes or any(size != sizes[0] for size in sizes):
        return None, None
    return sizes[0], upward[0] if flat and upward else None


def _size_of(unit: _Node) -> float | None:
    """Return the length of a unit in meters; None if it is one of angles, or unknown."""
    name, size = [*unit.values, "", ""][:2]
    if not isinstance(size, float) or not 0 < size < float("inf") or _ANGLE_NAMES.search(str(name)):
        return None
    # GDAL's name for what it does not know, with 1 in place of the size
    if str(name).lower() == "unknown" and size == 1:
        return None
    return _exact(size)


def _exact(length: float) -> float:
    """Return the US survey foot in full for one that is rounded."""
    return US_SURVEY_FOOT if abs(length / US_SURVEY_FOOT - 1) < _ROUNDED else length


def _epsg_number(node: _Node) -> int | None:
    """Return the EPSG code of a coordinate system, or None if the text has none."""
    for part in node.named({"ID", "AUTHORITY"}):
        authority, number = [*part.values, "", ""][:2]
        if str(authority).upper() == "EPSG" and str(number).removesuffix(".0").isdigit():
            return int(float(number))
    return None


def _joined(parts: Sequence[Units]) -> Units:
    """Return the units of a compound system by those of its parts: the first of x and y, and the first of heights."""
    flat = next((part for part in parts if part.length is not None or part.in_degrees), UNKNOWN)
    heights = [part.height for part in parts if part.height is not None]
    return replace(flat, height=heights[0] if heights else None)


def name_of_keys(records: dict[int, bytes]) -> str | None:
    """Return the name of the system of x and y that the GeoTIFF keys name, such as "EPSG:2154".

    None if they name none, or define one of their own.
    """
    values = _values_of_keys(records)
    number = values.get(_PROJECTED_SYSTEM)
    if number is None and values.get(_MODEL, _IS_GEOGRAPHIC) == _IS_GEOGRAPHIC:
        number = values.get(_GEOGRAPHIC_SYSTEM)
    # 0 is undefined, and from 32767 on are systems that users define.
    return f"EPSG:{int(number)}" if number is not None and 0 < number < _USER_DEFINED else None


def units_of_keys(records: dict[int, bytes]) -> Units | None:
    """Return the units that the GeoTIFF keys name, or None if no key defines the horizontal unit.

    Args:
        records: Number of the record -> its content: 34735 has the keys, 34736 the numbers in double precision.
    """
    values = _values_of_keys(records)
    model = values.get(_MODEL)
    number = values.get(_PROJECTED_SYSTEM)
    height = LENGTHS.get(int(values.get(_VERTICAL_UNIT, 0)))
    if height is None and _VERTICAL_SYSTEM in values:
        height = length_of_heights(int(values[_VERTICAL_SYSTEM]))
    if model == _IS_GEOGRAPHIC or (number is None and model is None and _GEOGRAPHIC_SYSTEM in values):
        return replace(_DEGREES, height=height)
    if number is not None and in_degrees(int(number)):
        return replace(_DEGREES, height=height)
    # The unit of a system that is defined here, or that differs from the one that EPSG gives it
    if _UNIT in values:
        length = LENGTHS.get(int(values[_UNIT]))
        if length is None and 0 < values.get(_UNIT_SIZE, 0.0) < float("inf"):
            length = _exact(values[_UNIT_SIZE])
        return Units(length, height)
    if model == _IS_GEOCENTRIC:
        return Units(1.0, height)
    if number is not None:
        return Units(length_of_unit(int(number)), height or length_of_heights(int(number)))
    return UNKNOWN if model == _IS_PROJECTED else None


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
