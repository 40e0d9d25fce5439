"""The bottleneck of a guided adapter beside a frozen branch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hf_any3d.modeling.kernels.dispatch import without_autocast
from hf_any3d.modeling.kernels.quick_gelu import FACTOR, quick_gelu_fused


def bottleneck_plain(
    branch: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, dropout: float, scale: float
) -> Tensor:
    """Add a bottleneck to the output `(..., hidden)` of a branch.

    Args:
        branch: `(..., hidden)`.
        down: `(width, hidden)`.
        down_bias: `(width,)`.
        up: `(hidden, width)`.
        up_bias: `(hidden,)`.
        dropout: Rate of dropout inside the bottleneck; 0 outside of training.
        scale: Factor of what is added.
    """
    narrow = nn.functional.dropout(quick_gelu_fused(nn.functional.linear(branch, down, down_bias)), dropout)
    # Scaling the narrow rows and the bias is cheaper than scaling the wide result.
    return branch + nn.functional.linear(narrow * scale, up, up_bias * scale)


def bottleneck_fused(
    branch: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, dropout: float, scale: float
) -> Tensor:
    """Compute `bottleneck_plain` in six operations, eight in the backward pass: factors are those of products."""
    return _Bottleneck.apply(branch, down, down_bias, up, up_bias, dropout, scale)


class _Bottleneck(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        branch: Tensor,
        down: Tensor,
        down_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
        dropout: float,
        scale: float,
    ) -> Tensor:
        rows = branch.reshape(-1, branch.shape[-1])
        # x * sigmoid(a x) is silu(a x) / a; the division is a factor of the next product.
        scaled = torch.addmm(down_bias, rows, down.T, beta=FACTOR, alpha=FACTOR)
        narrow = nn.functional.silu(scaled)
        kept = None
        if dropout:
            narrow, kept = torch.ops.aten.native_dropout(narrow, dropout, True)
        total = torch.add(rows, up_bias, alpha=scale).addmm_(narrow, up.T, alpha=scale / FACTOR)
        ctx.dropout = dropout
        ctx.scale = scale
        ctx.save_for_backward(rows, down, up, scaled, narrow, kept)
        return total.view(branch.shape)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, down, up, scaled, narrow, kept = ctx.saved_tensors
        grad = gradient.reshape(rows.shape)
        grad_narrow = grad @ up
        if kept is not None:
            grad_narrow = torch.ops.aten.native_dropout_backward(grad_narrow, kept, 1 / (1 - ctx.dropout))
        # `scale` is left to the products below, and the two factors of the forward pass cancel.
        grad_scaled = torch.ops.aten.silu_backward(grad_narrow, scaled)
        # Sums over rows as products with ones; with beta=0 the first argument only gives a shape.
        ones = grad.new_ones(len(grad))
        nothing = grad.new_empty(())
        return (
            torch.addmm(grad, grad_scaled, down, alpha=ctx.scale).view(gradient.shape),
            torch.addmm(nothing.expand_as(down), grad_scaled.T, rows, beta=0, alpha=ctx.scale),
            torch.addmv(nothing.expand(len(down)), grad_scaled.T, ones, beta=0, alpha=ctx.scale),
            torch.addmm(nothing.expand_as(up), grad.T, narrow, beta=0, alpha=ctx.scale / FACTOR),
            torch.addmv(nothing.expand(len(up)), grad.T, ones, beta=0, alpha=ctx.scale),
            None,
            None,
        )
