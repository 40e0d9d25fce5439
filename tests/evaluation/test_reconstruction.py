"""Measures of reconstructed clouds, category by category."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_any3d.evaluation.reconstruction import (
    CompareWithClouds,
    ComputeReconstructionMetrics,
    category_means,
    evaluate_reconstruction,
)

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


def test_splits_are_measured_by_their_own_categories():
    compute = ComputeReconstructionMetrics([9])
    measured = {"validation": np.array([[1.0, 2, 3], [3, 4, 5], [5, 6, 7]]), "test": np.array([[2.0, 3, 4]])}
    logged, asked = [], []

    def predict(rows, ignore_keys, metric_key_prefix):
        asked.append((rows, ignore_keys))
        predictions = (measured[rows], np.zeros((len(measured[rows]), 2), int))
        found = compute(EvalPrediction(predictions, None)) | {"loss": 0.5, "runtime": 9}
        return SimpleNamespace(
            predictions=predictions, metrics={f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        )

    trainer = SimpleNamespace(compute_metrics=compute, predict=predict, log_metrics=lambda *one: logged.append(one[0]))
    splits = {name: name for name in measured}
    categories = {"validation": [0, 0, 1], "test": None}
    metrics, by_class = evaluate_reconstruction(trainer, splits, categories, ["cup", "lamp"], ["points"])
    assert metrics["validation"] == {
        "chamfer_l1": 3.5, "chamfer_l2": 4.5, "f_score": 5.5, "codes_used": 1, "code_perplexity": 1, "loss": 0.5
    }  # fmt: skip
    assert metrics["test"]["chamfer_l1"] == 2 and logged == ["validation", "test"]
    assert by_class == {"validation": {"cup": 2.0, "lamp": 5.0}}
    assert asked == [("validation", ["points"]), ("test", ["points"])] and compute.categories.tolist() == [9]
