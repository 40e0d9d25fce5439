"""Tokens that share a cell as lists, against plain loops over tokens, and sums along these lists."""

import torch

from hf_any3d.modeling import kernels
from hf_any3d.modeling.kernels.cells import FlatCells
from hf_any3d.modeling.kernels.pair_attention import has_no_dropout


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
