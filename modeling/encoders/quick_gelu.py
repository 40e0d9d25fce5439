"""The GELU of CLIP's layers in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import QuickGELUActivation

SLOPE = 1.702


class FusedQuickGELU(nn.Module):
    """`x * sigmoid(1.702 * x)` as one operation that keeps its input only.

    Written out it keeps three tensors of the size of the input for the backward pass, which in a wrapped layer is the
    largest there is: four times the width of a token.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The activation of a tensor of any shape."""
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            return _QuickGELU.apply(hidden_states)
        return _by_way_of_silu(hidden_states)


def _by_way_of_silu(hidden_states: torch.Tensor) -> torch.Tensor:
    return nn.functional.silu(hidden_states * SLOPE, inplace=True).mul_(1 / SLOPE)


class _QuickGELU(torch.autograd.Function):
    """The same with its gradient, which is that of SiLU."""

    @staticmethod
    def forward(ctx: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden_states)
        return _by_way_of_silu(hidden_states)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (hidden_states,) = ctx.saved_tensors
        scaled = hidden_states * SLOPE
        return torch.ops.aten.silu_backward.grad_input(gradient, scaled, grad_input=scaled)


def fuse_quick_gelu(model: nn.Module) -> None:
    """Let every quick GELU inside a model take few passes; its values stay, and it has no weights."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is QuickGELUActivation:
                setattr(module, name, FusedQuickGELU())
