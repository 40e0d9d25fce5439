"""Tokens that share a cell as lists, against plain loops over tokens, and sums along these lists."""

import pytest
import torch

from hf_any3d.modeling import kernels
from hf_any3d.modeling.kernels.cells import FlatCells, mean_in_cells, membership
from hf_any3d.modeling.kernels.normed_ensemble import view_ensemble
from hf_any3d.modeling.kernels.pair_attention import has_no_dropout
from hf_any3d.modeling.kernels.quick_gelu import quick_gelu_fused, quick_gelu_plain

CELL = torch.tensor([[[4, 0, 4, 3, 0], [1, 1, 1, 0, 5]], [[2, 2, 0, 5, 5], [0, 3, 4, 0, 4]]])
VOXEL = torch.tensor([[[0, 0, 2, 3, 2]], [[0, 1, 1, 1, 4]]])
BATCH, VIEWS, TOKENS = CELL.shape


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("cells", "rows"), [(5, 5), (6, 5), (4, 4)])
def test_rows_are_cells_unless_these_are_more_than_tokens(cells, rows):
    cell = CELL % cells
    members = membership(cell, cells)
    assert members.cells == cells and members.pool.shape == (BATCH, VIEWS, rows, TOKENS)
    for cloud in range(BATCH):
        for view in range(VIEWS):
            own = cell[cloud, view].tolist()
            row = own if rows == cells else [own.index(number) for number in own]
            assert members.row[cloud, view].tolist() == row
            pool = [[(r == line) / max(row.count(line), 1) for r in row] for line in range(rows)]
            torch.testing.assert_close(members.pool[cloud, view], torch.tensor(pool))
            assert members.occupied[cloud, view].tolist() == [line in row for line in range(rows)]
            apart = [[[0.0 if a == b else -torch.inf for a in own] for b in own]]
            assert members.apart[cloud, view].tolist() == apart


def test_links_number_the_rows_of_all_views_and_clouds():
    members = membership(CELL, 6)
    links, rows = members.links, members.pool.shape[2]
    assert members.links is links
    expected = torch.empty(BATCH * TOKENS, VIEWS, dtype=torch.long)
    for cloud in range(BATCH):
        for token in range(TOKENS):
            for view in range(VIEWS):
                # View by view, then cloud by cloud.
                expected[cloud * TOKENS + token, view] = (view * BATCH + cloud) * rows + members.row[
                    cloud, view, token
                ]
    assert torch.equal(links.rows, expected) and links.rows.is_contiguous()
    flat = expected.flatten()
    assert links.starts.shape == (VIEWS * BATCH * rows,)
    for row, start in enumerate(links.starts.tolist()):
        entries = links.order[start : start + int((flat == row).sum())]
        assert sorted(entries.tolist()) == (flat == row).nonzero().flatten().tolist()


def test_means_of_cells_are_those_of_a_loop():
    members, tokens = membership(CELL % 4, 4), randn(BATCH, TOKENS, 3)
    found = mean_in_cells(tokens, members)
    assert found.dtype == torch.float64
    for cloud in range(BATCH):
        for view in range(VIEWS):
            for row in range(4):
                own = tokens[cloud, members.row[cloud, view] == row]
                expected = own.mean(dim=0) if len(own) else torch.zeros(3, dtype=torch.float64)
                torch.testing.assert_close(found[cloud, view, row], expected)


def test_flat_cells_are_counted_in_each_view():
    flat = FlatCells(torch.tensor([[0, 2, 1, 2, 2], [1, 0, 1, 0, 1]]))
    assert flat.cells == 5
    assert flat.counts.tolist() == [[1, 1, 3], [2, 3, 0]]
    assert flat.occupied.tolist() == [[[True, True, True], [True, True, False]]]
    assert flat.pairs is flat.pairs and len(flat.pairs) == 2
    one, other = object(), object()
    assert [flat.first_visit(visitor) for visitor in (one, one, other, one)] == [True, False, True, False]


