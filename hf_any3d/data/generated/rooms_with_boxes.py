"""Rooms composed of the embedded shapes when they are loaded: object detection without a download.

No object is in rooms of two splits, as in `rooms`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Array2D, DatasetDict

from hf_any3d.data.annotations.boxes import box_features, wrapped
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.data.generated import rooms

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

    Arguments are those of `rooms.load`, and:
        headings: whether boxes are turned as their objects are; otherwise all are along the axes.
        touching: whether each object stands close to another one, with 3 cm between their points, instead of apart.
    """
    names = list(rooms.TYPICAL_SIZES) if classes is None else list(classes)
    places = {"touching": True, "gap": _CLOSE} if touching else {}

    def compose(objects: Sequence[rooms.RoomObject], generator: np.random.Generator) -> dict[str, Any]:
        room = rooms.compose_room(objects, generator, num_objects=num_objects, num_points=num_points, **places)
        return with_boxes(room, names if headings else None)

    counts = (train_rooms, validation_rooms, test_rooms)
    features = {"points": Array2D((num_points, 3), "float32"), **box_features(names)}
    return rooms.compose_splits(compose, counts, features, data_dir, names, seed, options)


def with_boxes(room: Mapping[str, np.ndarray], turned: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a composed room, z up, with a box around the points of each object."""
    points = turn_up_axis(room["points"], "y", UP_AXIS)
    boxes = []
    labels = []
    for number, angle in enumerate(room["angles"]):
        members = room["objects"] == number
        label = int(room["labels"][members][0]) - 1  # 0 is the floor
        symmetry = 0 if turned is None else rooms.SYMMETRY[turned[label]]
        heading = 0.0
        if symmetry:
            # The shapes face along z, which becomes -y.
            heading = float(wrapped(np.array(symmetry * (float(angle) - np.pi / 2)))) / symmetry
        cos = np.cos(heading)
        sin = np.sin(heading)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])  # axes of the box to those of the room
        # Rows times this matrix are places along the axes of the box.
        inside = points[members] @ turn
        low = inside.min(axis=0)
        high = inside.max(axis=0)
        size = np.maximum(high - low, _THINNEST)
        boxes.append(np.array([*(turn @ ((low + high) / 2)), *size, heading], np.float32))
        labels.append(label)
    return {"points": points, "boxes": boxes, "box_labels": labels}
