"""Attention along the list of pairs against torch's masked attention."""

import importlib

import pytest
import torch

from hf_any3d.modeling.kernels import cell_attention
from hf_any3d.modeling.kernels.cells import membership

# The attribute of the package is the operation itself.
MODULE = importlib.import_module("hf_any3d.modeling.kernels.cell_attention")

HEADS, WIDTH = 2, 6


def case(batch=2, views=3, tokens=20, cells=9):
    generator = torch.Generator().manual_seed(5)
    cell = torch.randint(cells, (batch, tokens, views), generator=generator).transpose(1, 2)
    members = membership(cell, cells)
    qkv = torch.randn(batch, views, tokens, 3 * WIDTH, generator=generator, dtype=torch.float64)
    return qkv.requires_grad_(), members


@pytest.mark.parametrize("cells", [1, 2, 9, 40])
def test_pairs_and_mask_give_the_same_results_and_gradients(monkeypatch, cells):
    results = []
    for few in (1.0, -1.0):
        monkeypatch.setattr(MODULE, "_FEW", few)
        qkv, members = case(cells=cells)
        gathered = cell_attention(qkv, members, HEADS, scale=0.7)
        gathered.square().sum().backward()
        results.append((gathered.detach(), qkv.grad))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_gradients_along_pairs_equal_finite_differences(monkeypatch):
    monkeypatch.setattr(MODULE, "_FEW", 1.0)
    qkv, members = case(batch=1, views=2, tokens=4, cells=2)
    assert torch.autograd.gradcheck(lambda rows: cell_attention(rows, members, HEADS, scale=0.7), qkv)


def test_large_scores_do_not_overflow(monkeypatch):
    monkeypatch.setattr(MODULE, "_FEW", 1.0)
    qkv, members = case()
    assert cell_attention(1e3 * qkv, members, HEADS, scale=1.0).isfinite().all()


def test_dropout_drops_partners_even_if_there_are_few():
    qkv, members = case(tokens=60, cells=40)
    assert len(members.pairs.query) < members.same.numel() / 10, "few enough to be listed"
    torch.manual_seed(0)
    dropped = torch.stack([cell_attention(qkv, members, HEADS, 0.7, dropout=0.5).detach() for _ in range(200)])
    expected = cell_attention(qkv, members, HEADS, 0.7).detach()
    assert (dropped[0] == 0).any() and not torch.allclose(dropped[0], dropped[1])
    assert (dropped.mean(dim=0) - expected).square().mean().sqrt() < 0.1 * expected.std()


def test_few_pairs_are_listed_and_many_masked():
    qkv, members = case(cells=40)
    assert "PairAttention" in cell_attention(qkv, members, HEADS, 1.0).grad_fn.next_functions[0][0].name()
    qkv, members = case(cells=2)
    assert "PairAttention" not in cell_attention(qkv, members, HEADS, 1.0).grad_fn.next_functions[0][0].name()


@pytest.mark.parametrize("cells", [9, 40], ids=["fewer cells than tokens", "more"])
def test_pairs_list_every_two_tokens_of_a_cell_and_their_swap(cells):
    _, members = case(cells=cells)
    pairs, tokens = members.pairs, members.same.shape[-1]
    listed = set(zip(pairs.query.tolist(), pairs.key.tolist(), strict=True))
    same = members.same.reshape(-1, tokens, tokens)
    assert len(listed) == len(pairs.query) == same.sum()
    assert all(same[query // tokens, query % tokens, key % tokens] for query, key in listed)
    assert torch.equal(pairs.query[pairs.swapped], pairs.key) and torch.equal(pairs.key[pairs.swapped], pairs.query)
    assert torch.equal(pairs.partners, same.sum(dim=-1).flatten())
