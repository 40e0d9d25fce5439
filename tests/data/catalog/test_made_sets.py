"""The catalogue's sets that are made in code: rooms and objects with parts."""

import numpy as np
import pytest
from datasets import Array2D, ClassLabel

from hf_any3d import load_point_dataset
from hf_any3d.data.catalog.parts import PARTS
from hf_any3d.data.catalog.rooms import TYPICAL_SIZES

ROOMS = {"train_rooms": 3, "validation_rooms": 2, "test_rooms": 2, "num_points": 1024}
OBJECTS = {"train_objects": 12, "validation_objects": 6, "test_objects": 6, "num_points": 128}


@pytest.fixture(scope="module")
def rooms():
    return load_point_dataset("rooms", **ROOMS)


@pytest.fixture(scope="module")
def parts():
    return load_point_dataset("parts", **OBJECTS)


def test_rooms_have_a_class_for_every_point(rooms):
    assert {split: len(rows) for split, rows in rooms.items()} == {"train": 3, "validation": 2, "test": 2}
    feature = rooms["train"].features["labels"].feature
    assert isinstance(feature, ClassLabel) and feature.names == ["floor", *TYPICAL_SIZES]
    assert rooms["train"].features["points"] == Array2D((1024, 3), "float32")
    for row in rooms["train"]:
        assert row["labels"].shape == (1024,)
        assert (row["points"][row["labels"] == 0, 1] == 0).all()
        assert len(np.unique(row["labels"])) > 2


def test_rooms_of_different_splits_share_no_object(monkeypatch):
    from hf_any3d.data.catalog import rooms as module

    seen = []
    monkeypatch.setattr(module, "compose_room", lambda objects, *args, **kwargs: seen.append(objects) or RESULT)
    RESULT = {"points": np.zeros((64, 3), np.float32), "labels": np.zeros(64, np.int64)}
    load_point_dataset("rooms", train_rooms=1, validation_rooms=1, test_rooms=1, num_points=64)
    contents = [{thing.points.tobytes() for thing in objects} for objects in seen]
    assert all(len(content) > 20 for content in contents)
    assert not contents[0] & contents[1] and not contents[0] & contents[2] and not contents[1] & contents[2]


def test_labels_of_rooms_are_the_classes_of_the_shapes(monkeypatch):
    only = load_point_dataset("rooms", split="train", classes=["table", "lamp"], **ROOMS)
    assert only.features["labels"].feature.names == ["floor", "table", "lamp"]
    tall = [row["points"][row["labels"] == 1] for row in only]
    assert any(len(points) for points in tall)


@pytest.mark.parametrize(("name", "settings"), [("rooms", ROOMS), ("parts", OBJECTS)])
def test_the_seed_decides(name, settings):
    one, other, third = (load_point_dataset(name, split="train", **settings, seed=seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(one["points"], other["points"]) and np.array_equal(one["labels"], other["labels"])
    assert not np.array_equal(one["points"], third["points"])


def test_objects_have_only_parts_of_their_category(parts):
    features = parts["train"].features
    names, categories = features["labels"].feature.names, features["label"].names
    assert categories == list(PARTS) and len(names) == sum(map(len, PARTS.values()))
    for split, rows in parts.items():
        assert len(rows) == OBJECTS[f"{split}_objects"]
        for row in rows:
            category = categories[row["label"]]
            assert {names[part] for part in row["labels"]} == {f"{category} {part}" for part in PARTS[category]}


def test_no_object_occurs_twice(parts):
    clouds = [row["points"].tobytes() for rows in parts.values() for row in rows]
    assert len(set(clouds)) == len(clouds) == 24


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("rooms", {"classes": ["vehicle"]}, "classes names 'vehicle'; expected any of bed"),
        ("parts", {"categories": ["sofa"]}, "categories names 'sofa'; expected any of bottle"),
        ("parts", {"data_dir": "somewhere"}, "data_dir is 'somewhere'; expected None"),
    ],
)
def test_wrong_arguments_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        load_point_dataset(name, **settings)
