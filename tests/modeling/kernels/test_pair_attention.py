"""Attention along the list of pairs against torch's masked attention."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from hf_any3d.modeling.kernels import pair_attention
from hf_any3d.modeling.kernels.cells import FlatCells

HEADS, WIDTH = 2, 6


def case(tokens: int = 40, cells: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries, keys and values of the tokens of all clouds, and their cells, without gaps."""
    generator = torch.Generator().manual_seed(5)
    row = torch.randint(cells, (tokens,), generator=generator).unique(return_inverse=True)[1]
    return torch.randn(tokens, 3 * WIDTH, generator=generator, dtype=torch.float64).requires_grad_(), row


@pytest.mark.parametrize("cells", [1, 2, 9, 60])
def test_pairs_and_mask_give_the_same_results_and_gradients(cells):
    qkv, row = case(cells=cells)
    query, key, value = qkv.unflatten(-1, (3, HEADS, -1)).permute(1, 2, 0, 3)
    masked = scaled_dot_product_attention(query, key, value, attn_mask=row[:, None] == row, scale=0.7)
    expected = masked.transpose(0, 1).flatten(1)
    gathered = pair_attention(qkv, FlatCells(row[None]).pairs[0], HEADS, 0.7)
    torch.testing.assert_close(gathered, expected, rtol=1e-10, atol=1e-12)
    gradients = (torch.autograd.grad(made.square().sum(), qkv)[0] for made in (gathered, expected))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_large_scores_do_not_overflow():
    qkv, row = case()
    assert pair_attention(1e3 * qkv, FlatCells(row[None]).pairs[0], HEADS, 1.0).isfinite().all()


def test_dropout_drops_partners():
    qkv, row = case(tokens=60, cells=20)
    pairs = FlatCells(row[None]).pairs[0]
    torch.manual_seed(0)
    dropped = torch.stack([pair_attention(qkv, pairs, HEADS, 0.7, 0.5).detach() for _ in range(200)])
    expected = pair_attention(qkv, pairs, HEADS, 0.7).detach()
    assert (dropped[0] == 0).any() and not torch.allclose(dropped[0], dropped[1])
    assert (dropped.mean(dim=0) - expected).square().mean().sqrt() < 0.1 * expected.std()