def test_pairs_are_listed_by_their_first_token():
    pairs = FlatCells(torch.tensor([[0, 1, 0, 1, 1, 2]])).pairs[0]
    assert pairs.query.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5]
    assert pairs.key.tolist() == [0, 2, 1, 3, 4, 0, 2, 1, 3, 4, 1, 3, 4, 5]
    assert pairs.swapped.tolist() == [0, 5, 2, 7, 10, 1, 6, 3, 8, 11, 4, 9, 12, 13]
    assert pairs.starts.tolist() == [0, 2, 5, 7, 10, 13]
    assert pairs.partners.tolist() == [2, 3, 2, 3, 3, 1]
    rows = randn(14, 3)
    sums = torch.zeros(6, 3, dtype=torch.float64)
    torch.testing.assert_close(pairs.sum(rows), sums.index_add(0, pairs.query, rows))
    torch.testing.assert_close(pairs.sum(rows, over_queries=True), sums.index_add(0, pairs.key, rows))


HIDDEN, SCALE, SPECIAL = 4, 0.7, 2


def ensemble_in_loops(rows, others, members, voxels) -> torch.Tensor:
    """Sum rows of cells, weighted by their agreement with the row of the voxel, token by token."""
    tokens = []
    for cloud in range(BATCH):
        for token in range(TOKENS):
            cells = [rows[cloud, view, members.row[cloud, view, token]] for view in range(VIEWS)]
            own = others[cloud, voxels.row[cloud, 0, token]]
            agreement = [(1 + cell @ own / (cell.norm() * own.norm()).clamp_min(1e-8)) / 2 for cell in cells]
            tokens.append(sum(a * cell for a, cell in zip(agreement, cells, strict=True)) * SCALE / sum(agreement))
    return torch.cat([rows.new_zeros(BATCH, SPECIAL, HIDDEN), torch.stack(tokens).view(BATCH, TOKENS, HIDDEN)], dim=1)


@pytest.mark.parametrize("size", [1.0, 3e-5], ids=["usual", "too short for a direction"])
def test_cells_are_added_by_their_agreement_with_the_voxel(size):
    members, voxels = membership(CELL, 6), membership(VOXEL, TOKENS)
    leaves = [
        (size * randn(*shape)).requires_grad_() for shape in ((BATCH, VIEWS, TOKENS, HIDDEN), (BATCH, TOKENS, HIDDEN))
    ]
    found = view_ensemble(*leaves, members, voxels, SCALE, SPECIAL)
    expected = ensemble_in_loops(*leaves, members, voxels)
    torch.testing.assert_close(found / size, expected / size)
    gradient = randn(*found.shape, seed=5)
    pairs = zip(*(torch.autograd.grad((out * gradient).sum(), leaves) for out in (found, expected)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_attention_in_half_precision_is_summed_in_single_precision():
    pairs = FlatCells(torch.tensor([[0, 1, 0, 1, 1, 2]])).pairs[0]
    qkv = randn(6, 12).bfloat16()
    exact = qkv.double().requires_grad_()
    expected = kernels.pair_attention.plain(exact, pairs, 2, 0.7)
    (gradient,) = torch.autograd.grad(expected.sin().sum(), exact)
    for how in (kernels.pair_attention.plain, kernels.pair_attention.fused):
        given = qkv.clone().requires_grad_()
        found = how(given, pairs, 2, 0.7)
        (own,) = torch.autograd.grad(found.sin().sum(), given)
        assert found.dtype == own.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)
        torch.testing.assert_close(own.double(), gradient, rtol=0.05, atol=0.05)
    assert has_no_dropout(qkv, pairs, 2, 0.7) and has_no_dropout(qkv, pairs, 2, 0.7, 0.0)
    assert not has_no_dropout(qkv, pairs, 2, 0.7, 0.1)


def test_quick_gelu_is_its_formula_and_leaves_its_input_alone():
    values = torch.linspace(-4, 4, 33, dtype=torch.float64).view(3, 11)
    expected = values / (1 + (-1.702 * values).exp())
    slope = expected / values.where(values != 0, 1) + 1.702 * expected * (1 - expected / values.where(values != 0, 1))
    slope[values == 0] = 0.5
    for how in (quick_gelu_plain, quick_gelu_fused):
        for needs_gradient in (False, True):
            given = values.clone().requires_grad_(needs_gradient)
            found = how(given)
            torch.testing.assert_close(found, expected, check_dtype=True)
            assert torch.equal(given, values) and found.requires_grad is needs_gradient
            if needs_gradient:
                (gradient,) = torch.autograd.grad(found, given, torch.full_like(found, 3.0))
                torch.testing.assert_close(gradient, 3 * slope)
                with torch.no_grad():
                    assert not how(given).requires_grad
