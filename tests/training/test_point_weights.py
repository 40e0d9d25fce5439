"""Class weights in the loss over points."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import TokenClassifierOutput

from hf_any3d.training.segmentation_rows import WeightedPointLoss, class_weights

LABELS = [np.array([0, 0, 0, 1, -100]), np.array([0, 0, 0, 1])]  # six of class 0, two of class 1, none of class 2


@pytest.mark.parametrize(("power", "ratio"), [(0.0, 1.0), (0.5, 3**0.5), (1.0, 3.0)])
def test_weights_are_powers_of_inverse_frequencies(power, ratio):
    weights = class_weights(LABELS, 3, power)
    assert weights[1] / weights[0] == pytest.approx(ratio)
    assert weights[2] == 0
    assert 0.75 * weights[0] + 0.25 * weights[1] == pytest.approx(1.0), "a point weighs 1 on average"


def test_labels_with_only_ignored_points_are_refused():
    with pytest.raises(ValueError, match="labels has only ignored points"):
        class_weights([np.array([-100])], 3, 0.5)


def batch() -> tuple[TokenClassifierOutput, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([[0, 1, -100, 0], [1, -100, 0, 0]])
    return TokenClassifierOutput(logits=torch.randn(2, 4, 3, generator=generator)), labels


def test_equal_weights_give_the_plain_mean_over_points():
    outputs, labels = batch()
    expected = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(WeightedPointLoss(torch.ones(3))(outputs, labels), expected)


def test_batches_of_a_step_sum_to_the_mean_over_all_points():
    outputs, labels = batch()
    loss = WeightedPointLoss(class_weights(LABELS, 3, 0.5))
    pieces = [
        loss(TokenClassifierOutput(logits=outputs.logits[i : i + 1]), labels[i : i + 1], num_items_in_batch=6)
        for i in range(2)
    ]
    torch.testing.assert_close(sum(pieces), loss(outputs, labels))
