"""Attention along a list of pairs, against masked attention over all of them."""

import pytest
import torch

from hf_any3d.modeling.any2point import geometry
from hf_any3d.modeling.any2point.geometry import membership
from hf_any3d.modeling.any2point.guided_adapter import CellAttention
from hf_any3d.modeling.any2point.pair_attention import PairAttention

CLOUDS, VIEWS, TOKENS, CELLS = 2, 3, 10, 7


@pytest.fixture
def members():
    cell = torch.randint(CELLS, (CLOUDS, VIEWS, TOKENS), generator=torch.Generator().manual_seed(3))
    return membership(cell, CELLS)


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(CLOUDS, TOKENS, 24, generator=generator, dtype=torch.float64).requires_grad_()


def step(attention, tokens, members):
    gathered = attention(tokens, members)
    weight = torch.arange(gathered.numel(), dtype=gathered.dtype).sin().view_as(gathered)
    used = [tokens, attention.qkv_weight, attention.qkv_bias]
    return gathered, torch.autograd.grad((gathered * weight).sum(), used)


def test_few_pairs_give_the_numbers_and_gradients_of_masked_attention(tokens, members, monkeypatch):
    torch.manual_seed(5)
    attention = CellAttention(24, VIEWS, 12, 6).double().train()
    torch.nn.init.normal_(attention.qkv_weight)
    monkeypatch.setattr(geometry, "_FEW", 0)
    assert members.few_pairs() is None
    expected = step(attention, tokens, members)
    monkeypatch.setattr(geometry, "_FEW", 1)
    again = membership(members.row, CELLS)
    assert len(again.few_pairs()[0]) == members.same.sum()
    torch.testing.assert_close(step(attention, tokens, again), expected)


def test_gradients_agree_with_differences(members):
    query, key = members.same.flatten(0, 2)[0].nonzero(as_tuple=True)
    qkv = torch.randn(TOKENS, 3, 2, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda rows: PairAttention.apply(rows, query, key, 0.7), qkv.requires_grad_())


def test_predictions_do_not_depend_on_the_number_of_pairs(tokens, members, monkeypatch):
    monkeypatch.setattr(geometry.Membership, "few_pairs", lambda self: pytest.fail("pairs were asked for"))
    CellAttention(24, VIEWS, 12, 6).double().eval()(tokens, members)
    CellAttention(24, VIEWS, 12, 6, dropout=0.5).double().train()(tokens, members)
