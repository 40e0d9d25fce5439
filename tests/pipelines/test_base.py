"""What all pipelines share: one cloud or many, names, arguments, and tensors of clouds of different sizes."""

from collections import UserList
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hf_any3d.data.files import PointCloudData
from hf_any3d.pipelines import (
    base,
    point_cloud_segmentation,
    room_layouts,
)
from hf_any3d.pipelines.base import (
    Clouds,
    PointCloudPipeline,
    as_clouds,
    refuse_non_finite,
    stem_of,
)
from hf_any3d.pipelines.zero_shot_point_cloud_classification import as_features, as_labels
from tests.errors import raises


class Plain(PointCloudPipeline):
    """A pipeline without a task of its own."""

    _sanitize_parameters = _forward = postprocess = None


scene_features_module = import_module("hf_any3d.pipelines.scene_features")  # its name is that of the function
ROWS = [[0.0, 1.0, 2.0], [3, 4, 5]]


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (np.zeros((2, 5, 3)), 2),
        (torch.zeros(2, 5, 3), 2),
        (["a.ply", "b.ply"], 2),
        (("a.ply",), 1),
        ([], 0),
        ([[]], 1),
        ([ROWS, ROWS, ROWS], 3),
        (UserList(["a.ply", "b.ply"]), 2),
    ],
)
def test_lists_and_arrays_of_clouds_are_many(given, count):
    found = as_clouds(given)
    assert isinstance(found, Clouds) and len(found) == count
    assert all(
        found[number] is given[number] or np.array_equal(found[number], given[number]) for number in range(count)
    )


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((5, 3)),
        torch.zeros(5, 3),
        "a.ply",
        Path("a.ply"),
        b"ply",
        {"points": ROWS},
        iter("ab"),
        object(),
        Dataset(),
    ],
)
def test_others_are_one_cloud_or_are_read_as_they_come(given):
    assert as_clouds(given) is given


@pytest.mark.parametrize("given", [ROWS, tuple(map(tuple, ROWS))])
def test_rows_of_numbers_are_one_cloud(given):
    found = as_clouds(given)
    assert found.dtype == np.float32 and found.tolist() == ROWS


@pytest.mark.parametrize(
    ("cloud", "stem"),
    [
        ("in/a.b.ply", "a.b"),
        (Path("a.ply"), "a"),
        ({"path": "in/a.ply"}, "a"),
        ({"path": None}, None),
        (ROWS, None),
        (b"a", None),
    ],
)
def test_clouds_have_the_names_of_their_files(cloud, stem):
    assert stem_of(cloud) == stem


@pytest.mark.parametrize(("name", "cloud"), [(None, "a cloud;"), ("chair", "the cloud of 'chair';")])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_no_numbers_are_refused_with_the_cloud(name, cloud, value):
    refuse_non_finite(torch.zeros(3), name)
    with pytest.raises(ValueError, match=f"NaN or infinite scores for {cloud} its weights or statistics are damaged"):
        refuse_non_finite(torch.tensor([0, value]), name)


def test_pipelines_of_a_model_type_may_be_special(monkeypatch):
    monkeypatch.setattr(base, "_SPECIAL", {})
    special = type("Special", (Plain,), {})
    base.specialize(Plain, "boxy", special)
    model = SimpleNamespace(config=SimpleNamespace(model_type="boxy"))
    assert type(Plain.__new__(Plain, model=model)) is special
    assert type(Plain.__new__(Plain, model)) is special
    other = SimpleNamespace(config=SimpleNamespace(model_type="other"))
    for given in ({"model": other}, {"model": None}, {}):
        assert type(Plain.__new__(Plain, **given)) is Plain


@pytest.mark.parametrize(
    ("given", "labels"),
    [("a, b c ,d", ("a", "b c", "d")), (["a", " b"], ("a", " b")), (("a",), ("a",)), ("a", ("a",))],
)
def test_labels_are_a_list_or_one_text(given, labels):
    assert as_labels(given) == labels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "is empty"),
        ("", "has ''; expected words"),
        ("a,,b", "has ''"),
        (["a", 3], "has 3"),
        (["a", " "], "has ' '"),
        ("a,b,a", "has 'a' twice"),
    ],
)
def test_labels_are_words_and_each_is_given_once(given, message):
    with pytest.raises(ValueError, match=f"candidate_labels {message}"):
        as_labels(given)


