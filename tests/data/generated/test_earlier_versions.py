"""Generated rooms are those of earlier versions, so that figures measured on them stay comparable."""

import numpy as np
import pytest

from hf_any3d.data.generated.rooms import RoomObject, compose_room
from hf_any3d.data.generated.rooms_with_boxes import with_boxes
from hf_any3d.data.generated.rooms_with_layouts import compose_room_with_layout
from hf_any3d.modeling.spatiallm import Layout
from tests.golden import assert_stored

NAMES = ["bed", "chair", "sofa"]
# fmt: off
STORED = [
    [
        -0.19008, 0.43024, -0.3209, -0.33422, -0.53464, -0.07966, 1.06654, -0.17575, -0.3573, -0.14832,
        -1.22338, -0.06924,
    ],
    [
        -1.49701, -1.51327, 0.83767, -0.24706, -0.9777, -0.07966, 1.67502, -4.26361, 1.625, -0.17593,
        -0.97542, -0.06924,
    ],
    [
        0.06794, 1.71413, 0.2879, 0.09164, -0.169, 0.18811, -0.27723, -0.48198, -7.02177, -0.09365,
        -0.37885, 0.04445,
    ],
    [
        -1.268304, -1.132672, -1.969944, -0.855743, -0.118428, 0.239179, 0.28858, -2.511747, -1.013266,
        -2.119831, 0.234731, -0.056534,
    ],
]
LAYOUTS = [
    -0.66585, -0.21356, 1.3248, -0.97098, -0.82922, 0.63581, -0.95724, 0.03594, 0.45938, -2.2232,
    -0.59508, 1.84847,
]
# fmt: on


@pytest.fixture(scope="module")
def objects() -> list[RoomObject]:
    generator = np.random.default_rng(5)
    return [RoomObject(generator.normal(size=(90, 3)), label, 0.6 + 0.3 * label) for label in (1, 2, 3, 1)]


@pytest.mark.parametrize(
    ("settings", "turned", "stored"),
    [
        ({}, None, STORED[0]),
        ({"width": (4.0, 6.0), "size_spread": 0.0, "floor_label": 5}, NAMES, STORED[1]),
        ({"num_objects": 9, "width": 2.5}, NAMES, STORED[2]),
        ({"num_objects": 6, "touching": True, "gap": 0.2}, None, STORED[3]),
    ],
)
def test_rooms_and_their_boxes(objects, settings, turned, stored):
    found = []
    for seed in range(2):
        room = compose_room(objects, np.random.default_rng(seed), **{"num_objects": 4, "num_points": 640} | settings)
        row = with_boxes(room, turned)
        found += [room["points"], room["labels"], room["objects"], row["points"], row["boxes"], row["box_labels"]]
    assert_stored(found, stored, 1e-4)


def test_rooms_with_layouts(objects):
    found = []
    for seed in range(4):
        row = compose_room_with_layout(objects, NAMES, np.random.default_rng(seed), num_objects=3, num_points=800)
        layout = Layout.parse(row["layout"], strict=True)
        entities = [*layout.walls, *layout.doors, *layout.windows, *layout.boxes]
        numbers = [value for one in entities for value in vars(one).values() if isinstance(value, (int, float))]
        found += [row["points"], row["boxes"], np.array(numbers)]
    assert_stored(found, LAYOUTS, 1e-4)
