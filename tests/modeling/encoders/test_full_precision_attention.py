"""Attention of half precision that is computed in float32 where a CPU trains through it, and where it is not."""

import pytest
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

CHOSEN = "sdpa_in_full_precision"


def parts(dtype: torch.dtype, needing: str = "") -> list[torch.Tensor]:
    """Query, key, value and a mask that is added; those named need a gradient."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 3, 5, 4, generator=generator).to(dtype).requires_grad_(name in needing) for name in "qkv"]
    return [*made, torch.randn(2, 1, 5, 5, generator=generator).to(dtype)]


def module() -> nn.Module:
    made = nn.Module()
    made.is_causal = False
    return made


@pytest.mark.parametrize("needing", ["q", "k", "v", "qkv"])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_what_needs_a_gradient_is_computed_in_float32(needing, named, autocast):
    attend = AttentionInterface()[CHOSEN]
    *qkv, mask = half = parts(torch.bfloat16, needing)
    given = half[:3] if named else half
    options = {"attention_mask": mask, "scaling": 0.3} if named else {"scaling": 0.3}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, weights = attend(module(), *given, **options)
    wide = [one.detach().float().requires_grad_(one.requires_grad) for one in half]
    expected, _ = sdpa_attention_forward(module(), *wide, scaling=0.3)
    assert weights is None and torch.equal(found, expected.to(torch.bfloat16)) and found.requires_grad
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for one, other in zip(qkv, wide[:3], strict=True):
        if one.requires_grad:
            (own,) = torch.autograd.grad(found, one, gradient.bfloat16(), retain_graph=True)
            (full,) = torch.autograd.grad(expected, other, gradient.bfloat16().float(), retain_graph=True)
            assert torch.equal(own, full.bfloat16())
