"""The frame of a scan of a room: which axis points up, its tilt, the unit, the floor's height, the turn of the walls.

Models of rooms are trained on scans in meters, z up, with walls along the axes. People's scans are in millimeters, lie
on their side, are turned or not quite level, and models answer all the same. `find_frame` finds what is different,
says it in a sentence each, and is undone in answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hf_any3d.data.normals import local_planes
from hf_any3d.data.options import one_of
from hf_any3d.data.point_arrays import means_of_cells
from hf_any3d.modeling.layers.boxes import UP_AXES, level_rotation, upright_rotation

FRAME_PARTS = ("up_axis", "level", "unit", "floor", "turn")
"""What `find_frame` may look for."""

MIN_CONFIDENCE = 0.5
"""Below it, what was found is not applied, and a warning tells."""
UNITS = {"meters": 1.0, "centimeters": 0.01, "millimeters": 0.001}
"""Name -> its length in meters."""
# Points that are looked at, voxels along the longest side, and neighbors of a point for its normal.
_POINTS, _CELLS, _NEIGHBORS = 60_000, 100, 16
# Voxels with which anything can be told.
_FEWEST = 200
# A plane through the neighbors explains all but this share of their scatter.
_FLATNESS = 0.05
# In meters, with the spread of its logarithm.
_ROOM_HEIGHT, _ROOM_WIDTH = (2.6, 0.35), (4.5, 0.6)
# Smaller turns of the walls and tilts are not worth a change.
_SMALLEST_TURN, _SMALLEST_TILT = math.radians(1.0), math.radians(0.75)
_LARGEST_TILT = math.radians(15)
# How far floors may be from level and walls from upright in each round; the true tilt is found little by little.
_TILT_ROUNDS = tuple(map(math.radians, (22, 22, 15, 15, 10, 10, 8, 8)))
# Floor and walls that differ by this angle tell nothing of the tilt; the confidence falls to 0 in between.
_TILT_SPREAD = math.radians(6)
_FEWEST_FACES = 20


@dataclass(frozen=True)
class ScanFrame:
    """Difference of a scan from what models expect: meters, z up, floor at z = 0, walls along x and y."""

    up_axis: str = "z"  # points up in the scan, one of `UP_AXES`
    up: tuple[float, float, float] | None = None  # unit vector in the scan that points up, if the scan is tilted
    unit: float = 1.0  # length of the scan's unit in meters
    angle: float = 0.0  # turn of the walls about the up axis, counterclockwise, in radians
    floor: float = 0.0  # height of the floor above the scan's origin, in meters
    sentences: tuple[str, ...] = ()  # what was found
    warnings: tuple[str, ...] = ()  # what could not be told, and is left as it is

    @property
    def is_changed(self) -> bool:
        """True if the scan is turned or its unit is changed."""
        return self.up_axis != "z" or self.up is not None or self.unit != 1 or self.angle != 0

    @property
    def tilt(self) -> float:
        """Angle between the direction that points up and the axis, in radians."""
        return 0.0 if self.up is None else math.acos(min((upright_rotation(self.up_axis) @ self.up)[2], 1.0))

    @property
    def rotation(self) -> np.ndarray:
        """Rotation `(3, 3)` of the scan's points."""
        return turn_about_z(-self.angle) @ upright_rotation(self.up_axis, self.up)

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Return points `(points, 3)` of the scan as models expect them, float64."""
        return points @ self.rotation.T * self.unit - (0, 0, self.floor)

    def undo(self, points: np.ndarray) -> np.ndarray:
        """Return points `(points, 3)` in the frame and unit of the scan; the inverse of `apply`."""
        return (points + (0, 0, self.floor)) / self.unit @ self.rotation


def turn_about_z(angle: float) -> np.ndarray:
    """Return the rotation `(3, 3)` by an angle about z, counterclockwise seen from above."""
    cosine = math.cos(angle)
    sine = math.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def frame_parts(align: bool | str | Sequence[str], argument: str = "align") -> tuple[str, ...]:
    """Return which parts of a frame are looked for: all, none or some."""
    if align is True or align is False:
        return FRAME_PARTS if align else ()
    if isinstance(align, str):
        align = [part.strip() for part in align.split(",")]
    if not isinstance(align, (list, tuple)) or not align or any(part not in FRAME_PARTS for part in align):
        raise ValueError(f"{argument}={align!r}; expected True, False or some of {', '.join(FRAME_PARTS)}")
    return tuple(part for part in FRAME_PARTS if part in align)


def find_frame(
    points: np.ndarray,
    *,
    up_axis: str | None = None,
    parts: Sequence[str] = FRAME_PARTS,
    min_confidence: float = MIN_CONFIDENCE,
) -> ScanFrame:
    """Find the frame of a scan `(points, 3)` of a room.

    What is not among `parts`, some of `FRAME_PARTS`, is taken to be as models expect it. A finding with a confidence
    below `min_confidence`, from 0 to 1, is a warning and is not applied.
    """
    one_of("up_axis", up_axis, (None, *UP_AXES))
    parts = frame_parts(list(parts), "parts")
    points = np.asarray(points, dtype=np.float64)
    if len(points) > _POINTS:
        points = points[np.random.default_rng(0).choice(len(points), _POINTS, replace=False)]
    points, normals, flat = _surfaces(points)
    if len(points) < _FEWEST or flat.sum() < _FEWEST / 4:
        note = f"the scan has {int(flat.sum())} flat patches, too few to detect its axes and unit"
        return ScanFrame(up_axis or "z", warnings=(note,))
    frame = ScanFrame(up_axis or "z")
    if up_axis is None and "up_axis" in parts:
        frame = _with_up_axis(frame, points, normals[flat], min_confidence)
    if "level" in parts:
        frame = _with_level(frame, normals[flat], min_confidence)
    upright = frame.rotation.T
    points = points @ upright
    normals = normals @ upright
    angle, agreement = _wall_turn(normals[flat])
    if "turn" in parts:
        frame = _with_turn(frame, angle, agreement, min_confidence)
    # Walls along the axes, even of a scan that is not to be turned, so that extents are those of the room.
    turned = turn_about_z(-angle if agreement >= min_confidence else 0.0).T
    points = points @ turned
    normals = normals @ turned
    if "unit" in parts:
        frame = _with_unit(frame, points, min_confidence)
    if "floor" in parts:
        frame = _with_floor(frame, points, normals, flat)
    return frame


def _surfaces(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the means of voxels, their normals, and which are on planes."""
    low, high = np.percentile(points, [1, 99], axis=0)
    # Points far outside, as scanners see through windows and in mirrors, would make the voxels too large.
    points = points[((points >= low - (high - low)) & (points <= high + (high - low))).all(axis=1)]
    edge = max((high - low).max() / _CELLS, 1e-12)
    cells = np.floor((points - points.min(axis=0)) / edge).astype(np.int64)
    (points,) = means_of_cells(cells, points)
    if len(points) <= _NEIGHBORS:
        return points, np.zeros_like(points), np.zeros(len(points), dtype=bool)
    normals, spreads = local_planes(points, _NEIGHBORS)
    return points, normals, spreads[:, 0] <= _FLATNESS * spreads[:, 1]


