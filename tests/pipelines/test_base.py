"""What all pipelines share: one cloud or many, names, arguments, and tensors of clouds of different sizes."""

from collections import UserList
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hf_any3d.tasks.steps import Clouds, as_clouds

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
