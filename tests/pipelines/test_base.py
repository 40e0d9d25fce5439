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
from hf_any3d.modeling.spatiallm import Layout, Wall
from hf_any3d.pipelines import (
    DEFAULT_MODELS,
    base,
    default_model,
    point_cloud_segmentation,
    point_cloud_text_to_text,
    room_layouts,
)
from hf_any3d.pipelines.base import (
    Clouds,
    PointCloudPipeline,
    as_clouds,
    check_formats,
    check_top_k,
    join_clouds,
    refuse_non_finite,
    refuse_unknown,
    stem_of,
    without_none,
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


def test_clouds_without_a_file_are_numbered():
    pipe = SimpleNamespace(_unnamed=0)
    names = [PointCloudPipeline.name_of(pipe, stem) for stem in (None, "chair", None)]
    assert names == ["cloud-0", "chair", "cloud-1"]


def test_tensors_of_clouds_are_filled_up_to_the_longest():
    short, long = torch.ones(1, 2, 3), 2 * torch.ones(2, 4, 3)
    joined = join_clouds([short, long], -1)
    assert (
        joined.shape == (3, 4, 3)
        and (joined[0, 2:] == -1).all()
        and (joined[0, :2] == 1).all()
        and (joined[1:] == 2).all()
    )
    assert join_clouds([short, long])[0, 3].tolist() == [0, 0, 0]
    assert join_clouds([torch.tensor([1]), torch.tensor([2, 3])]).tolist() == [1, 2, 3]


@pytest.mark.parametrize("top_k", [None, 1, 7])
def test_a_number_of_answers_is_positive(top_k):
    check_top_k(top_k)
    for wrong in (0, -1, True, 1.0, "1"):
        with pytest.raises(ValueError, match=f"top_k={wrong!r}; expected at least 1, or None for all"):
            check_top_k(wrong)


def test_unknown_arguments_are_named_beside_the_known_ones():
    refuse_unknown({}, "votes")
    with raises(TypeError, naming="batch_size"):
        refuse_unknown({"a": None, "b": 1}, "votes")
    assert without_none(a=0, b=None, c=False) == {"a": 0, "c": False}


def test_formats_may_be_one_or_several():
    known = ("ply", "html")
    assert check_formats(None, known) is None and check_formats("ply", known) == ["ply"]
    assert check_formats(("html", "ply"), known) == ("html", "ply")
    with raises(ValueError, naming="'obj'; expected any of ply"):
        check_formats(["ply", "obj"], known)


@pytest.mark.parametrize(("name", "cloud"), [(None, "a cloud;"), ("chair", "the cloud of 'chair';")])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_no_numbers_are_refused_with_the_cloud(name, cloud, value):
    refuse_non_finite(torch.zeros(3), name)
    with pytest.raises(ValueError, match=f"NaN or infinite scores for {cloud} its weights or statistics are damaged"):
        refuse_non_finite(torch.tensor([0, value]), name)


@pytest.mark.parametrize(
    ("progress", "count", "shown"), [(None, 99, False), (None, 100, True), (True, 1, True), (False, 500, False)]
)
def test_a_bar_is_shown_for_many_clouds_or_on_request(progress, count, shown, monkeypatch):
    seen = []
    monkeypatch.setattr(base, "tqdm", lambda results, **settings: seen.append(settings) or results)
    monkeypatch.setattr(base.Pipeline, "__call__", lambda pipe, clouds, **more: iter(range(len(clouds))))
    found = Plain.__call__(Plain.__new__(Plain), ["a.ply"] * count, progress=progress)
    assert found == list(range(count)) and seen == [{"total": count, "unit": "cloud", "disable": not shown}]


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


def test_the_package_has_a_model_for_classification_alone():
    assert default_model() == str(DEFAULT_MODELS["point-cloud-classification"]) and Path(default_model()).is_dir()
    with raises(ValueError, naming="'x' comes with hf_any3d, only"):
        default_model("x")


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
        (np.full((2, 4), np.nan), "NaN or infinite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            as_features(wrong, ["a", "b"])


def test_logits_of_blocks_are_averaged_where_they_overlap(monkeypatch):
    monkeypatch.setattr(point_cloud_segmentation, "_PIECE", 2)
    merged = point_cloud_segmentation._Merge(4)
    merged.add(np.array([[0, 1], [1, 2]]), np.array([[[4.0, 0], [0, 0]], [[2, 0], [0, 6]]]))
    merged.add(np.array([[3, 3]]), np.array([[[0.0, 1], [0, 3]]]))  # a block that repeats a point
    assert merged.count.tolist() == [1, 2, 1, 2] and merged.sums.tolist() == [[4, 0], [2, 0], [0, 6], [0, 4]]
    labels, scores = merged.labels_and_scores()
    expected = torch.tensor([[4.0, 0], [1, 0], [0, 6], [0, 2]]).softmax(dim=1).max(dim=1).values
    assert labels.tolist() == [0, 0, 1, 1] and (labels.dtype, scores.dtype) == (np.int64, np.float32)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_part_of_a_cloud_keeps_what_belongs_to_its_points():
    fields = {"colors": np.eye(3), "normals": np.eye(3)[::-1], "intensity": np.arange(3.0), "ring": np.arange(3.0)}
    part = point_cloud_segmentation.part_of(PointCloudData(np.eye(3), **fields), np.array([2, 0, 2]))
    for name, values in {"points": np.eye(3), **fields}.items():
        np.testing.assert_array_equal(getattr(part, name), values[[2, 0, 2]], err_msg=name)
    assert point_cloud_segmentation.part_of(PointCloudData(np.eye(3)), np.array([0])).colors is None


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
    ("content", "answer", "last"),
    [
        ("x", " yes ", {"role": "assistant", "content": "yes"}),
        (None, " yes ", {"role": "assistant", "content": "It is yes"}),
    ],
)
def test_an_answer_is_a_message_or_the_end_of_one(content, answer, last):
    messages = [{"role": "user", "content": "x"}]
    if content is None:
        messages.append({"role": "assistant", "content": "It is"})
    before = [dict(one) for one in messages]
    found = point_cloud_text_to_text._add_answer(messages, answer, content is None)
    assert found == [before[0], last] and messages == before
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "It"}]}]
    assert point_cloud_text_to_text._add_answer(parts, "s ", True)[0]["content"] == "Its"


def test_lines_come_as_soon_as_they_are_whole():
    assert list(room_layouts._lines(["a", "b\nc", "\n\nd", ""])) == ["ab", "c", "", "d"]
    assert list(room_layouts._lines([])) == [""] and list(room_layouts._lines(["a\n"])) == ["a", ""]
    assert room_layouts.last_line(Layout((Wall(0, *range(8)),))) == Layout((Wall(0, *range(8)),)).write()


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