def _upness(points: np.ndarray, normals: np.ndarray, axis: str) -> float:
    """Return how much speaks for an axis that points up."""
    upright = upright_rotation(axis).T
    points = points @ upright
    normals = normals @ upright
    # Floors, ceilings and walls are level or upright; about a wrong axis walls that are turned are neither.
    tilt = np.abs(normals[:, 2])
    straight = float(((tilt > 0.95) | (tilt < 0.25)).mean())
    # Heights in a room that is tilted are not those of its floor.
    level = level_rotation(_up_of(normals)).T
    points = points @ level
    normals = normals @ level
    angle, _ = _wall_turn(normals)
    points = points @ turn_about_z(-angle).T
    low, high = np.percentile(points, [1, 99], axis=0)
    size = np.maximum(high - low, 1e-12)
    place = (points - low) / size
    inner = ((place[:, :2] > 0.08) & (place[:, :2] < 0.92)).all(axis=1)
    heights = place[inner, 2]
    # What stands in a room stands on its floor, and ceilings are often missing in scans.
    between = heights[(heights > 0.06) & (heights < 0.94)]
    standing = 1 - 2 * float(between.mean()) if len(between) > 20 else 0.0
    bottom = float((heights <= 0.06).sum())
    top = float((heights >= 0.94).sum())
    lying = (bottom - top) / max(bottom + top, 1.0)
    # Most rooms are wider than high.
    wide = min(max(math.log(math.sqrt(size[0] * size[1]) / size[2]), -1.0), 1.0)
    return 4 * straight + 2 * standing + lying + wide + (0.3 if axis == "z" else 0.0)


def _wall_turn(normals: np.ndarray) -> tuple[float, float]:
    """Return the turn of walls about z, between -45° and 45°, and how much they agree, from 0 to 1."""
    walls = normals[np.abs(normals[:, 2]) < 0.25]
    if len(walls) < _FEWEST_FACES:
        return 0.0, 0.0
    # Directions that differ by quarter turns are the same.
    mean = np.exp(4j * np.arctan2(walls[:, 1], walls[:, 0])).mean()
    return float(np.angle(mean)) / 4, float(abs(mean))


def _up_of(normals: np.ndarray, floors: float = 1.0, walls: float = 1.0) -> np.ndarray:
    """Return the direction `(3,)` near z to which floors are at right angles and which walls are along."""
    up = np.array([0.0, 0.0, 1.0])
    for limit in _TILT_ROUNDS:
        along = np.abs(normals @ up)
        level = normals[along > math.cos(limit)]
        upright = normals[along < math.sin(limit)]
        # The direction with the largest difference of scatters: along the normals of floors, across those of walls.
        _, directions = np.linalg.eigh(floors * level.T @ level - walls * upright.T @ upright)
        up = directions[:, 2] * math.copysign(1, directions[2, 2])
    return up


