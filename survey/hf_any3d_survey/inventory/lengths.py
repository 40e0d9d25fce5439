"""Unit of lengths in what is written beside a scan."""

from __future__ import annotations

from dataclasses import dataclass

from hf_any3d.data.files.coordinate_systems import FOOT

# International and US survey feet differ by two millionths, by which none of our columns does.
_SAME = 1e-5


@dataclass(frozen=True)
class LengthUnit:
    """Unit of elevations, heights and sizes of a scan: feet if its elevations are in feet, else meters.

    Copies, tables and rasters of a scan have one unit, so that z - height is the elevation of the ground, and what
    was measured in feet is compared in feet.

    Attributes:
        name: "m" or "ft", which stands in names of columns and bands.
        length: Its length in meters.
        up: 1, or -1 where elevations are depths, which grow downward.
    """

    name: str
    length: float
    up: int = 1

    @classmethod
    def of(cls, meters_per_height: float) -> LengthUnit:
        """Return the unit of a scan by the length of a unit of its elevations in meters, below 0 for depths."""
        up = 1 if meters_per_height > 0 else -1
        if abs(abs(meters_per_height) / FOOT - 1) < _SAME:
            return cls("ft", abs(meters_per_height), up)
        return cls("m", 1.0, up)


METERS = LengthUnit("m", 1.0)
FEET = LengthUnit("ft", FOOT)
