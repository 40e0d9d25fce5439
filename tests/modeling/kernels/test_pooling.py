"""Reductions of rows, also in the form of exported programs, their gradients, and statistics of norms."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.kernels.pooling import (
    PooledGradient,
    count_index,
    is_plain_training,
    pool_statistics,
    segment_maximum,
    update_running_statistics,
)


@pytest.mark.parametrize("exporting", [False, True])
def test_the_largest_row_of_each_index_and_zero_where_there_is_none(exporting, monkeypatch):
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", exporting)
    rows = torch.tensor([[-3.0, 1.0], [2.0, -5.0], [-1.0, -2.0], [-4.0, -1.0]])
    found = segment_maximum(rows, torch.tensor([2, 0, 2, 2]), 4)
    assert found.tolist() == [[2.0, -5.0], [0.0, 0.0], [-1.0, 1.0], [0.0, 0.0]]


K, CENTERS, WIDTH, HIDDEN = 4, 5, 3, 6
PARTS = [slice(0, 2), slice(2, 4), slice(4, 5)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def sparse() -> tuple[PooledGradient, torch.Tensor]:
    """The gradient of a maximum, and all of its rows."""
    winners = torch.randint(K, (CENTERS, WIDTH), generator=torch.Generator().manual_seed(3))
    values = randn(CENTERS, WIDTH)
    dense = torch.zeros(CENTERS, K, WIDTH, dtype=torch.float64).scatter_(1, winners[:, None], values[:, None])
    return PooledGradient(values, winners, K, PARTS), dense.flatten(0, 1)


def rows_of(part: slice) -> slice:
    return slice(part.start * K, part.stop * K)


def test_products_with_a_sparse_gradient_are_those_with_all_of_its_rows(sparse):
    gradient, dense = sparse
    torch.testing.assert_close(gradient.total(), dense.sum(dim=0))
    weight, hidden = randn(WIDTH, HIDDEN, seed=1), randn(CENTERS * K, HIDDEN, seed=2)
    parts = [hidden[rows_of(part)] for part in PARTS]
    torch.testing.assert_close(gradient.product(parts), dense.T @ hidden)
    torch.testing.assert_close(gradient.product(iter(parts)), dense.T @ hidden)
    for number, part in enumerate(PARTS):
        own = dense[rows_of(part)]
        torch.testing.assert_close(gradient.times(weight, number), own @ weight)
        torch.testing.assert_close(gradient.transposed_times(parts[number], number), own.T @ parts[number])
        out = randn(len(own), WIDTH, seed=9)
        expected = out + own
        assert gradient.add_to(out, number) is out
        torch.testing.assert_close(out, expected)


def test_numbers_are_counted():
    assert count_index(torch.tensor([3, 0, 3, 3]), 5).tolist() == [1, 0, 0, 3, 0]
    assert count_index(torch.tensor([], dtype=torch.long), 2).tolist() == [0, 0]


def test_statistics_of_parts_are_those_of_all_rows():
    rows = randn(12, WIDTH).float() + 1000
    parts = rows.split([7, 3, 2])
    statistics = [(part.double().mean(dim=0), part.double().var(dim=0, correction=0)) for part in parts]
    mean, variance = pool_statistics(statistics, [7 / 12, 3 / 12, 2 / 12], torch.float64)
    assert mean.dtype == variance.dtype == torch.float64
    torch.testing.assert_close(mean, rows.double().mean(dim=0))
    torch.testing.assert_close(variance, rows.double().var(dim=0, correction=0))
    assert pool_statistics(statistics, [7 / 12, 3 / 12, 2 / 12], torch.float32)[0].dtype == torch.float32


@pytest.mark.parametrize("bias", [None, torch.tensor([1.0, -2.0, 4.0])])
@pytest.mark.parametrize("rows", [2, 9])
def test_running_statistics_move_as_those_of_a_norm(bias, rows):
    ours, theirs = (nn.BatchNorm1d(WIDTH, momentum=0.3) for _ in range(2))
    values = randn(rows, WIDTH).float() * 2 + 1
    theirs(values if bias is None else values + bias)
    update_running_statistics(ours, bias, values.mean(dim=0), values.var(dim=0, correction=0), rows)
    for own, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(own, other)
    assert ours.num_batches_tracked == 1


def test_a_single_row_has_no_variance():
    norm = nn.BatchNorm1d(WIDTH)
    message = "1 row in training; expected at least 2 points in the neighborhoods of a batch"
    with pytest.raises(ValueError, match=message):
        update_running_statistics(norm, None, torch.ones(WIDTH), torch.zeros(WIDTH), 1)
    assert norm.num_batches_tracked == 0 and norm.running_mean.tolist() == [0, 0, 0]


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
