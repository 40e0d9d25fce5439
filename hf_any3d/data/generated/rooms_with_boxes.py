"""Rooms composed of the embedded shapes when they are loaded: object detection without a download.

No object is in rooms of two splits, as in `rooms`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Array2D, Dataset, DatasetDict, Features

from hf_any3d.data.boxes import box_features, wrapped
from hf_any3d.data.catalog import shapes
from hf_any3d.data.generated import rooms
from hf_any3d.data.point_arrays import turn_up_axis
from hf_any3d.data.splits import validation_split

LICENSE = rooms.LICENSE
UP_AXIS = "z"
# Boxes are at least this long along each axis, in meters.
_THINNEST = 0.02
# Distance between points of objects that touch, in meters.
_CLOSE = 0.03


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    train_rooms: int = 64,
    validation_rooms: int = 16,
    test_rooms: int = 32,
    num_points: int = 4096,
    num_objects: int = 6,
    headings: bool = True,
    touching: bool = False,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> DatasetDict:
    """Compose rooms; the same arguments give the same rooms.

    Rows have `points` (num_points, 3) in meters, z up, `boxes` (objects, 7), center, size and heading, and
    `box_labels` (objects,). A box lies closely around the points of its object. With headings it is turned as the
    object is, which faces along the box's own x; of a class whose front and back are alike (2 in `rooms.SYMMETRY`),
    headings are from -pi/2 to pi/2, and boxes of a class without a front (0) are along the axes.

    Args:
        data_dir: folder of the embedded shapes; None takes those of the source checkout.
        train_rooms: rooms of the training split.
        validation_rooms: rooms of the validation split.
        test_rooms: rooms of the test split.
        num_points: points of a room.
        num_objects: objects to place in a room.
        headings: whether boxes are turned as their objects are; otherwise all are along the axes.
        touching: whether each object stands close to another one, with 3 cm between their points, instead of apart.
        classes: classes of the shapes to place; None takes those of `rooms.TYPICAL_SIZES`.
        seed: seed of objects, places and points.
        options: further arguments of `datasets.load_dataset` for the shapes.

    Raises:
        ValueError: a class without a typical size.
        FileNotFoundError: the shapes are missing.
    """
    counts = {"train": train_rooms, "validation": validation_rooms, "test": test_rooms}
    names = list(rooms.TYPICAL_SIZES) if classes is None else list(classes)
    turned = names if headings else None
    places = {"touching": True, "gap": _CLOSE} if touching else {}

    def compose(objects: Sequence[rooms.RoomObject], generator: np.random.Generator) -> dict[str, Any]:
        room = rooms.compose_room(objects, generator, num_objects=num_objects, num_points=num_points, **places)
        return with_boxes(room, turned)

    return compose_splits(
        compose, counts, {"points": Array2D((num_points, 3), "float32")}, data_dir, names, seed, options
    )


def compose_splits(
    compose: Callable[[Sequence[rooms.RoomObject], np.random.Generator], Mapping[str, Any]],
    counts: Mapping[str, int],
    columns: Mapping[str, Any],
    data_dir: str | os.PathLike | None,
    classes: Sequence[str] | None,
    seed: int,
    options: Mapping[str, Any],
) -> DatasetDict:
    """Compose the rooms of all splits.

    Args:
        compose: Returns a row of the objects that a split may use and a random generator.
        counts: Rooms of each split.
        columns: Features of the rows besides boxes.
        data_dir: As in `load`.
        classes: The same.
        seed: The same.
        options: The same.

    Raises:
        ValueError: a class without a typical size.
        FileNotFoundError: the shapes are missing.
    """
    classes = list(rooms.TYPICAL_SIZES) if classes is None else list(classes)
    if unknown := [name for name in classes if name not in rooms.TYPICAL_SIZES]:
        raise ValueError(f"classes names {unknown[0]!r}; expected any of {', '.join(rooms.TYPICAL_SIZES)}")
    single = validation_split(shapes.load(data_dir, **options), 0.2, seed, group_column="group")
    features = Features({**columns, **box_features(classes)})
    splits = {}
    for number, (split, count) in enumerate(counts.items()):
        if count < 1:
            continue
        rows = single[split].select_columns(["points", "label"]).with_format("numpy")
        objects = rooms.room_objects(rows, rows.features["label"].names, classes, rooms.TYPICAL_SIZES)
        # A generator for each room: more rooms leave the first ones as they are.
        made = [compose(objects, np.random.default_rng([seed, number, room])) for room in range(count)]
        splits[split] = Dataset.from_dict(
            {name: [room[name] for room in made] for name in features}, features=features
        )
    return DatasetDict(splits)


def with_boxes(room: Mapping[str, np.ndarray], turned: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a composed room, z up, with a box around the points of each object.

    Args:
        room: As `rooms.compose_room` returns it.
        turned: Names of the classes, from label 1 on, for boxes that are turned as their objects are; None for boxes
            along the axes.
    """
    points = turn_up_axis(room["points"], "y", UP_AXIS)
    boxes, labels = [], []
    for number, angle in enumerate(room["angles"]):
        own = room["objects"] == number
        label = int(room["labels"][own][0]) - 1  # 0 is the floor
        heading = 0.0 if turned is None else _heading(rooms.SYMMETRY[turned[label]], float(angle))
        boxes.append(_box_around(points[own], heading))
        labels.append(label)
    return {"points": points, "boxes": boxes, "box_labels": labels}


def _heading(symmetry: int, angle: float) -> float:
    """Return the heading of an object that was rotated by an angle; the shapes face along z, which becomes -y."""
    if symmetry == 0:
        return 0.0
    turn = 2 * np.pi / symmetry
    return float(wrapped(np.array(symmetry * (angle - np.pi / 2)))) * turn / (2 * np.pi)


def _box_around(points: np.ndarray, heading: float) -> np.ndarray:
    """Return the smallest box (7,) with a heading that holds points (points, 3)."""
    cos, sin = np.cos(heading), np.sin(heading)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])  # own axes to those of the room
    own = points @ turn
    low, high = own.min(axis=0), own.max(axis=0)
    return np.array([*(turn @ ((low + high) / 2)), *np.maximum(high - low, _THINNEST), heading], np.float32)
