"""Rooms composed of the embedded shapes when they are loaded: object detection without a download.

No object is in rooms of two splits, as in `rooms`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Array2D, Dataset, DatasetDict, Features

from hf_any3d.data.boxes import box_features
from hf_any3d.data.catalog import shapes
from hf_any3d.data.point_arrays import turn_up_axis
from hf_any3d.data.splits import validation_split
from hf_any3d.research.generated import rooms

LICENSE = rooms.LICENSE
UP_AXIS = "z"
# Boxes are at least this long along each axis, in meters.
_THINNEST = 0.02


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

    Rows have `points` (num_points, 3) in meters, z up, `boxes` (objects, 7) along the axes, center, size and heading
    0, and `box_labels` (objects,).

    Args:
        data_dir: folder of the embedded shapes; None takes those of the source checkout.
        train_rooms: rooms of the training split.
        validation_rooms: rooms of the validation split.
        test_rooms: rooms of the test split.
        num_points: points of a room.
        num_objects: objects to place in a room.
        classes: classes of the shapes to place; None takes those of `rooms.TYPICAL_SIZES`.
        seed: seed of objects, places and points.
        options: further arguments of `datasets.load_dataset` for the shapes.

    Raises:
        ValueError: a class without a typical size.
        FileNotFoundError: the shapes are missing.
    """
    counts = {"train": train_rooms, "validation": validation_rooms, "test": test_rooms}

    def compose(objects: Sequence[rooms.RoomObject], generator: np.random.Generator) -> dict[str, Any]:
        return with_boxes(rooms.compose_room(objects, generator, num_objects=num_objects, num_points=num_points))

    return compose_splits(
        compose, counts, {"points": Array2D((num_points, 3), "float32")}, data_dir, classes, seed, options
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


def with_boxes(room: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return a composed room, z up, with a box around the points of each object."""
    points = turn_up_axis(room["points"], "y", UP_AXIS)
    boxes, labels = [], []
    for number in range(int(room["objects"].max()) + 1):
        own = room["objects"] == number
        low, high = points[own].min(axis=0), points[own].max(axis=0)
        boxes.append([*((low + high) / 2), *np.maximum(high - low, _THINNEST), 0.0])
        labels.append(int(room["labels"][own][0]) - 1)  # 0 is the floor
    return {"points": points, "boxes": boxes, "box_labels": labels}
