"""Sums over the tokens of cells along index lists, against products with the matrix of memberships."""

import pytest
import torch

from hf_any3d.modeling.kernels.cells import max_in_cells, membership
from hf_any3d.modeling.kernels.guided_aggregation.ensemble import view_ensemble, view_voxel_cosine

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


@pytest.mark.parametrize("compiling", [False, True])
def test_maxima_of_cells_are_those_of_a_loop(compiling, places, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    members, _ = places
    values = made(CLOUDS, VIEWS, TOKENS, HIDDEN)
    found = max_in_cells(values, members)
    expected = torch.zeros(CLOUDS, VIEWS, CELLS, HIDDEN, dtype=torch.float64)
    for cloud in range(CLOUDS):
        for view in range(VIEWS):
            for row in members.row[cloud, view].unique():
                own = values[cloud, view, members.row[cloud, view] == row]
                expected[cloud, view, row] = own.amax(dim=0)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda some: max_in_cells(some, members), values)


def test_rows_of_zeros_have_a_cosine_of_zero(places):
    """A row of zeros has no direction: its cosine is 0, not undefined."""
    rows, others = made(CLOUDS, VIEWS, CELLS, HIDDEN), made(CLOUDS, TOKENS, HIDDEN)
    with torch.no_grad():
        rows[:, 0] = 0
        others[0] = 0
    cosine = view_voxel_cosine(rows, others, *places)
    assert cosine[:, 0].eq(0).all() and cosine[0].eq(0).all() and cosine[1, 1:].ne(0).all()
    added = view_ensemble(rows, others, *places, 0.3, 1)
    assert added.isfinite().all() and added[1, 1:].abs().amax() > 0.01
    added.square().sum().backward()
    assert rows.grad.isfinite().all() and others.grad.isfinite().all() and rows.grad[1, 1].any()
