"""Norms of the occupied cells of each view, against torch's batch norm of the list of their rows."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.kernels.cell_norm import (
    by_cloud,
    by_view,
    cell_norm,
    norm_gradients,
    normalize,
    normalize_again,
)

BATCH, VIEWS, ROWS, HIDDEN, EPS = 2, 3, 5, 4, 0.3


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case() -> tuple[torch.Tensor, ...]:
    """Rows, which of them count, gain, shift, how many count, and how many rows of zeros count, too."""
    occupied = (randn(BATCH, VIEWS, ROWS, seed=1) > -0.5).double()
    zeros = torch.tensor([2, 0, 3])
    rows = randn(BATCH, VIEWS, ROWS, HIDDEN) * 2 + 1
    return rows, occupied, randn(VIEWS, HIDDEN, seed=2), randn(VIEWS, HIDDEN, seed=3), zeros


def counts(occupied: torch.Tensor, zeros: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    count = occupied.sum(dim=(0, 2)).unsqueeze(1)
    return count, count + zeros.unsqueeze(1)


def in_lists(rows, occupied, weight, bias, zeros) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalize the list of each view's rows with torch; rows that do not count stay zero."""
    normed, means, variances = torch.zeros_like(rows), [], []
    for view, count in enumerate(zeros.tolist()):
        is_row = occupied[:, view] > 0
        own = torch.cat([rows[:, view][is_row], rows.new_zeros(count, HIDDEN)])
        out = nn.functional.batch_norm(own, None, None, weight[view], bias[view], training=True, eps=EPS)
        place = torch.zeros(BATCH, VIEWS, ROWS, dtype=torch.bool)
        place[:, view] = is_row
        normed = normed.masked_scatter(place.unsqueeze(-1), out[: int(is_row.sum())])
        means.append(own.mean(dim=0))
        variances.append(own.var(dim=0, correction=0))
    return normed, torch.stack(means), torch.stack(variances)


@pytest.mark.parametrize("gelu", [False, True])
def test_cells_are_normalized_like_a_list_of_them(gelu):
    rows, occupied, weight, bias, zeros = case()
    leaves = [one.requires_grad_() for one in (rows, weight, bias)]
    found, mean, variance = cell_norm(rows, occupied, weight, bias, *counts(occupied, zeros), EPS, gelu=gelu)
    expected, means, variances = in_lists(rows, occupied, weight, bias, zeros)
    expected = nn.functional.gelu(expected) if gelu else expected
    is_row = occupied.bool()
    torch.testing.assert_close(found[is_row], expected[is_row])
    torch.testing.assert_close((mean, variance), (means.detach(), variances.detach()))
    assert not mean.requires_grad and not variance.requires_grad
    gradient = randn(*rows.shape, seed=5) * occupied.unsqueeze(-1)
    torch.testing.assert_close(
        torch.autograd.grad((found * gradient).sum(), leaves), torch.autograd.grad((expected * gradient).sum(), leaves)
    )


@pytest.mark.parametrize("compiling", [False, True], ids=["CPU", "compilers"])
def test_tables_are_normalized_and_differentiated_like_lists(compiling, monkeypatch):
    rows, occupied, weight, bias, zeros = case()
    leaves = [one.requires_grad_() for one in (rows, weight, bias)]
    expected, means, variances = in_lists(rows, occupied, weight, bias, zeros)
    gradient = randn(*rows.shape, seed=5) * occupied.unsqueeze(-1)
    gradients = torch.autograd.grad((expected * gradient).sum(), leaves)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    rows, weight, bias = (one.detach() for one in leaves)
    count, total = counts(occupied, zeros)
    inside, is_row = by_view(occupied), by_view(occupied).bool()
    normed, mean, variance = normalize(by_view(rows), inside, weight, bias, count, total, EPS)
    torch.testing.assert_close(normed[is_row], by_view(expected.detach())[is_row])
    torch.testing.assert_close((mean, variance), (means.detach(), variances.detach()))
    deviation = (variance + EPS).rsqrt()
    centered, again = normalize_again(by_view(rows), weight, bias, mean, deviation)
    torch.testing.assert_close(again[is_row], normed[is_row])
    torch.testing.assert_close(centered, by_view(rows) - mean.unsqueeze(1))
    found = norm_gradients(by_view(gradient), centered, inside, weight, deviation, total)
    torch.testing.assert_close(by_cloud(found[0], rows), gradients[0])
    torch.testing.assert_close(found[1:], gradients[1:])


def test_views_and_clouds_change_places():
    rows = torch.arange(24).view(2, 3, 4)
    assert by_view(rows).tolist() == [
        [0, 1, 2, 3, 12, 13, 14, 15],
        [4, 5, 6, 7, 16, 17, 18, 19],
        [*range(8, 12), *range(20, 24)],
    ]
    assert torch.equal(by_cloud(by_view(rows), rows), rows)
