"""Sums along the list of who is in which cell, against products with the matrix that says the same."""

import pytest
import torch

from hf_any3d.modeling.any2point.cell_sums import as_table, from_table, pool_mean, pool_voxels, spread, widened_mean
from hf_any3d.modeling.any2point.geometry import membership
from hf_any3d.modeling.any2point.view_ensemble import view_ensemble, view_voxel_cosine

CLOUDS, VIEWS, TOKENS, CELLS, HIDDEN, WIDTH = 2, 3, 10, 7, 5, 4


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
    tokens, weight = made(CLOUDS, TOKENS, HIDDEN), made(VIEWS, WIDTH + 1, HIDDEN)
    narrow = made(CLOUDS, VIEWS, CELLS, WIDTH)
    view_rows, voxel_rows = made(CLOUDS, VIEWS, CELLS, HIDDEN), made(CLOUDS, TOKENS, HIDDEN)
    return {
        "mean": (lambda tokens: pool_mean(tokens, members), (tokens,)),
        "widened mean": (lambda *tensors: widened_mean(*tensors, members), (tokens, narrow, weight)),
        "voxels": (lambda tokens: pool_voxels(tokens, voxels), (tokens,)),
        "ensemble": (
            lambda rows, others: view_ensemble(rows, others, members, voxels, 0.3, 1),
            (view_rows, voxel_rows),
        ),
    }


CASES = ["mean", "widened mean", "voxels", "ensemble"]


@pytest.mark.parametrize("case", CASES)
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


@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_differences(case, places):
    assert torch.autograd.gradcheck(*cases(*places)[case])


@pytest.mark.parametrize("voxels", [2, 6, 1000], ids=["all crowded", "some crowded", "all alone"])
def test_voxels_give_maximum_plus_mean_of_their_tokens(voxels):
    cell = torch.randint(voxels, (CLOUDS, 1, TOKENS), generator=torch.Generator().manual_seed(1))
    members, tokens = membership(cell, voxels), made(CLOUDS, TOKENS, HIDDEN)
    rows = pool_voxels(tokens, members)
    for cloud in range(CLOUDS):
        for row in members.row[cloud, 0].unique():
            inside = tokens[cloud][members.row[cloud, 0] == row]
            torch.testing.assert_close(rows[cloud, 0, row], inside.amax(dim=0) + inside.mean(dim=0))


def test_crowd_lists_the_tokens_that_are_not_alone(places):
    _, voxels = places
    crowd, row = voxels.crowd, voxels.links.rows.flatten()
    expected = [token for token in range(CLOUDS * TOKENS) if (row == row[token]).sum() > 1]
    assert crowd.tokens.tolist() == expected and 0 < len(expected) < CLOUDS * TOKENS
    assert torch.equal(crowd.rows[crowd.cell], row[crowd.tokens])


def test_rows_that_say_nothing_pass_finite_gradients(places):
    rows = torch.zeros(CLOUDS, VIEWS, CELLS, HIDDEN, requires_grad=True)
    others = torch.zeros(CLOUDS, TOKENS, HIDDEN, requires_grad=True)
    view_ensemble(rows, others, *places, 0.3, 1).sum().backward()
    assert rows.grad.isfinite().all() and not others.grad.any()


def test_table_lays_the_cells_end_to_end_as_links_number_them(places):
    members, _ = places
    rows = made(CLOUDS, VIEWS, CELLS, HIDDEN)
    table = as_table(rows)
    assert torch.equal(from_table(table, members), rows)
    for cloud, token, view in [(0, 3, 2), (1, 9, 0), (1, 0, 1)]:
        found = table[members.links.rows[cloud * TOKENS + token, view]]
        assert torch.equal(found, rows[cloud, view, members.row[cloud, view, token]])


def test_each_token_gets_the_row_of_its_cell(places):
    members, _ = places
    rows, weights = made(CLOUDS, VIEWS, CELLS, HIDDEN), made(CLOUDS, VIEWS, TOKENS)
    found = spread(rows, weights, members, 2)
    assert found.shape == (CLOUDS, 2 + TOKENS, HIDDEN) and not found[:, :2].any()
    for token in range(TOKENS):
        expected = sum(weights[1, view, token] * rows[1, view, members.row[1, view, token]] for view in range(VIEWS))
        torch.testing.assert_close(found[1, 2 + token], expected)


@pytest.mark.parametrize("compiling", [False, True])
def test_cells_that_say_nothing_are_weighed_as_neither_near_nor_far(places, compiling, monkeypatch):
    """A row of zeros has no direction: its cosine is 0, not undefined."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    rows, others = made(CLOUDS, VIEWS, CELLS, HIDDEN), made(CLOUDS, TOKENS, HIDDEN)
    with torch.no_grad():
        rows[:, 0] = 0
        others[0] = 0
    cosine = view_voxel_cosine(rows, others, *places)
    assert cosine[:, 0].eq(0).all() and cosine[0].eq(0).all() and cosine[1, 1:].ne(0).all()
    added = view_ensemble(rows, others, *places, 0.3, 1)
    assert added.isfinite().all() and added[1, 1:].abs().amax() > 0.01
    if not compiling:
        added.square().sum().backward()
        assert rows.grad.isfinite().all() and others.grad.isfinite().all() and rows.grad[1, 1].any()
