"""Layer norm of tokens, and their projection to queries, keys and values with separate weights for each view."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.dispatch import without_autocast

_EPS = 1e-5


def cell_projection_plain(tokens: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise tokens and project them for each view.

    The norms of all views share their statistics; gains and shifts are folded into one projection.

    Args:
        tokens: `(..., hidden)`.
        gain: `(views, hidden)`, of the norms.
        shift: `(views, hidden)`, of the norms.
        weight: `(views, channels, hidden)`, of the projections.
        bias: `(views, channels)`, of the projections.

    Returns:
        `(..., views, channels)`.
    """
    normed = nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=_EPS)
    folded, offset = _folded(gain, shift, weight, bias)
    return nn.functional.linear(normed, folded, offset).unflatten(-1, bias.shape)


def _folded(gain: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    folded = weight * gain.unsqueeze(1)
    # A sum is faster than such a small product.
    offset = (weight * shift.unsqueeze(1)).sum(dim=-1) + bias
    return folded.flatten(0, 1), offset.flatten()


class _CellProjection(torch.autograd.Function):
    """Compute `cell_projection_plain`; saves only the tokens, and computes normed tokens and folded weights again."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normed, mean, deviation = torch.native_layer_norm(tokens, tokens.shape[-1:], None, None, _EPS)
        ctx.save_for_backward(tokens, mean, deviation, gain, shift, weight)
        folded, offset = _folded(gain, shift, weight, bias)
        return nn.functional.linear(normed, folded, offset).unflatten(-1, bias.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        tokens, mean, deviation, gain, shift, weight = ctx.saved_tensors
        hidden_size = tokens.shape[-1]
        flat = gradient.flatten(-2).flatten(0, -2)  # (tokens, views * channels)
        normed = (tokens - mean).mul_(deviation).view(-1, hidden_size)
        grad_bias = flat.sum(dim=0).view(weight.shape[:2])
        grad_folded = (flat.T @ normed).view_as(weight)
        grad_gain = (grad_folded * weight).sum(dim=1)
        grad_shift = (grad_bias.unsqueeze(-1) * weight).sum(dim=1)
        grad_weight = grad_folded.mul_(gain.unsqueeze(1)).addcmul_(grad_bias.unsqueeze(-1), shift.unsqueeze(1))
        grad_normed = (flat @ (weight * gain.unsqueeze(1)).flatten(0, 1)).view_as(tokens)
        grad_tokens, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad_normed, tokens, [hidden_size], mean, deviation, None, None, [True, False, False]
        )
        return grad_tokens, grad_gain, grad_shift, grad_weight, grad_bias


cell_projection_fused = _CellProjection.apply
