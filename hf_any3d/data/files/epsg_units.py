"""Units of EPSG's coordinate systems by their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from hf_any3d.data.files.epsg_table import DEGREES, FLAT, HEIGHTS, LENGTHS


def length_of_unit(number: int | None) -> float | None:
    """Return the length of a unit of x and y of a system in meters; None of degrees and of unknown numbers."""
    return LENGTHS.get(_numbers_of_units()[0].get(number or 0, 0))


def length_of_heights(number: int | None) -> float | None:
    """Return the length of a unit of heights of a system in meters; None without heights and of unknown numbers."""
    return LENGTHS.get(_numbers_of_units()[1].get(number or 0, 0))


def in_degrees(number: int | None) -> bool:
    """Return whether x and y of a system are longitude and latitude."""
    return (number or 0) in _numbers_of_units()[2]


@cache
def _numbers_of_units() -> tuple[dict[int, int], dict[int, int], set[int]]:
    """Return number of a system -> number of its unit, the same of heights, and the systems in degrees."""
    return _unpacked(FLAT), _unpacked(HEIGHTS), set(_unpacked({0: DEGREES}))


def _unpacked(packed: Mapping[int, str]) -> dict[int, int]:
    numbers: dict[int, int] = {}
    for unit, ranges in packed.items():
        for words in ranges.split():
            first, _, last = words.partition("-")
            numbers.update(dict.fromkeys(range(int(first), int(last or first) + 1), unit))
    return numbers
