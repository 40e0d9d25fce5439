"""Settings of the inventory of places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_any3d.tasks.settings import setting

_ONE_PLACE = {"runs": "the files of a command are tiles of one place, whose numbers are found together"}


@dataclass(frozen=True)
class InventorySettings:
    """Settings of `point-cloud-inventory`."""

    unit: Literal["meters", "feet", "us-feet"] | None = setting(
        None, "Unit of scans whose files say none.", refused=_ONE_PLACE
    )
    smoothing: float | None = setting(
        None,
        "Meters over which the canopy is smoothed before tops are looked for; by default the canopy itself decides.",
        low=0,
        high=20,
        refused=_ONE_PLACE,
    )
    least_height: float = setting(
        2.0, "Height in meters from which on vegetation is a tree.", low=0.5, high=50, refused=_ONE_PLACE
    )
    least_area: float = setting(
        10.0, "Square meters from which on roof points that touch are a building.", low=1, refused=_ONE_PLACE
    )