def test_features_of_labels_are_a_row_of_floats_for_each():
    found = as_features(np.ones((2, 4), np.float16), ["a", "b"])
    assert found.dtype == torch.float32 and found.shape == (2, 4)
    for wrong, message in (
        (np.ones((3, 4)), r"text_embeds is torch.float64 \(3, 4\); expected floats \(2, text_width\)"),
        (np.ones(2), r"\(2,\); expected floats"),
        (np.ones((2, 4), int), r"torch.int64 \(2, 4\); expected floats"),
    ):
        with pytest.raises(ValueError, match=message):
            as_features(wrong, ["a", "b"])


@pytest.mark.parametrize(
    ("names", "count", "cloud", "given", "number"),
    [
        (["ship", "car"], 2, "a.ply", "car", 1),
        (["ship", "car"], 2, "a.ply", 0, 0),
        (["ship", "car"], 2, {"category": "car", "label": 0}, None, 1),
        (["ship", "car"], 2, {"label": 1}, None, 1),
        (["ship", "car"], 2, {"label": 1}, "ship", 0),
        (None, 3, "a.ply", "2", 2),
        (["ship"], 1, "a.ply", None, 0),
        (None, 0, "a.ply", None, None),
        (None, 0, "a.ply", "ship", "category='ship'; expected none, as this model has no categories"),
        (["ship", "car"], 2, "a.ply", None, "category is missing, .* one of ship, car"),
        (["ship", "car"], 2, "a.ply", "bus", "category='bus'; expected one of ship, car, or its number"),
        (["ship", "car"], 2, "a.ply", 2, "category=2; expected one of ship, car"),
        (["ship", "car"], 2, "a.ply", -1, "category=-1; expected"),
    ],
)
def test_the_category_of_an_object_is_given_or_in_its_row(names, count, cloud, given, number):
    config = SimpleNamespace(num_categories=count, category_names=names)
    pipe = SimpleNamespace(model=SimpleNamespace(config=config))
    find = point_cloud_segmentation.PointCloudSegmentationPipeline._category_number
    if not isinstance(number, str):
        assert find(pipe, cloud, given) == number
        return
    with pytest.raises(ValueError, match=number):
        find(pipe, cloud, given)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("all", "all"),
        (" Detect boxes. ", "objects"),
        ("Detect boxes", "objects"),
        ("Detect walls, doors, windows.", "layout"),
    ],
)
def test_instructions_of_layouts_are_those_of_the_training(text, task):
    assert room_layouts._task_of(text) == task
    message = {"role": "user", "content": [{"type": "point_cloud", "path": "a.ply"}, {"type": "text", "text": text}]}
    assert room_layouts.scan_of_messages([message]) == ({"path": "a.ply"}, task)
    message["content"].pop()
    assert room_layouts.scan_of_messages([message]) == ({"path": "a.ply"}, None)
    with pytest.raises(ValueError, match="2 messages with 2 scans; expected one message with one scan"):
        room_layouts.scan_of_messages([message, message])
    with raises(ValueError, naming="text='Hi': the model writes layouts"):
        room_layouts._task_of("Hi")


@pytest.mark.parametrize("up_axis", ["y", "z"])
def test_columns_of_a_scene_stand_on_a_grid_with_a_margin_around_each(up_axis):
    across = [0, 2] if up_axis == "y" else [0, 1]
    points = np.random.default_rng(0).uniform(size=(300, 3)) * 4 + 10
    cloud, processor = PointCloudData(points), SimpleNamespace(up_axis=up_axis)
    ((whole, own),) = scene_features_module._columns(cloud, processor, None, 1.0)
    assert whole.tolist() == list(range(300)) and own.all()
    places = cloud.points[:, across] - cloud.points[:, across].min(axis=0)
    cells = np.floor(places / 2).astype(int)
    for margin in (0.0, 0.5):
        seen_in = list(scene_features_module._columns(cloud, processor, 2.0, margin))
        assert len(seen_in) == len(np.unique(cells, axis=0))
        owned = np.concatenate([seen[own] for seen, own in seen_in])
        assert sorted(owned) == list(range(300)), "each point is in one column"
        for seen, own in seen_in:
            (cell,) = np.unique(cells[seen[own]], axis=0)
            inside = (np.abs(places - (cell * 2 + 1)) <= 1 + margin + 1e-5).all(axis=1)
            expected = inside if margin else (cells == cell).all(axis=1)
            assert seen.tolist() == np.flatnonzero(expected).tolist()
