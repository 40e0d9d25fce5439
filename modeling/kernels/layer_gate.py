"""Interpolation between input and output of a layer with a learned weight for each channel."""

from typing import Any

import torch
from torch import Tensor

from hf_any3d.modeling.kernels.dispatch import without_autocast


def layer_gate_plain(inputs: Tensor, outputs: Tensor, weight: Tensor) -> Tensor:
    """Interpolate between two `(..., hidden)` tensors by `weight` `(hidden,)`: 0 for the first, 1 for the second."""
    return torch.lerp(inputs, outputs, weight)


class _LayerGate(torch.autograd.Function):
    """Compute `layer_gate_plain`; saves only the difference of both tensors."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, outputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(outputs - inputs, weight)
        return torch.lerp(inputs, outputs, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        difference, weight = ctx.saved_tensors
        grad_outputs = gradient * weight
        grad_weight = (gradient * difference).flatten(0, -2).sum(dim=0)
        return gradient - grad_outputs, grad_outputs, grad_weight


layer_gate_fused = _LayerGate.apply
