"""Augmentations that move boxes with points, against items of the released program and by what they must keep."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value

from hf_any3d.data.annotations.boxes import (
    DrawPoints,
    RandomCuboid,
    RandomFlip,
    RandomSize,
    RandomTurn,
    Scene,
    box_features,
    build_changes,
)
from hf_any3d.modeling.layers.boxes import points_in_boxes
from tests.data.published_changes import published_changes
from tests.errors import raises
from tests.modeling.aligned_case import AlignedCase

CASE = AlignedCase("detr3d_data")


def scannet() -> Scene:
    stored = CASE.expected
    boxes = stored["scannet.bbox"].numpy()
    return Scene(
        stored["scannet.vert"].numpy()[:, :3],
        np.concatenate([boxes[:, :6], np.zeros((len(boxes), 1))], axis=1),
        boxes[:, 6].astype(np.int64),
    )


def sunrgbd() -> Scene:
    stored = CASE.expected
    boxes = stored["sunrgbd.bbox"].numpy().copy()
    boxes[:, 3:6] *= 2  # half lengths
    boxes[:, 6] *= -1  # clockwise
    return Scene(stored["sunrgbd.pc"].numpy()[:, :3], boxes[:, :7], boxes[:, 7].astype(np.int64))


@pytest.mark.parametrize(
    ("run", "scene", "left_out"),
    [
        ("scannet.train", scannet, ()),
        ("sunrgbd.train", sunrgbd, ()),
        ("sunrgbd.train_no_cuboid", sunrgbd, (RandomCuboid,)),
    ],
)
def test_a_training_item_is_that_of_the_released_program(run, scene, left_out):
    settings = CASE.manifest["runs"][run]
    changes = published_changes(run.partition(".")[0], settings["num_points"], settings["random_cuboid_min_points"])
    generator = np.random.RandomState(settings["numpy_seed"])
    made = scene()
    for change in changes.changes:
        if not isinstance(change, left_out):
            made = change(made, generator)
    assert generator.random_sample() == settings["next_random"]
    stored = {key.removeprefix(f"{run}."): tensor.numpy() for key, tensor in CASE.expected.items() if run + "." in key}
    np.testing.assert_allclose(made.points[::8], stored["point_clouds"], atol=2e-5)
    count = int(stored["gt_box_present"].sum())
    assert len(made.boxes) == count > 0
    np.testing.assert_allclose(made.boxes[:, :3], stored["gt_box_centers"][:count], atol=2e-5)
    np.testing.assert_allclose(made.boxes[:, 3:6], stored["gt_box_sizes"][:count], atol=2e-5)
    np.testing.assert_allclose(np.sin(made.boxes[:, 6] + stored["gt_box_angles"][:count]), 0, atol=2e-5)
    np.testing.assert_allclose(np.cos(made.boxes[:, 6] + stored["gt_box_angles"][:count]), 1, atol=2e-5)


@pytest.mark.parametrize(
    "change",
    [RandomFlip("x"), RandomFlip("y"), RandomTurn(math.pi), RandomSize(0.5, 2.0)],
    ids=lambda c: type(c).__name__,
)
def test_points_stay_in_their_boxes(change):
    generator = np.random.default_rng(0)
    boxes = np.concatenate(
        [generator.uniform(-2, 2, (4, 3)), generator.uniform(0.5, 2, (4, 3)), generator.uniform(-3, 3, (4, 1))], axis=1
    )
    scene = Scene(generator.uniform(-3, 3, (5000, 4)), boxes, np.arange(4))
    inside = points_in_boxes(torch.from_numpy(scene.points[:, :3]), torch.from_numpy(scene.boxes))
    assert inside.sum() > 20
    changed = 0
    for seed in range(6):
        made = change(scene, np.random.default_rng(seed))
        again = points_in_boxes(torch.from_numpy(made.points[:, :3]), torch.from_numpy(made.boxes))
        assert torch.equal(again, inside)
        assert np.array_equal(made.points[:, 3], scene.points[:, 3])
        changed += not np.allclose(made.points, scene.points)
    assert changed >= 2


def test_boxes_along_the_axes_grow_when_a_scene_turns():
    scene = Scene(np.zeros((1, 3)), np.array([[1.0, 0, 0, 4, 2, 1, 0]]), np.zeros(1, np.int64))
    made = RandomTurn(math.pi / 36, along_axes=True)(scene, np.random.default_rng(1))
    assert made.boxes[0, 6] == 0 and made.boxes[0, 3] <= 4.3 and made.boxes[0, 4] > 2


def test_a_part_of_a_scene_keeps_the_boxes_in_it():
    generator = np.random.default_rng(0)
    points = generator.uniform(-5, 5, (4000, 3))
    boxes = np.array([[-4.0, -4, 0, 1, 1, 1, 0], [4, 4, 0, 1, 1, 1, 0]])
    scene = Scene(points, boxes, np.array([3, 5]))
    counts = set()
    for seed in range(12):
        made = RandomCuboid(min_points=500)(scene, np.random.default_rng(seed))
        assert 500 <= len(made.points) <= 4000 and len(made.boxes) == len(made.labels)
        counts.add(tuple(made.labels))
    assert (3, 5) not in counts or len(counts) > 1
    assert RandomCuboid(min_points=5000)(scene, np.random.default_rng(0)) is scene
    empty = Scene(points, boxes[:0], np.zeros(0, np.int64))
    assert len(RandomCuboid(min_points=500)(empty, np.random.default_rng(0)).points) < 4000


def test_a_small_scene_has_each_point_before_any_is_repeated():
    scene = Scene(np.arange(30, dtype=np.float32).reshape(10, 3), np.zeros((0, 7)), np.zeros(0, np.int64))
    made = DrawPoints(15)(scene, np.random.default_rng(0))
    assert len(made.points) == 15 and len(np.unique(made.points, axis=0)) == 10


def test_rows_of_a_dataset_become_scenes():
    features = Features({"points": List(List(Value("float32"), length=3)), **box_features(["chair", "table"])})
    rows = {
        "points": [np.zeros((5, 3)).tolist()] * 2,
        "boxes": [[[0, 0, 0, 1, 2, 3, 0.5]], []],
        "box_labels": [[1], []],
    }
    data = Dataset.from_dict(rows, features=features).with_format("numpy")
    scene, empty = Scene.of(data[0]), Scene.of(data[1])
    assert scene.boxes.tolist() == [[0, 0, 0, 1, 2, 3, 0.5]] and scene.labels.tolist() == [1]
    assert empty.boxes.shape == (0, 7) and empty.labels.shape == (0,)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"points": np.zeros((5, 3)), "boxes": np.ones((2, 7)), "box_labels": [0]}, "boxes have shape"),
        ({"points": np.zeros((5, 3)), "boxes": np.zeros((1, 7)), "box_labels": [0]}, "box 0 is .*sizes above 0"),
        ({"points": np.zeros((5, 3)), "boxes": [[0, 0, 0, 1, 1, 1, 90]], "box_labels": [0]}, "heading in radians"),
    ],
)
def test_wrong_rows_are_named(row, match):
    with pytest.raises(ValueError, match=match):
        Scene.of(row)


def test_augmentations_are_built_from_names():
    made = build_changes(["cuboid:min_points=500,aspect=0.5", "flip:axis=y", "turn:limit=0.5,along_axes=True", "size"])
    assert made.changes == [RandomCuboid(500, aspect=0.5), RandomFlip("y"), RandomTurn(0.5, True), RandomSize()]
    for text in ("turns", "turn:angle=angle", "flip:axis=z"):
        with raises(ValueError, naming=text.partition("=")[2] or text.partition(":")[0]):
            build_changes([text])
