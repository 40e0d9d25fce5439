"""Measures of reconstructed clouds, category by category."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_any3d.evaluation.reconstruction import CompareWithClouds, ComputeReconstructionMetrics, category_means


def test_clouds_are_measured_separately():
    points = torch.zeros(2, 1, 3)
    points[:, 0, 0] = 1.0
    rebuilt = points + torch.tensor([[[0.0, 0.005, 0.0]], [[0.0, 0.2, 0.0]]])
    measured = CompareWithClouds(threshold=0.01)(rebuilt, points)
    torch.testing.assert_close(measured, torch.tensor([[0.005, 2 * 0.005**2, 1.0], [0.2, 2 * 0.2**2, 0.0]]))


def test_points_whose_coordinates_sum_to_zero_are_left_out_on_request():
    points = torch.tensor([[[1.0, 0, 0], [0, 0, 0]]])
    rebuilt = torch.tensor([[[1.0, 0, 0]]])
    assert CompareWithClouds()(rebuilt, points)[0, 0] == pytest.approx(0.25)
    assert CompareWithClouds(drop_zero_sums=True)(rebuilt, points)[0, 0] == 0


def test_categories_weigh_the_same_however_many_clouds_they_have():
    measured = np.array([[1.0, 1, 1], [1, 1, 1], [1, 1, 1], [5, 5, 5]])
    compute = ComputeReconstructionMetrics([0, 0, 0, 7])
    found = compute(EvalPrediction(measured, None))
    assert found == {"chamfer_l1": 3, "chamfer_l2": 3, "f_score": 3}
    with compute.of(None):
        assert compute(EvalPrediction(measured, None))["chamfer_l1"] == 2
    assert compute(EvalPrediction(measured, None)) == found
    assert {number: list(means) for number, means in category_means(measured, np.array([0, 0, 0, 7])).items()} == {
        0: [1, 1, 1],
        7: [5, 5, 5],
    }


def test_other_numbers_of_categories_are_refused():
    with pytest.raises(ValueError, match="categories has 2 entries; expected 3"):
        category_means(np.ones((3, 3)), np.array([0, 1]))
