"""Reductions of rows, also in the form of exported programs, their gradients, and statistics of norms."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.kernels.pooling import is_plain_training, segment_maximum


@pytest.mark.parametrize("exporting", [False, True])
def test_the_largest_row_of_each_index_and_zero_where_there_is_none(exporting, monkeypatch):
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", exporting)
    rows = torch.tensor([[-3.0, 1.0], [2.0, -5.0], [-1.0, -2.0], [-4.0, -1.0]])
    found = segment_maximum(rows, torch.tensor([2, 0, 2, 2]), 4)
    assert found.tolist() == [[2.0, -5.0], [0.0, 0.0], [-1.0, 1.0], [0.0, 0.0]]


K, CENTERS, WIDTH, HIDDEN = 4, 5, 3, 6


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_layers_are_plain_in_training_in_full_precision_only():
    def pair(dtype=torch.float32, **settings):
        return nn.Linear(3, WIDTH).to(dtype), nn.BatchNorm1d(WIDTH, **settings)

    assert is_plain_training(*pair()) and is_plain_training(*pair(torch.float64))
    assert not is_plain_training(*pair(torch.bfloat16))
    assert not is_plain_training(*pair(momentum=None))
    linear, norm = pair()
    assert not is_plain_training(linear, norm.eval())
    for number in (0, 1):
        layers = pair()
        layers[number].register_forward_hook(lambda *args: None)
        assert not is_plain_training(*layers)
