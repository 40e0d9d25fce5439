"""Rooms: objects stand on the floor, apart from each other, each point with its object's class."""

import numpy as np
import pytest
from datasets import Array2D, ClassLabel

from hf_any3d import load_point_dataset
from hf_any3d.data.generated.rooms import TYPICAL_SIZES, RoomObject, compose_room
from tests.errors import raises

ROOMS = {"train_rooms": 3, "validation_rooms": 2, "test_rooms": 2, "num_points": 1024}


@pytest.fixture
def objects():
    generator = np.random.default_rng(5)
    return [RoomObject(generator.normal(size=(500, 3)), label, 1.0 + 0.2 * label) for label in (1, 2, 3, 4)]


@pytest.mark.parametrize("seed", range(8))
def test_objects_stand_on_the_floor_inside_the_room_without_overlap(objects, seed):
    room = compose_room(objects, np.random.default_rng(seed), num_objects=4, num_points=2000, width=6.0)
    points, members = room["points"], room["objects"]
    assert points.shape == (2000, 3) and points.dtype == np.float32
    assert np.abs(points[:, [0, 2]]).max() <= 3.0
    assert (points[members == -1, 1] == 0).all() and points[:, 1].min() >= -1e-6
    boxes = []
    for number in range(members.max() + 1):
        own = points[members == number]
        assert own[:, 1].min() < 0.3, "an object hangs in the air"
        boxes.append((own[:, [0, 2]].min(axis=0), own[:, [0, 2]].max(axis=0)))
    for i, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:i]:
            assert (high <= other_low).any() or (other_high <= low).any(), "two footprints overlap"


def test_objects_without_a_free_place_are_left_out(objects):
    room = compose_room(objects, np.random.default_rng(0), num_objects=4, num_points=1000, width=2.0)
    assert 0 <= room["objects"].max() < 3 and len(room["points"]) == 1000
    empty = compose_room(objects, np.random.default_rng(0), num_objects=4, num_points=1000, width=0.5)
    assert (empty["objects"] == -1).all()


def test_impossible_rooms_are_refused(objects):
    with raises(ValueError, naming="num_points"):
        compose_room(objects, np.random.default_rng(0), num_points=100)


@pytest.fixture(scope="module")
def rooms():
    return load_point_dataset("rooms", **ROOMS)


@pytest.mark.slow
def test_rooms_have_a_class_for_every_point(rooms):
    assert {split: len(rows) for split, rows in rooms.items()} == {"train": 3, "validation": 2, "test": 2}
    feature = rooms["train"].features["labels"].feature
    assert isinstance(feature, ClassLabel) and feature.names == ["floor", *TYPICAL_SIZES]
    assert rooms["train"].features["points"] == Array2D((1024, 3), "float32")
    for row in rooms["train"]:
        assert row["labels"].shape == (1024,)
        assert (row["points"][row["labels"] == 0, 1] == 0).all()
        assert len(np.unique(row["labels"])) > 2


@pytest.mark.slow
def test_labels_of_rooms_are_the_classes_of_the_shapes():
    only = load_point_dataset("rooms", split="train", classes=["table", "lamp"], **ROOMS)
    assert only.features["labels"].feature.names == ["floor", "table", "lamp"]
    tall = [row["points"][row["labels"] == 1] for row in only]
    assert any(len(points) for points in tall)


def test_a_class_without_a_size_is_refused():
    with raises(KeyError, naming="'vehicle'"):
        load_point_dataset("rooms", classes=["vehicle"])
