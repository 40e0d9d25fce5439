"""Measures of reconstructed clouds, category by category."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_any3d.evaluation.reconstruction import CompareWithClouds, ComputeReconstructionMetrics, category_means

CODES = torch.zeros(2, 3, dtype=torch.long)


def test_clouds_are_measured_separately():
    points = torch.zeros(2, 1, 3)
    points[:, 0, 0] = 1.0
    rebuilt = points + torch.tensor([[[0.0, 0.005, 0.0]], [[0.0, 0.2, 0.0]]])
    measured, codes = CompareWithClouds(threshold=0.01)((rebuilt, CODES), points)
    assert codes is CODES
    torch.testing.assert_close(measured, torch.tensor([[0.005, 2 * 0.005**2, 1.0], [0.2, 2 * 0.2**2, 0.0]]))


def test_points_whose_coordinates_sum_to_zero_are_left_out_on_request():
    points = torch.tensor([[[1.0, 0, 0], [0, 0, 0]]])
    rebuilt = torch.tensor([[[1.0, 0, 0]]])
    assert CompareWithClouds()((rebuilt, CODES), points)[0][0, 0] == pytest.approx(0.25)
    assert CompareWithClouds(drop_zero_sums=True)((rebuilt, CODES), points)[0][0, 0] == 0


def test_categories_weigh_the_same_however_many_clouds_they_have():
    measured = np.array([[1.0, 1, 1], [1, 1, 1], [1, 1, 1], [5, 5, 5]])
    compute = ComputeReconstructionMetrics([0, 0, 0, 7])
    predictions = (measured, np.zeros((4, 5), dtype=int))
    found = compute(EvalPrediction(predictions, None))
    assert found == {"chamfer_l1": 3, "chamfer_l2": 3, "f_score": 3, "codes_used": 1, "code_perplexity": 1}
    with compute.of(None):
        assert compute(EvalPrediction(predictions, None))["chamfer_l1"] == 2
    assert compute(EvalPrediction(predictions, None)) == found
    assert {number: list(means) for number, means in category_means(measured, np.array([0, 0, 0, 7])).items()} == {
        0: [1, 1, 1],
        7: [5, 5, 5],
    }


@pytest.mark.parametrize(
    ("codes", "perplexity"),
    # Entropy of frequencies 3/4 and 1/4: 2 log 2 - 3/4 log 3.
    [([[7, 3], [3, 7]], 2), ([[0, 0, 9, 0]], 4 / 3**0.75)],
)
def test_perplexity_counts_evenly_used_codes(codes, perplexity):
    found = ComputeReconstructionMetrics()(EvalPrediction((np.ones((len(codes), 3)), np.array(codes)), None))
    assert (found["codes_used"], found["code_perplexity"]) == (2, pytest.approx(perplexity))
