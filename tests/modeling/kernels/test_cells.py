"""Sums over the tokens of cells along index lists, against products with the matrix of memberships."""

import pytest
import torch

from hf_any3d.modeling import kernels
from hf_any3d.modeling.kernels.cells import as_table, from_table, membership
from hf_any3d.modeling.kernels.view_ensemble import view_voxel_cosine

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


def test_rows_of_zeros_get_finite_gradients(places):
    rows = torch.zeros(CLOUDS, VIEWS, CELLS, HIDDEN, requires_grad=True)
    others = torch.zeros(CLOUDS, TOKENS, HIDDEN, requires_grad=True)
    kernels.view_ensemble(rows, others, *places, 0.3, 1).sum().backward()
    assert rows.grad.isfinite().all() and not others.grad.any()


def test_table_has_the_rows_of_cells_as_numbered_by_links(places):
    members, _ = places
    rows = made(CLOUDS, VIEWS, CELLS, HIDDEN)
    table = as_table(rows)
    assert torch.equal(from_table(table, members), rows)
    for cloud, token, view in [(0, 3, 2), (1, 9, 0), (1, 0, 1)]:
        found = table[members.links.rows[cloud * TOKENS + token, view]]
        assert torch.equal(found, rows[cloud, view, members.row[cloud, view, token]])


@pytest.mark.parametrize("setting", ["auto", "torch"])
def test_each_token_gets_the_mean_row_of_its_cells_if_all_views_agree(setting, places, use_kernels):
    use_kernels(setting)
    members, voxels = places
    rows, scale = made(CLOUDS, VIEWS, CELLS, HIDDEN), 0.3
    found = kernels.view_ensemble(rows, torch.zeros(CLOUDS, TOKENS, HIDDEN).double(), members, voxels, scale, 2)
    assert found.shape == (CLOUDS, 2 + TOKENS, HIDDEN) and not found[:, :2].any()
    for token in range(TOKENS):
        expected = sum(rows[1, view, members.row[1, view, token]] for view in range(VIEWS))
        torch.testing.assert_close(found[1, 2 + token], expected * scale / VIEWS)


@pytest.mark.parametrize("setting", ["auto", "torch"])
def test_rows_of_zeros_have_a_cosine_of_zero(setting, places, use_kernels):
    """A row of zeros has no direction: its cosine is 0, not undefined."""
    use_kernels(setting)
    rows, others = made(CLOUDS, VIEWS, CELLS, HIDDEN), made(CLOUDS, TOKENS, HIDDEN)
    with torch.no_grad():
        rows[:, 0] = 0
        others[0] = 0
    cosine = view_voxel_cosine(rows, others, *places)
    assert cosine[:, 0].eq(0).all() and cosine[0].eq(0).all() and cosine[1, 1:].ne(0).all()
    added = kernels.view_ensemble(rows, others, *places, 0.3, 1)
    assert added.isfinite().all() and added[1, 1:].abs().amax() > 0.01
    if setting == "auto":
        added.square().sum().backward()
        assert rows.grad.isfinite().all() and others.grad.isfinite().all() and rows.grad[1, 1].any()
