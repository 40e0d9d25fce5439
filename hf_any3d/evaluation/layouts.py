"""Scores of layouts: which walls, doors, windows and objects of a room were found, in the published and a sound form.

Two accidents of the released program make its scores differ: the center of a box is taken for its top where heights
are compared, so that boxes of unequal height overlap too much or too little; and the distance of walls has a sign, so
that a wall ten meters away counts as found on one side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from hf_any3d.evaluation.detection import check_lengths, check_thresholds
from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.layers.layouts import Layout

THRESHOLDS = (0.25, 0.5)
# Least length of a side of a box and largest distance of matching faces, both in meters; and the sine of the largest
# angle between faces that count as parallel
_SMALLEST_SIZE, _FARTHEST, _PARALLEL = 0.1, 0.2, math.sin(math.radians(5))
_STRUCTURE = ("wall", "door", "window")


@dataclass(frozen=True)
class LayoutScore:
    """Score of a class.

    Attributes:
        counts: For each threshold and scene, how many were found, predicted and there, `(thresholds, scenes, 3)`.
    """

    counts: np.ndarray

    @property
    def mean_f1(self) -> list[float]:
        """F1 at each threshold, the mean over scenes with a prediction or an object; NaN without such a scene."""
        means = []
        for scenes in self.counts.tolist():
            of_scenes = [_f1(*scene) for scene in scenes if scene[1] or scene[2]]
            means.append(sum(of_scenes) / len(of_scenes) if of_scenes else math.nan)
        return means

    @property
    def pooled_f1(self) -> list[float]:
        """F1 at each threshold of the counts of all scenes together; NaN without a prediction or an object."""
        return [_f1(*sums) if sums[1] or sums[2] else math.nan for sums in self.counts.sum(axis=1).tolist()]


def _f1(matched: int, predicted: int, actual: int) -> float:
    # The harmonic mean of found / predicted and found / there.
    return 2 * matched / (predicted + actual)


def score_layouts(
    predictions: Sequence[Layout],
    truths: Sequence[Layout],
    *,
    label_map: Mapping[str, str] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    published: bool = False,
) -> dict[str, LayoutScore]:
    """Compare layouts of scenes with the true ones.

    Objects of a class are found by the overlap of their boxes; walls, doors and windows, which have no depth, by that
    of their faces, if these are parallel and less than 0.2 m apart.

    Args:
        predictions: Layouts that were predicted, in meters.
        truths: The true ones, in the same order.
        label_map: Class that each class of a layout counts as, with blanks for underscores; those without one are left
            out on both sides. None for the classes themselves.
        thresholds: Overlaps from which on a prediction is right, above 0 and below 1.
        published: Whether to compute what the released program does, accidents included.

    Returns:
        Scores by class: "wall", "door", "window", and those of the objects in either layout.
    """
    check_thresholds(thresholds)
    smallest: dict[str, Any] = {"smallest of thresholds": min(thresholds, default=None)}
    check_numbers(0, above=True, **smallest)
    check_lengths(predictions=predictions, truths=truths)
    scenes = [
        # In the frame of the truth: of a tilt that was found in one of them alone, places are right as they are.
        tuple(
            shapes_by_class(layout.with_up_axis("z"), label_map)
            for layout in (dataclasses.replace(mine, up=theirs.up), theirs)
        )
        for mine, theirs in zip(predictions, truths, strict=True)
    ]
    classes = sorted({name for pair in scenes for boxes_by_class in pair for name in boxes_by_class} - set(_STRUCTURE))
    scores = {}
    for name in (*_STRUCTURE, *classes):
        counts = np.zeros((len(thresholds), len(scenes), 3), dtype=np.int64)
        for scene, (mine, theirs) in enumerate(scenes):
            # A scene may lack a class, in the prediction or in truth.
            first = mine.get(name, np.zeros((0,)))
            second = theirs.get(name, np.zeros((0,)))
            overlaps = face_overlaps if name in _STRUCTURE else box_overlaps
            shares = overlaps(first, second, published=published)
            for row, threshold in enumerate(thresholds):
                # As many pairs as possible that are above the threshold, whichever they are. As in the released
                # program, a pair at the threshold is not looked for, but counts.
                pairs = linear_sum_assignment(np.where(shares > threshold, -1.0, 1e6))
                counts[row, scene] = (shares[pairs] >= threshold).sum(), len(first), len(second)
        scores[name] = LayoutScore(counts)
    return scores


def shapes_by_class(layout: Layout, label_map: Mapping[str, str] | None) -> dict[str, np.ndarray]:
    """Return faces `(faces, 4, 3)` of walls, doors and windows and boxes `(boxes, 7)` of the others."""
    shapes: dict[str, list[np.ndarray]] = {name: faces for name, faces in zip(_STRUCTURE, _faces(layout), strict=True)}
    for box in layout.boxes:
        label = box.label if label_map is None else label_map.get(box.label.replace("_", " "))
        if label:
            sizes = [max(size, _SMALLEST_SIZE) for size in (box.sx, box.sy, box.sz)]
            shapes.setdefault(label, []).append(np.array([box.x, box.y, box.z, *sizes, box.angle]))
    return {name: np.stack(rows) for name, rows in shapes.items() if rows}


def _faces(layout: Layout) -> tuple[list[np.ndarray], ...]:
    """Return the faces of walls, doors and windows: corners start low, end low, end high, start high."""
    walls = []
    directions = {}
    for wall in layout.walls:
        start = np.array([wall.ax, wall.ay, wall.az])
        end = np.array([wall.bx, wall.by, wall.bz])
        # A wall that is a point on the ground has no direction, nor have doors in it.
        if np.abs(end - start)[:2].max() <= 1e-6:
            continue
        along = np.append((end - start)[:2], 0.0)
        # The first of several walls with one number has the openings.
        directions.setdefault(wall.id, along / np.linalg.norm(along))
        up = np.array([0, 0, wall.height])
        walls.append(np.stack([start, end, end + up, start + up]))
    others = []
    for openings in (layout.doors, layout.windows):
        faces = []
        for opening in openings:
            along = directions.get(opening.wall_id)
            if along is None:
                continue
            middle = np.array([opening.x, opening.y, opening.z])
            across = along * opening.width / 2
            up = [0, 0, opening.height / 2]
            corners = [middle - across - up, middle + across - up, middle + across + up, middle - across + up]
            faces.append(np.stack(corners))
        others.append(faces)
    return walls, *others


def box_overlaps(first: np.ndarray, second: np.ndarray, *, published: bool = False) -> np.ndarray:
    """Return the volume that boxes share over that of both together, `(first, second)`.

    Args:
        first: `(boxes, 7)`: center, full sizes and turn about z.
        second: The same.
        published: Whether to take the center for the top, and to round, as the released program does.
    """
    shares = np.zeros((len(first), len(second)))
    for row, box in enumerate(first):
        for column, other in enumerate(second):
            area = _shared_area(_ground(box), _ground(other))
            # How far the top is above the center.
            above = 0.0 if published else 0.5
            top = box[2] + above * box[5]
            other_top = other[2] + above * other[5]
            # From the higher one of the bottoms to the lower one of the tops
            height = min(top, other_top) - max(top - box[5], other_top - other[5])
            shared = area * max(height, 0.0)
            shares[row, column] = shared / (box[3:6].prod() + other[3:6].prod() - shared)
    return shares.round(5) if published else shares


def _ground(box: np.ndarray) -> np.ndarray:
    """Return the corners `(4, 2)` of a box on the ground, counterclockwise."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * box[3:5] / 2
    cosine = math.cos(box[6])
    sine = math.sin(box[6])
    return corners @ np.array([[cosine, sine], [-sine, cosine]]) + box[:2]


