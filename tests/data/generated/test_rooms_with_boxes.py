"""Rooms with boxes: closely around the points of the objects, turned as these are, apart or touching."""

import numpy as np
import pytest
import torch

from hf_any3d import load_point_dataset
from hf_any3d.data.generated.rooms import SYMMETRY, TYPICAL_SIZES
from hf_any3d.modeling.layers.boxes import points_in_boxes

SIZES = {"train_rooms": 6, "validation_rooms": 2, "test_rooms": 2, "num_points": 1024, "num_objects": 4}


def load(**options):
    return load_point_dataset("rooms_with_boxes", **(SIZES | options))


@pytest.fixture(scope="module")
def rooms():
    return load()


@pytest.fixture(scope="module")
def chairs():
    return load(train_rooms=12, classes=["chair", "sofa"], num_points=2048)["train"]


def own_frame(points, box):
    """Points relative to a box, along its own axes."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    x, y, z = (points - box[:3]).T
    return np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=1)


def objects_of(room):
    """Box, class and points off the floor of each object."""
    points, boxes = np.asarray(room["points"]), np.asarray(room["boxes"])
    inside = points_in_boxes(torch.from_numpy(points), torch.from_numpy(boxes), tolerance=1e-4).numpy()
    return [
        (box, label, points[own]) for box, label, own in zip(boxes, room["box_labels"], inside, strict=True)
    ], ~inside.any(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("headings", [True, False])
def test_rooms_have_a_box_closely_around_each_object(headings):
    splits = load(headings=headings)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 6, "validation": 2, "test": 2}
    assert splits["train"].features["box_labels"].feature.names == list(TYPICAL_SIZES)
    for room in splits["train"]:
        found, others = objects_of(room)
        assert len(found) == len(room["box_labels"]) >= 3
        for box, _, points in found:
            assert len(points) > 10
            reach = np.abs(own_frame(points, box)).max(axis=0)
            np.testing.assert_allclose(reach, box[3:6] / 2, atol=2e-4)  # a point lies on each face, or its opposite
        assert np.abs(np.asarray(room["points"])[others, 2]).max() < 1e-6, "a point above the floor is in no box"
        assert headings or np.abs(np.asarray(room["boxes"])[:, 6]).max() == 0


@pytest.mark.slow
def test_headings_follow_the_symmetry_of_the_class(rooms):
    names = rooms["train"].features["box_labels"].feature.names
    seen = set()
    for room in rooms["train"]:
        for box, label in zip(np.asarray(room["boxes"]), room["box_labels"], strict=True):
            symmetry = SYMMETRY[names[int(label)]]
            seen.add(symmetry)
            assert abs(box[6]) <= (np.pi / symmetry if symmetry else 0.0) + 1e-6
    assert seen == {0, 1, 2} and SYMMETRY.keys() == TYPICAL_SIZES.keys()


@pytest.mark.slow
def test_seats_have_their_backs_behind_them(chairs):
    """The front is along the box's own x; what is high of a chair is its back."""
    behind = []
    for room in chairs:
        for box, _, points in objects_of(room)[0]:
            own = own_frame(points, box)
            high = own[own[:, 2] > 0.25 * box[5]]
            behind.append(high[:, 0].mean() / box[3])
    # Stools have none.
    assert len(behind) > 40 and np.mean(np.array(behind) < -0.05) > 0.8 and np.median(behind) < -0.2
    assert np.mean(np.array(behind) > 0.05) < 0.1
