"""What all pipelines share: one cloud or many, names, arguments, and tensors of clouds of different sizes."""

from collections import UserList
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hf_any3d.pipelines import DEFAULT_MODELS, base, default_model
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


class Plain(PointCloudPipeline):
    """A pipeline without a task of its own."""

    _sanitize_parameters = _forward = postprocess = None


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
    with pytest.raises(TypeError, match="^unknown arguments: a, b; expected votes, batch_size, num_workers$"):
        refuse_unknown({"a": None, "b": 1}, "votes")
    assert without_none(a=0, b=None, c=False) == {"a": 0, "c": False}


def test_formats_may_be_one_or_several():
    known = ("ply", "html")
    assert check_formats(None, known) is None and check_formats("ply", known) == ["ply"]
    assert check_formats(("html", "ply"), known) == ("html", "ply")
    with pytest.raises(ValueError, match="formats names 'obj'; expected any of ply, html"):
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
    with pytest.raises(ValueError, match="no model for 'x' comes with hf_any3d, only for point-cloud-classification"):
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
