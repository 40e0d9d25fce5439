"""Selecting rows of a cloud by index."""

import pytest
import torch

from hf_any3d.modeling.point_ops import gather_points, group
from tests.errors import raises


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_rows_come_from_the_same_cloud(dtype):
    values = torch.randn(3, 10, 4)
    index = torch.randint(0, 10, (3, 6, 5), dtype=dtype)
    grouped, picked = group(values, index), gather_points(values, index[:, :, 0])
    assert grouped.shape == (3, 6, 5, 4) and picked.shape == (3, 6, 4)
    for cloud in range(3):
        assert torch.equal(grouped[cloud], values[cloud][index[cloud].long()])
        assert torch.equal(picked[cloud], values[cloud][index[cloud, :, 0].long()])


def test_an_empty_index_gives_no_rows():
    assert group(torch.zeros(2, 5, 3), torch.zeros(2, 0, 4, dtype=torch.long)).shape == (2, 0, 4, 3)


def test_an_index_past_the_cloud_does_not_reach_the_next_one():
    values = torch.zeros(2, 5, 3)
    for index in ([[5], [0]], [[0], [-1]]):
        with raises(IndexError, naming="index: values from"):
            gather_points(values, torch.tensor(index))
