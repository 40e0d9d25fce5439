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
        None,
        "Unit of x, y and z in files that do not state one: meters, feet (international) or us-feet (US survey "
        "feet); by default meters.",
        refused=_ONE_PLACE,
    )
    smoothing: float | None = setting(
        None,
        "Standard deviation of the Gaussian filter that smooths the canopy height model before tree tops are found, "
        "in meters; by default chosen from the data.",
        low=0,
        high=20,
        refused=_ONE_PLACE,
    )
    min_height: float = setting(2.0, "Minimum height of a tree, in meters.", low=0.5, high=50, refused=_ONE_PLACE)
    min_area: float = setting(
        10.0, "Minimum area of a building, in square meters of connected roof points.", low=1, refused=_ONE_PLACE
    )
