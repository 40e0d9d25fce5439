"""Parts of the layout of a room: walls, doors, windows and boxes, and the ranges of their numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_any3d.modeling.spatiallm.configuration_spatiallm import EXTENT

_POSITION, _LENGTH, _SIZE, _ANGLE = (0.0, EXTENT), (0.0, 25.6), (0.0, 20.0), (-6.2832, 6.2832)


def _ranged(limits: tuple[float, float], **options: Any) -> Any:
    """Field for a number, with the range that bins divide."""
    return field(metadata={"limits": limits}, **options)


class _Sized:
    """Refuses lengths below 0, which would turn a wall or a box inside out."""

    def __post_init__(self):
        for own in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, own.name)
            if own.metadata.get("limits") in (_LENGTH, _SIZE) and value < 0:
                raise ValueError(f"{own.name} is {value:g}; expected at least 0")


@dataclass(frozen=True)
class Wall(_Sized):
    """A wall: the two lower ends of its center line, height and thickness, in meters."""

    id: int
    ax: float = _ranged(_POSITION)
    ay: float = _ranged(_POSITION)
    az: float = _ranged(_POSITION)
    bx: float = _ranged(_POSITION)
    by: float = _ranged(_POSITION)
    bz: float = _ranged(_POSITION)
    height: float = _ranged(_LENGTH)
    thickness: float = _ranged(_LENGTH, default=0.0)


@dataclass(frozen=True)
class Opening(_Sized):
    """A door or window in a wall: center, width along the wall and height, in meters."""

    id: int
    wall_id: int
    x: float = _ranged(_POSITION)
    y: float = _ranged(_POSITION)
    z: float = _ranged(_POSITION)
    width: float = _ranged(_LENGTH)
    height: float = _ranged(_LENGTH)


class Door(Opening):
    """A door; see `Opening`."""


class Window(Opening):
    """A window; see `Opening`."""


@dataclass(frozen=True)
class Box(_Sized):
    """A box around an object: center and full sizes along its own axes in meters, turn about z in radians."""

    id: int
    label: str
    x: float = _ranged(_POSITION)
    y: float = _ranged(_POSITION)
    z: float = _ranged(_POSITION)
    angle: float = _ranged(_ANGLE)
    sx: float = _ranged(_SIZE)
    sy: float = _ranged(_SIZE)
    sz: float = _ranged(_SIZE)


Entity = Wall | Door | Window | Box
KINDS: Mapping[str, type] = {"wall": Wall, "door": Door, "window": Window, "bbox": Box}
"""Word before the number of a line -> its class, in the order of a text."""


def number_names(kind: type) -> tuple[str, ...]:
    """Return the names of an entity's numbers, in the order of a line."""
    return tuple(own.name for own in dataclasses.fields(kind) if own.metadata)