def _with_up_axis(frame: ScanFrame, points: np.ndarray, normals: np.ndarray, least: float) -> ScanFrame:
    scores = {axis: _upness(points, normals, axis) for axis in UP_AXES}
    best, second = sorted(scores, key=lambda axis: scores[axis], reverse=True)[:2]
    # From 0, if both axes are as likely, to 1.
    confidence = 1 - math.exp(-2 * (scores[best] - scores[second]))
    if confidence < least:
        note = f"cannot tell whether {best} or {second} points up; assuming z (set up_axis if that is wrong)"
        return replace(frame, warnings=(note,))
    sentence = "z points up" if best == "z" else f"turned: {best} points up in the file"
    return replace(frame, up_axis=best, sentences=(sentence,))


def _with_turn(frame: ScanFrame, angle: float, agreement: float, least: float) -> ScanFrame:
    if agreement < least:
        note = "walls do not meet at right angles, so the scan is not rotated about the up axis"
        return replace(frame, warnings=(*frame.warnings, note))
    if abs(angle) < _SMALLEST_TURN:
        return replace(frame, sentences=(*frame.sentences, "walls are along the axes"))
    sentence = f"turned by {-math.degrees(angle):.0f}° about the up axis, which puts walls along the axes"
    return replace(frame, angle=angle, sentences=(*frame.sentences, sentence))


def _with_level(frame: ScanFrame, normals: np.ndarray, least: float) -> ScanFrame:
    upright = upright_rotation(frame.up_axis)
    normals = normals @ upright.T
    up = _up_of(normals)
    tilt = math.acos(min(up[2], 1.0))
    if tilt < _SMALLEST_TILT:
        return frame
    along = np.abs(normals @ up)
    floors = (along > math.cos(_TILT_ROUNDS[-1])).sum()
    walls = (along < math.sin(_TILT_ROUNDS[-1])).sum()
    # A small part of the other kind, for what one kind alone cannot tell, such as the tilt along a single wall.
    differ = math.acos(min(float(_up_of(normals, 1, 0.02) @ _up_of(normals, 0.02, 1)), 1.0))
    confidence = 1 - differ / _TILT_SPREAD
    if min(floors, walls) < _FEWEST_FACES or tilt > _LARGEST_TILT:
        confidence = 0.0
    if confidence < least:
        note = f"may be tilted by {math.degrees(tilt):.1f}°, but floor and walls disagree; not leveled"
        return replace(frame, warnings=(*frame.warnings, note))
    x, y, z = (upright.T @ up).tolist()
    return replace(frame, up=(x, y, z), sentences=(*frame.sentences, f"leveled by {math.degrees(tilt):.1f}°"))


def _with_unit(frame: ScanFrame, points: np.ndarray, least: float) -> ScanFrame:
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    size = np.maximum(high - low, 1e-12)

    def likelihood(unit: float) -> float:
        # Sizes of rooms are log-normal: as many are half the typical size as twice.
        total = 0.0
        for extent, (typical, spread) in zip(size, (_ROOM_WIDTH, _ROOM_WIDTH, _ROOM_HEIGHT), strict=True):
            total -= (math.log(unit * extent / typical) / spread) ** 2 / 2
        return total

    name = max(UNITS, key=lambda unit: likelihood(UNITS[unit]))
    shown = " × ".join(f"{length * UNITS[name]:.1f}" for length in size)
    if math.exp(likelihood(UNITS[name]) / 6) < least:
        extent = " × ".join(f"{length:.3g}" for length in size)
        note = (
            f"an extent of {extent} is not a room in meters, centimeters or millimeters; assuming meters (set "
            "unit if that is wrong)"
        )
        return replace(frame, warnings=(*frame.warnings, note))
    sentence = f"in {name}: {shown} m in size"
    return replace(frame, unit=UNITS[name], sentences=(*frame.sentences, sentence))


def _with_floor(frame: ScanFrame, points: np.ndarray, normals: np.ndarray, flat: np.ndarray) -> ScanFrame:
    heights = points[:, 2]
    low, high = np.percentile(heights, [0.5, 99.5])
    level = heights[flat & (np.abs(normals[:, 2]) > 0.9)]
    # Level faces in the lower part, since tables and beds are higher: the floor is where most of them are.
    lower = level[level < low + 0.4 * (high - low)]
    if len(lower) < _FEWEST_FACES:
        note = "no floor found; using the lowest points"
        return replace(frame, floor=float(low) * frame.unit, warnings=(*frame.warnings, note))
    counts, edges = np.histogram(lower, bins=max(int(0.4 * _CELLS), 1))
    fullest = int(counts.argmax())
    floor = float(np.median(lower[(lower >= edges[fullest]) & (lower <= edges[fullest + 1])]))
    sign = -1.0 if frame.up_axis.startswith("-") else 1.0
    if frame.up is None:
        sentence = f"the floor is at {frame.up_axis[-1]} = {sign * floor:.4g} in the file"
    else:
        sentence = f"the floor is {floor:.4g} above the origin of the file"
    return replace(frame, floor=floor * frame.unit, sentences=(*frame.sentences, sentence))
