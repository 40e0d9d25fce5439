"""The GELU of CLIP's layers."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.dispatch import without_autocast

FACTOR = 1.702
"""Of the sigmoid's argument."""


def quick_gelu_plain(values: Tensor) -> Tensor:
    """Compute `values * sigmoid(1.702 * values)` of a tensor of any shape."""
    return values * torch.sigmoid(FACTOR * values)


def quick_gelu_fused(values: Tensor) -> Tensor:
    """Compute `quick_gelu_plain` in few passes; saves only its input.

    The plain one saves three tensors of its size, four times the width of a token, the largest of a wrapped layer.
    """
    if torch.is_grad_enabled() and values.requires_grad:
        return _QuickGELU.apply(values)
    return _scaled_silu(values)


def _scaled_silu(values: Tensor) -> Tensor:
    # x * sigmoid(a x) is silu(a x) / a, for which torch has a kernel.
    return nn.functional.silu(values * FACTOR, inplace=True).mul_(1 / FACTOR)


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return _scaled_silu(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        scaled = values * FACTOR
        # The factor before silu and its inverse after it cancel in the derivative.
        return torch.ops.aten.silu_backward.grad_input(gradient, scaled, grad_input=scaled)
