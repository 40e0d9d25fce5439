"""Rooms with walls, doors and windows around the embedded shapes: layouts and boxes without a download.

No object is in rooms of two splits, as in `rooms`.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Array2D, DatasetDict, Value

from hf_any3d.data.annotations.boxes import box_features
from hf_any3d.data.generated import rooms
from hf_any3d.data.generated.rooms_with_boxes import UP_AXIS as UP_AXIS, with_boxes
from hf_any3d.modeling.layers.layouts import Box, Door, Entity, Layout, Wall, Window

LICENSE = rooms.LICENSE
_EDGES, _HEIGHTS = (3.5, 6.0), (2.4, 3.0)
_MARGIN = 0.2
"""Least distance of a door or window from the end of its wall, in meters."""


def load(
    data_dir: str | os.PathLike | None = None,
    *,
    train_rooms: int = 64,
    validation_rooms: int = 16,
    test_rooms: int = 32,
    num_points: int = 8192,
    num_objects: int = 6,
    noise: float = 0.005,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> DatasetDict:
    """Compose rooms; the same arguments give the same rooms.

    Rows have `points` (num_points, 3) in meters, z up, `layout`, the text of a `Layout` in meters, and the objects of
    the layout as `boxes` (objects, 7) and `box_labels` (objects,), as in `rooms_with_boxes`. Doors and windows are
    holes in the walls.

    Arguments are those of `rooms.load`, and `noise`, the standard deviation of the noise of all points, in meters.
    """
    names = list(rooms.TYPICAL_SIZES) if classes is None else list(classes)

    def compose(objects: Sequence[rooms.RoomObject], generator: np.random.Generator) -> dict[str, Any]:
        return compose_room_with_layout(
            objects, names, generator, num_objects=num_objects, num_points=num_points, noise=noise
        )

    counts = (train_rooms, validation_rooms, test_rooms)
    features = {"points": Array2D((num_points, 3), "float32"), "layout": Value("string"), **box_features(names)}
    return rooms.compose_splits(compose, counts, features, data_dir, names, seed, options)


def compose_room_with_layout(
    objects: Sequence[rooms.RoomObject],
    names: Sequence[str],
    generator: np.random.Generator,
    *,
    num_objects: int = 6,
    num_points: int = 8192,
    noise: float = 0.005,
    wall_share: float = 0.4,
) -> dict[str, Any]:
    """Place objects in a rectangular room with a door and one or two windows, each in a wall of its own.

    Returns:
        `points` (num_points, 3) float32, z up, the floor at z = 0 and centered on the origin; `layout`, `boxes` and
        `box_labels` as in `load`.
    """
    width, depth = generator.uniform(*_EDGES, 2).tolist()
    height = float(generator.uniform(*_HEIGHTS))
    # Counterclockwise seen from above, so that walls follow each other around the room.
    corners = [(-width / 2, -depth / 2), (width / 2, -depth / 2), (width / 2, depth / 2), (-width / 2, depth / 2)]
    # Rounded before points are drawn, so that the layout says exactly where they are
    corners = [(round(x, 4), round(y, 4)) for x, y in corners]
    walls = [Wall(n, *corners[n], 0.0, *corners[(n + 1) % 4], 0.0, round(height, 4)) for n in range(4)]
    openings = _openings(walls, generator)
    on_walls = int(num_points * wall_share)
    room = rooms.compose_room(
        objects, generator, num_objects=num_objects, num_points=num_points - on_walls, width=(width, depth)
    )
    row = with_boxes(room)
    points = np.concatenate([row["points"], _on_walls(walls, openings, on_walls, generator)])
    points = points + generator.normal(0, noise, points.shape)
    boxes = []
    for box, label in zip(row["boxes"], row["box_labels"], strict=True):
        # In the order of the numbers of a layout: the turn comes before the sizes.
        numbers: list[float] = [round(float(value), 4) for value in (*box[:3], box[6], *box[3:6])]
        boxes.append(Box(len(boxes), str(names[label]), *numbers))
    layout = Layout.of([*walls, *openings, *boxes])
    return row | {"points": points[generator.permutation(num_points)].astype(np.float32), "layout": layout.write()}


def _openings(walls: Sequence[Wall], generator: np.random.Generator) -> list[Entity]:
    """Draw a door and one or two windows."""
    openings: list[Entity] = []
    # Of different walls, so that no opening lies in another one.
    places = generator.permutation(len(walls))[: 2 + int(generator.integers(2))]
    for number, place in enumerate(places.tolist()):
        wall = walls[place]
        start = np.array([wall.ax, wall.ay])
        end = np.array([wall.bx, wall.by])
        length = float(np.linalg.norm(end - start))
        # A door, which stands on the floor.
        if number == 0:
            size = (generator.uniform(0.8, 1.1), generator.uniform(1.95, 2.1))
            middle = size[1] / 2
        else:
            size = (generator.uniform(0.8, 1.8), generator.uniform(0.9, 1.3))
            middle = generator.uniform(1.45, 1.6)
        # How far the opening may be from the middle of its wall
        reach = length / 2 - size[0] / 2 - _MARGIN
        center = (start + end) / 2 + (end - start) / length * generator.uniform(-reach, reach)
        values = (round(float(value), 4) for value in (*center, middle, *size))
        openings.append(Door(0, wall.id, *values) if number == 0 else Window(number - 1, wall.id, *values))
    return openings


def _on_walls(
    walls: Sequence[Wall], openings: Sequence[Any], count: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw points on the walls around the openings, equally dense everywhere."""
    # (walls, 2, 2), both ends of each on the ground
    ends = np.array([[(wall.ax, wall.ay), (wall.bx, wall.by)] for wall in walls])
    along = ends[:, 1] - ends[:, 0]
    lengths = np.linalg.norm(along, axis=1)
    kept: list[np.ndarray] = []
    missing = count
    while missing > 0:
        # Longer walls get more points; those that fall into an opening are drawn again.
        number = generator.choice(len(walls), missing, p=lengths / lengths.sum())
        share = generator.random(missing)
        places = ends[number, 0] + along[number] * share[:, None]
        points = np.column_stack([places, generator.random(missing) * walls[0].height])
        free = np.ones(missing, dtype=bool)
        for opening in openings:
            # Only openings of the point's own wall are holes in it.
            beside = np.linalg.norm(points[:, :2] - (opening.x, opening.y), axis=1) < opening.width / 2
            free &= (number != opening.wall_id) | ~beside | (np.abs(points[:, 2] - opening.z) >= opening.height / 2)
        kept.append(points[free])
        missing -= int(free.sum())
    return np.concatenate(kept)
