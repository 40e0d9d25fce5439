"""Interpolation from the three nearest points."""

import pytest
import torch

from hf_any3d.modeling.point_ops import three_nearest_interpolate


def test_weights_are_inverse_squared_distances():
    points = torch.tensor([[[0.0, 0, 0], [3, 0, 0], [0, 2, 0], [9, 9, 9]]])
    features = torch.eye(4)[None]
    result = three_nearest_interpolate(torch.tensor([[[1.0, 0, 0]]]), points, features)
    weight = torch.tensor([1, 1 / 4, 1 / 5])
    torch.testing.assert_close(result[0, 0], torch.cat([weight / weight.sum(), torch.zeros(1)]))


@pytest.mark.parametrize("count", [1, 2])
def test_all_points_are_used_if_there_are_fewer_than_three(count):
    points, query = torch.randn(2, count, 3), torch.randn(2, 5, 3)
    result = three_nearest_interpolate(query, points, torch.ones(2, count, 4))
    torch.testing.assert_close(result, torch.ones(2, 5, 4))


def test_an_empty_batch_has_no_features():
    result = three_nearest_interpolate(torch.rand(0, 4, 3), torch.rand(0, 5, 3), torch.rand(0, 5, 2))
    assert result.shape == (0, 4, 2)
