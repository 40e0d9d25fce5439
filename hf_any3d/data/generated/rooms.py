"""Rooms composed of the embedded shapes when they are loaded: semantic segmentation without a download.

No object is in rooms of two splits: test rooms have test shapes, validation rooms training shapes that no training
room has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List
from scipy.spatial import KDTree

from hf_any3d.data.catalog import shapes
from hf_any3d.data.options import at_least
from hf_any3d.data.parquet.published_dataset import License
from hf_any3d.data.splits import validation_split

LICENSE = License(
    "other",
    "CC0 1.0, CC BY 3.0 or CC BY 3.0 US, as the embedded shapes in the rooms; the latter two ask to name the authors, "
    "whom the card of the embedded shapes lists",
    shapes.LICENSE.link,
)
SPLITS = ("train", "validation", "test")
FLOOR = "floor"

TYPICAL_SIZES = {"bed": 2.2, "chair": 1.1, "lamp": 1.2, "plant": 1.0, "sofa": 2.0, "storage": 1.6, "table": 1.5}
"""Class of objects that stand on floors -> typical diameter of the bounding sphere, in meters."""

SYMMETRY = {"bed": 1, "chair": 1, "lamp": 0, "plant": 0, "sofa": 1, "storage": 1, "table": 2}
"""Class -> number of turns about the vertical axis, a full one included, after which its objects look about the same.