def face_overlaps(first: np.ndarray, second: np.ndarray, *, published: bool = False) -> np.ndarray:
    """Return the area that parallel faces close to each other share over that of both together, `(first, second)`.

    A face without an area overlaps with none; in the released program it ends the evaluation.

    Args:
        first: Predicted faces `(faces, 4, 3)`.
        second: True ones; areas are compared in their planes.
        published: Whether distances have a sign, as in the released program.
    """
    shares = np.zeros((len(first), len(second)))
    for row, face in enumerate(first):
        for column, other in enumerate(second):
            across = [_normal(face), _normal(other)]
            if min(np.linalg.norm(across, axis=1)) <= 1e-9:
                continue
            normal, other_normal = across / np.linalg.norm(across, axis=1, keepdims=True)
            if np.linalg.norm(np.cross(normal, other_normal)) >= _PARALLEL:
                continue
            distance = float((other[0] - face[0]) @ normal)
            if (distance if published else abs(distance)) >= _FARTHEST:
                continue
            # Axes in the plane of the true face
            along = (other[1] - other[0]) / np.linalg.norm(other[1] - other[0])
            plane = np.stack([along, np.cross(other_normal, along)], axis=1)  # (3, 2)
            flat = [(corners - other[0]) @ plane for corners in (face, other)]  # (4, 2) each
            # Both counterclockwise.
            flat = [corners if _area(corners) >= 0 else corners[::-1] for corners in flat]
            shared = _shared_area(*flat)
            both = _area(flat[0]) + _area(flat[1])
            shares[row, column] = shared / (both - shared)
    return shares


def _normal(face: np.ndarray) -> np.ndarray:
    """Return a vector `(3,)` at right angles to a face `(4, 3)`, as long as its area."""
    return np.cross(face[1] - face[0], face[2] - face[1])


def _area(polygon: np.ndarray) -> float:
    """Return the area of a polygon `(corners, 2)`, negative if it is clockwise."""
    x, y = polygon.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def _shared_area(first: np.ndarray, second: np.ndarray) -> float:
    """Return the area that two convex polygons `(corners, 2)`, both counterclockwise, have in common."""
    rest = [*first]
    for start, end in zip(second, np.roll(second, -1, axis=0), strict=True):
        edge = end - start
        # What is right of an edge is outside; corners are cut off edge by edge.
        sides = [float(edge[0] * (corner[1] - start[1]) - edge[1] * (corner[0] - start[0])) for corner in rest]
        kept = []
        for number, (corner, side) in enumerate(zip(rest, sides, strict=True)):
            following = rest[(number + 1) % len(rest)]
            next_side = sides[(number + 1) % len(rest)]
            if side >= 0:
                kept.append(corner)
            # Where the outline crosses the edge, it gets a new corner.
            if (side > 0 > next_side) or (side < 0 < next_side):
                kept.append(corner + (following - corner) * (side / (side - next_side)))
        rest = kept
        if len(rest) < 3:
            return 0.0
    return abs(_area(np.stack(rest)))
