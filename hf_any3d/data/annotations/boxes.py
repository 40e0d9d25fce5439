"""Boxes in datasets: their columns, and augmentations that move boxes with the points of a scene.

A row has `points`, `boxes (objects, 7)`, center x, y, z, length, width, height and heading in radians,
counterclockwise about z, and `box_labels (objects,)`. Scenes are in meters, z up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, List, Value

from hf_any3d.data.files import PointCloudError
from hf_any3d.data.files.npy import parse_array
from hf_any3d.data.files.source import file_errors, open_source
from hf_any3d.data.options import one_of
from hf_any3d.data.point_arrays import new_generator, resample_index, stack_channels
from hf_any3d.data.transforms import AXES, build_named, parse_transform

BOX_SIZE = 7
Random = np.random.Generator | np.random.RandomState


def box_features(names: Sequence[str]) -> dict[str, Any]:
    """Return the columns of boxes, for `datasets.Features`."""
    return {"boxes": List(List(Value("float32"), length=BOX_SIZE)), "box_labels": List(ClassLabel(names=list(names)))}


def answer_features() -> Any:
    """Return the type of a column of answers of a detector, as the pipeline gives them, for `datasets.Features`."""
    place = List(Value("float64"), length=3)  # in double precision, as scans may lie far from the origin
    box = {"center": place, "size": place, "heading": Value("float64"), "corners": List(place, length=8)}
    return List({"label": Value("string"), "score": Value("float32"), "box": box})


def read_box_table(path: Path, columns: int) -> np.ndarray:
    """Read the boxes of a scene from an array that numpy wrote, as VoteNet's programs do."""
    source = open_source(path, "npy", ("npy",))
    with file_errors(path, "npy file"):
        table = parse_array(source.data)
        if not table.size:
            return np.zeros((0, columns))  # a scene without objects
        if table.ndim != 2 or table.shape[1] < columns or not np.isfinite(table).all() or table[:, 3:6].min() <= 0:
            raise PointCloudError(f"an array {table.shape}; expected finite numbers (boxes, {columns}), sizes above 0")
        return table[:, :columns].astype(np.float64)


@dataclass
class Scene:
    """Points of a scene with its objects."""

    points: np.ndarray  # (points, channels) float32, xyz first
    boxes: np.ndarray  # (objects, 7) float32
    labels: np.ndarray  # (objects,) int64, their classes

    @classmethod
    def of(cls, row: Mapping[str, Any], points: np.ndarray | None = None) -> Scene:
        """Return the scene of a row; `points` (points, channels) replace those of the row, such as with its colors."""
        boxes = np.asarray(row["boxes"], dtype=np.float32)
        labels = np.asarray(row["box_labels"], dtype=np.int64).reshape(-1)
        # An empty list has no second axis.
        if not boxes.size:
            boxes = np.zeros((0, BOX_SIZE), np.float32)
        if boxes.shape != (len(labels), BOX_SIZE):
            raise ValueError(f"boxes have shape {boxes.shape}, box_labels {labels.shape}; expected ({len(labels)}, 7)")
        for number, box in enumerate(boxes):
            # Degrees would be read as radians without an error, so headings beyond a full turn are refused.
            if not np.isfinite(box).all() or (box[3:6] <= 0).any() or abs(box[6]) > 2 * math.pi + 1e-3:
                shown = [round(float(value), 4) for value in box]
                raise ValueError(f"box {number} is {shown}; expected sizes above 0, heading in radians")
        return cls(stack_channels(row) if points is None else points, boxes, labels)


Change = Callable[[Scene, Random], Scene]
"""An augmentation of a scene."""


@dataclass(frozen=True)
class RandomCuboid:
    """Keep the points in a random part of the scene, and the boxes whose centers are there.

    Source: DepthContrast, as used by 3DETR.
    """

    min_points: int = 30_000  # parts with fewer are drawn again
    smallest: float = 0.5  # edge, as a share of the scene's extent along each axis
    largest: float = 1.0
    aspect: float = 0.8  # at least one pair of edges has a ratio at least this large
    tries: int = 100  # after so many, the scene stays as it is

    def __call__(self, scene: Scene, generator: Random) -> Scene:
        """Draw a part."""
        xyz = scene.points[:, :3]
        extent = xyz.max(axis=0) - xyz.min(axis=0)
        for _ in range(self.tries):
            edges = self.smallest + generator.random(3) * (self.largest - self.smallest)
            pairs = ((0, 1), (0, 2), (1, 2))
            # A part of which no two edges are nearly equal is a strip, unlike any room.
            if not any(min(edges[a], edges[b]) / max(edges[a], edges[b]) >= self.aspect for a, b in pairs):
                continue
            # Around a point, so that the part is not empty space.
            center = xyz[generator.choice(len(xyz))]
            inside = (np.abs(xyz - center) <= edges * extent / 2).all(axis=1)
            if inside.sum() < self.min_points:
                continue
            points = scene.points[inside]
            centers = scene.boxes[:, :3]
            # The box of the remaining points, which may be smaller than the drawn part
            low = points[:, :3].min(axis=0)
            high = points[:, :3].max(axis=0)
            kept = ((centers >= low) & (centers <= high)).all(axis=1)
            # A part without any object teaches nothing but where nothing is.
            if kept.any() or not len(centers):
                return Scene(points, scene.boxes[kept], scene.labels[kept])
        return scene


