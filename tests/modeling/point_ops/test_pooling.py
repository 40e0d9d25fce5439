"""Pooling over cells against a loop over cells."""

import pytest
import torch

from hf_any3d.modeling.point_ops import scatter_max, scatter_mean
from tests.errors import raises

POOLS = [(scatter_mean, lambda rows: rows.mean(0)), (scatter_max, lambda rows: rows.amax(0))]


@pytest.mark.parametrize(("pool", "plainly"), POOLS)
@pytest.mark.parametrize("num_cells", [1, 6, 200])
def test_pooling_is_that_of_a_loop_over_cells(pool, plainly, num_cells):
    values, cell = torch.randn(3, 50, 4) - 1, torch.randint(0, num_cells, (3, 50))
    expected = torch.zeros(3, num_cells, 4)
    for cloud in range(3):
        for number in cell[cloud].unique():
            expected[cloud, number] = plainly(values[cloud, cell[cloud] == number])
    torch.testing.assert_close(pool(values, cell, num_cells), expected)


def test_equal_maxima_share_the_gradient():
    values = torch.tensor([[[1.0], [1.0], [0.0], [5.0]]], requires_grad=True)
    scatter_max(values, torch.tensor([[0, 0, 0, 1]]), 3).sum().backward()
    assert values.grad.flatten().tolist() == [0.5, 0.5, 0.0, 1.0]


def test_half_precision_means_are_summed_in_single_precision():
    values = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    mean = scatter_mean(values, torch.zeros(1, 4096, dtype=torch.long), 1)
    # A bfloat16 sum would stop growing at 256.
    assert mean.dtype == torch.bfloat16 and mean.item() == 1


def test_a_missing_cell_is_an_error():
    cell = torch.tensor([[0, 3], [0, 0]])
    for call in (
        lambda: scatter_mean(torch.zeros(2, 2, 1), cell, 3),
        lambda: scatter_max(torch.zeros(2, 2, 1), cell, 3),
    ):
        with raises(IndexError, naming="cell: values from 0 to"):
            call()
