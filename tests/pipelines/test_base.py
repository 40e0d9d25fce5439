"""What all pipelines share: one cloud or many, names, arguments, and tensors of clouds of different sizes."""

from collections import UserList
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hf_any3d.tasks.base import Clouds, as_clouds, refuse_non_finite, stem_of
from hf_any3d.tasks.detection.room_layouts import scan_of_messages
from hf_any3d.tasks.zero_shot_classification.pipeline import as_labels

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
    # In double precision, in which coordinates of maps keep their digits until they are centered.
    assert found.dtype == np.float64 and found.tolist() == ROWS


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


@pytest.mark.parametrize(
    ("given", "labels"),
    [("a, b c ,d", ("a", "b c", "d")), (["a", " b"], ("a", " b")), (("a",), ("a",)), ("a", ("a",))],
)
def test_labels_are_a_list_or_one_text(given, labels):
    assert as_labels(given) == labels


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
    message = {"role": "user", "content": [{"type": "point_cloud", "path": "a.ply"}, {"type": "text", "text": text}]}
    assert scan_of_messages([message]) == ({"path": "a.ply"}, task)
    message["content"].pop()
    assert scan_of_messages([message]) == ({"path": "a.ply"}, None)
    with pytest.raises(ValueError, match="2 messages with 2 scans; expected one message with one scan"):
        scan_of_messages([message, message])
