"""Sums along the list of who is in which cell, against products with the matrix that says the same."""

import pytest
import torch

from hf_any3d.modeling.any2point.cell_sums import pair_products, pool_mean, spread
from hf_any3d.modeling.any2point.geometry import membership

CLOUDS, VIEWS, TOKENS, CELLS, HIDDEN = 2, 3, 10, 7, 5


@pytest.fixture
def places():
    """Cells of three views and voxels; some are empty."""
    generator = torch.Generator().manual_seed(7)
    cells = torch.randint(CELLS, (CLOUDS, VIEWS, TOKENS), generator=generator)
    voxels = torch.randint(6, (CLOUDS, 1, TOKENS), generator=generator)
    return membership(cells, CELLS), membership(voxels, TOKENS)


def made(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def cases(members, voxels):
    """Functions of tensors alone, with tensors for them."""
    tokens, weights = made(CLOUDS, TOKENS, HIDDEN), made(CLOUDS, VIEWS, TOKENS)
    view_rows, voxel_rows = made(CLOUDS, VIEWS, CELLS, HIDDEN), made(CLOUDS, TOKENS, HIDDEN)
    return {
        "pool": (lambda tokens: pool_mean(tokens, members), (tokens,)),
        "spread": (lambda rows, weights: spread(rows, weights, members, 1), (view_rows, weights)),
        "products": (lambda rows, others: pair_products(rows, others, members, voxels), (view_rows, voxel_rows)),
    }


@pytest.mark.parametrize("case", ["pool", "spread", "products"])
def test_list_and_matrix_agree(case, places, monkeypatch):
    assert not places[0].occupied.all()
    function, tensors = cases(*places)[case]

    def step():
        found = function(*tensors)
        weight = torch.arange(found.numel(), dtype=found.dtype).sin().view_as(found)
        return found, torch.autograd.grad((found * weight).sum(), tensors)

    found = step()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(found, step())


@pytest.mark.parametrize("case", ["pool", "spread", "products"])
def test_gradients_agree_with_differences(case, places):
    assert torch.autograd.gradcheck(*cases(*places)[case])


def test_each_token_gets_the_row_of_its_cell(places):
    members, _ = places
    rows, weights = made(CLOUDS, VIEWS, CELLS, HIDDEN), made(CLOUDS, VIEWS, TOKENS)
    found = spread(rows, weights, members, 2)
    assert found.shape == (CLOUDS, 2 + TOKENS, HIDDEN) and not found[:, :2].any()
    for token in range(TOKENS):
        expected = sum(weights[1, view, token] * rows[1, view, members.row[1, view, token]] for view in range(VIEWS))
        torch.testing.assert_close(found[1, 2 + token], expected)