@dataclass(frozen=True)
class DrawPoints:
    """Draw `num_points` points; a smaller scene repeats some, none before all are there.

    With numpy's older generator they are drawn independently, as in the released program.
    """

    num_points: int

    def __call__(self, scene: Scene, generator: Random) -> Scene:
        """Draw points."""
        count = len(scene.points)
        # The draw of the older generator is the one of the released program, to reproduce its batches.
        if isinstance(generator, np.random.RandomState):
            index = generator.choice(count, self.num_points, replace=count < self.num_points)
        else:
            index = resample_index(count, self.num_points, generator)
        return replace(scene, points=scene.points[index])


@dataclass(frozen=True)
class RandomFlip:
    """Mirror a scene in half of all cases."""

    axis: str = "x"  # or "y", whose coordinates change their sign
    along_axes: bool = False  # whether boxes stay along the axes, for scenes whose boxes have no headings

    def __post_init__(self):
        one_of("axis", self.axis, "xy")

    def __call__(self, scene: Scene, generator: Random) -> Scene:
        """Mirror the points, the centers and the headings."""
        if not generator.random() > 0.5:
            return scene
        points = scene.points.copy()
        boxes = scene.boxes.copy()
        axis = AXES[self.axis]
        points[:, axis] *= -1
        boxes[:, axis] *= -1
        if not self.along_axes:
            # Mirrored at x, a heading h becomes pi - h; at y it becomes -h.
            boxes[:, 6] = wrapped((math.pi if axis == 0 else 0.0) - boxes[:, 6])
        return replace(scene, points=points, boxes=boxes)


@dataclass(frozen=True)
class RandomTurn:
    """Turn a scene about z by up to `limit` radians.

    With `along_axes`, for scenes whose boxes have no headings, boxes stay along the axes and become as large as the
    turned ones.
    """

    limit: float = math.pi / 6
    along_axes: bool = False

    def __call__(self, scene: Scene, generator: Random) -> Scene:
        """Turn the points and boxes."""
        angle = generator.random() * 2 * self.limit - self.limit
        cos = math.cos(angle)
        sin = math.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]])
        points = scene.points.copy()
        boxes = scene.boxes.copy()
        # Points are rows, so the matrix is transposed.
        points[:, :2] = points[:, :2] @ matrix.T
        boxes[:, :2] = boxes[:, :2] @ matrix.T
        if self.along_axes:
            # The extents of the turned rectangle along the axes.
            boxes[:, 3:5] = boxes[:, 3:5] @ np.abs(matrix).T
        else:
            boxes[:, 6] = wrapped(boxes[:, 6] + angle)
        return replace(scene, points=points, boxes=boxes)


@dataclass(frozen=True)
class RandomSize:
    """Scale a scene by a random factor."""

    low: float = 0.85
    high: float = 1.15

    def __call__(self, scene: Scene, generator: Random) -> Scene:
        """Scale the points and boxes."""
        factor = generator.random() * (self.high - self.low) + self.low
        points = scene.points.copy()
        boxes = scene.boxes.copy()
        points[:, :3] *= factor
        # Centers and sizes; headings have no unit.
        boxes[:, :6] *= factor
        return replace(scene, points=points, boxes=boxes)


def wrapped(headings: np.ndarray) -> np.ndarray:
    """Return the same directions as angles above -pi up to pi."""
    return math.pi - np.remainder(math.pi - headings, 2 * math.pi)


@dataclass(frozen=True)
class Changes:
    """Augmentations one after the other, all from one generator."""

    changes: Sequence[Change]

    def __call__(self, scene: Scene, generator: Random | None = None) -> Scene:
        """Run through them; without a generator, torch's seed governs them."""
        generator = new_generator() if generator is None else generator
        for change in self.changes:
            scene = change(scene, generator)
        return scene


CHANGES: dict[str, type] = {"cuboid": RandomCuboid, "flip": RandomFlip, "turn": RandomTurn, "size": RandomSize}
"""Names for `build_changes`."""


_ALONG_AXES = {"flip": {"along_axes": True}, "turn": {"along_axes": True, "limit": math.pi / 36}}
"""Settings for boxes without headings, as in the published training on ScanNet."""


def build_changes(spec: Sequence[str], along_axes: bool = False) -> Changes:
    """Build augmentations from names with settings or without, `["cuboid:min_points=5000", "flip", "turn:limit=0.5"]`.

    With `along_axes`, boxes stay along the axes, unless a name has other settings.
    """
    changes = []
    for name, settings in map(parse_transform, spec):
        usual = _ALONG_AXES.get(name, {}) if along_axes else {}
        changes.append(build_named(CHANGES, name, {**usual, **settings}))
    return Changes(changes)