1: they have a front; 2: front and back are alike; 0: every turn, so that there is no heading.
"""
_STEP, _TRIES = 0.02, 100


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    train_rooms: int = 64,
    validation_rooms: int = 16,
    test_rooms: int = 32,
    num_points: int = 4096,
    num_objects: int = 6,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> DatasetDict:
    """Compose rooms; the same arguments give the same rooms.

    Rows have `points` (num_points, 3) in meters, y up, and `labels` (num_points,), of the classes floor and `classes`.

    Args:
        data_dir: folder of the embedded shapes; None takes those of the source checkout.
        train_rooms: rooms of the training split.
        validation_rooms: rooms of the validation split.
        test_rooms: rooms of the test split.
        num_points: points of a room.
        num_objects: objects to place in a room.
        classes: classes of the shapes to place; None takes those of `TYPICAL_SIZES`.
        seed: seed of objects, places and points.
        options: further arguments of `datasets.load_dataset` for the shapes.
    """
    names = list(TYPICAL_SIZES) if classes is None else list(classes)
    features = {"points": Array2D((num_points, 3), "float32"), "labels": List(ClassLabel(names=[FLOOR, *names]))}
    compose = partial(compose_room, num_objects=num_objects, num_points=num_points)
    counts = (train_rooms, validation_rooms, test_rooms)
    return compose_splits(compose, counts, features, data_dir, names, seed, options)


def compose_splits(
    compose: Callable[[list[RoomObject], np.random.Generator], Mapping[str, Any]],
    counts: Sequence[int],
    features: Mapping[str, Any],
    data_dir: str | os.PathLike | None,
    classes: Sequence[str],
    seed: int,
    options: Mapping[str, Any],
) -> DatasetDict:
    """Compose the rooms of all splits; the arguments are those of `load`."""
    # Variants of one shape stay in one split, or rooms to judge would have shapes that were learned.
    single = validation_split(shapes.load(data_dir, **options), 0.2, seed, group_column="group")
    splits = {}
    for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        if count < 1:
            continue
        rows = single[split].select_columns(["points", "label"]).with_format("numpy")
        names = rows.features["label"].names
        plain = cast("Iterable[dict[str, Any]]", rows)
        # Class 0 is the floor.
        labels = {names.index(name): i + 1 for i, name in enumerate(classes)}
        objects = []
        for row in plain:
            label = int(row["label"])
            if label in labels:
                objects.append(RoomObject(np.asarray(row["points"]), labels[label], TYPICAL_SIZES[names[label]]))
        # A generator for each room: more rooms leave the first ones as they are.
        drawn = [compose(objects, np.random.default_rng([seed, number, room])) for room in range(count)]
        columns = {name: [room[name] for room in drawn] for name in features}
        splits[split] = Dataset.from_dict(columns, features=Features(features))
    return DatasetDict(splits)


@dataclass(frozen=True)
class RoomObject:
    """An object that may be placed in a room: points (points, 3), y up, its class number and diameter in meters."""

    points: np.ndarray
    label: int
    size: float


def compose_room(
    objects: Sequence[RoomObject],
    generator: np.random.Generator,
    *,
    num_objects: int = 6,
    num_points: int = 4096,
    width: float | tuple[float, float] = 5.0,
    floor_label: int = 0,
    size_spread: float = 0.15,
    gap: float = 0.05,
    touching: bool = False,
) -> dict[str, np.ndarray]:
    """Place objects at random on a rectangular floor, rotated about the vertical axis; no two footprints overlap.

    All objects have about the same density of points, the floor gets the rest, and the order is random. Objects for
    which there is no free place are left out.

    `width` is the edge of the floor in meters, or its edges along x and z, `size_spread` the largest relative
    deviation from the typical size, and `gap` the least distance between bounding boxes in meters. With `touching`
    each object but the first is moved towards another one until points of both are about as close as `gap`; their
    boxes may overlap.

    Returns:
        `points` (num_points, 3) float32 in meters, the floor at y = 0 and centered on the origin; `labels`
        (num_points,) int64; `objects` (num_points,) int64, the number of each point's object, -1 for the floor;
        `angles` (objects,) float64, by which each object was rotated, from z towards x.
    """
    at_least(64 * num_objects, num_points=num_points)
    # Without repetition, as long as there are enough objects
    drawn = generator.choice(len(objects), num_objects, replace=len(objects) < num_objects)
    edges = np.asarray(width, dtype=np.float64) * np.ones(2)
    boxes: list[np.ndarray] = []
    placed: list[tuple[np.ndarray, int, float]] = []  # points, label and size
    angles: list[float] = []
    for number in drawn:
        size = objects[number].size * generator.uniform(1 - size_spread, 1 + size_spread)
        angle = generator.uniform(0, 2 * np.pi)
        # Scaled to its diameter and rotated about y, with the lowest point on the floor and the footprint centered.
        shape = np.asarray(objects[number].points, dtype=np.float64) - np.mean(objects[number].points, axis=0)
        shape *= size / 2 / np.linalg.norm(shape, axis=1).max()
        x, y, z = shape.T
        standing = np.stack([np.cos(angle) * x + np.sin(angle) * z, y, np.cos(angle) * z - np.sin(angle) * x], axis=1)
        low = standing.min(axis=0)
        high = standing.max(axis=0)
        standing = standing - [(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2]
        if touching and placed:
            place = _touching_place(standing, [points for points, _, _ in placed], edges, gap, generator)
        else:
            place = _free_place(standing, boxes, edges, gap, generator)
        if place is not None:
            boxes.append(place)
            standing[:, [0, 2]] += (place[:2] + place[2:]) / 2
            placed.append((standing, objects[number].label, size))
            angles.append(angle)
    # Surfaces grow with the square of the size. The floor counts as one more and gets the points that objects lack.
    shares = np.array([size**2 for _, _, size in placed] + [edges.prod() / 4])
    counts = np.floor(num_points * shares / shares.sum()).astype(int)
    points = []
    labels = []
    members = []
    for number, (standing, label, _) in enumerate(placed):
        # Shapes have a fixed number of points, so a large object cannot get more than these.
        count = min(max(counts[number], 1), len(standing))
        points.append(standing[generator.choice(len(standing), count, replace=False)])
        labels.append(np.full(count, label))
        members.append(np.full(count, number))
    rest = num_points - sum(map(len, points))
    floor = np.zeros((rest, 3))
    floor[:, [0, 2]] = generator.uniform(-edges / 2, edges / 2, (rest, 2))
    points = [*points, floor]
    labels = [*labels, np.full(rest, floor_label)]
    members = [*members, np.full(rest, -1)]
    order = generator.permutation(num_points)
    return {
        "points": np.concatenate(points)[order].astype(np.float32),
        "labels": np.concatenate(labels)[order].astype(np.int64),
        "objects": np.concatenate(members)[order].astype(np.int64),
        "angles": np.array(angles),
    }


def _free_place(
    standing: np.ndarray, boxes: list[np.ndarray], edges: np.ndarray, gap: float, generator: np.random.Generator
) -> np.ndarray | None:
    """Find a rectangle (x low, z low, x high, z high) for the footprint; None after 100 tries."""
    # Half the footprint along x and z
    half = np.ptp(standing[:, [0, 2]], axis=0) / 2
    # The farthest that the center may be from the middle; not positive for an object wider than the floor.
    reach = edges / 2 - half
    if (reach <= 0).any():
        return None
    for _ in range(_TRIES):
        center = generator.uniform(-reach, reach)
        box = np.concatenate([center - half, center + half])
        # Boxes overlap if their intervals do along both axes.
        if not any((box[:2] < other[2:] + gap).all() and (other[:2] < box[2:] + gap).all() for other in boxes):
            return box
    return None


def _touching_place(
    standing: np.ndarray, others: Sequence[np.ndarray], edges: np.ndarray, gap: float, generator: np.random.Generator
) -> np.ndarray | None:
    """Find a rectangle where points of the object are about `gap` from those of another one; None after 100 tries."""
    half = np.ptp(standing[:, [0, 2]], axis=0) / 2
    reach = edges / 2 - half
    # Of all points placed so far: the object stops at whichever it comes close to first.
    tree = KDTree(np.concatenate(others))
    for _ in range(_TRIES):
        other = others[int(generator.integers(len(others)))][:, [0, 2]]
        angle = generator.uniform(0, 2 * np.pi)
        toward = np.array([np.cos(angle), np.sin(angle)])
        middle = (other.min(axis=0) + other.max(axis=0)) / 2
        # The circles around both footprints do not touch at this distance.
        distance = np.linalg.norm(half) + np.linalg.norm(np.ptp(other, axis=0)) / 2 + gap
        center = None
        # From outside, so that no object ends up within another one.
        for away in np.arange(distance, 0, -_STEP):
            closer = middle + away * toward
            moved = standing + [closer[0], 0, closer[1]]
            if np.isfinite(tree.query(moved, distance_upper_bound=gap)[0]).any():
                break
            center = closer
        if center is not None and (np.abs(center) <= reach).all():
            return np.concatenate([center - half, center + half])
    return None
