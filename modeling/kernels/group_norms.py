"""Group norm with leaky ReLU of the edges of a graph between tokens.

An edge of a graph convolution has the value `a[neighbor] - a[token] + b[token]`. Only the maximum over a token's edges
is needed after norm and activation. Both are monotonic (decreasing where a gain is negative), so the fused
implementation takes the maximum first and computes the rest once per token. The norm's statistics over all edges
follow from sums over tokens, weighted by the number of edges that end in each.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_any3d.modeling.kernels.dispatch import without_autocast

NUM_GROUPS = 4
SLOPE = 0.2


def normed_tokens(rows: Tensor, gain: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute `leaky_relu(group_norm(rows))`, with statistics over all tokens of a cloud.

    Args:
        rows: `(batch, tokens, channels)`.
        gain: `(channels,)` of the norm.
        shift: `(channels,)` of the norm.
        eps: Added to the variance.

    Returns:
        `(batch, tokens, channels)`.
    """
    normed = torch.nn.functional.group_norm(rows.transpose(1, 2), NUM_GROUPS, gain, shift, eps)
    return torch.nn.functional.leaky_relu(normed, SLOPE).transpose(1, 2)


def edge_maximum_plain(terms: Tensor, neighbors: Tensor, gain: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute the maximum over a token's edges of `leaky_relu(group_norm(edges))`.

    Args:
        terms: `(batch, tokens, 2 * channels)`, a pair (a, b) for every channel: an edge from a token to a neighbor is
            `a[neighbor] - a[token] + b[token]`.
        neighbors: `(batch, tokens, k)`, indices of the tokens in which a token's edges end.
        gain: `(channels,)` of the norm.
        shift: `(channels,)` of the norm.
        eps: Added to the variance.

    Returns:
        `(batch, tokens, channels)`.
    """
    batch, tokens, k = neighbors.shape
    given, own = terms.unflatten(-1, (-1, 2)).unbind(dim=-1)  # each (batch, tokens, channels)
    ends = neighbors.flatten(1).unsqueeze(-1).expand(-1, -1, given.shape[-1])
    edges = given.gather(1, ends).view(batch, tokens, k, -1) + (own - given).unsqueeze(2)
    normed = normed_tokens(edges.flatten(1, 2), gain, shift, eps)
    return normed.view(batch, tokens, k, -1).amax(dim=2)


class _EdgeMaximum(torch.autograd.Function):
    """Compute `edge_maximum_plain` without the edges."""

    @staticmethod
    def forward(ctx: Any, terms: Tensor, neighbors: Tensor, gain: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
        batch, tokens, k = neighbors.shape
        offset = torch.arange(batch, device=terms.device).mul_(tokens)[:, None, None]
        ends = (neighbors + offset).view(-1, k)  # (batch * tokens, k)
        # A sum over edges is one over the tokens in which they end, each times the number of its edges.
        count = torch.zeros(batch * tokens, device=terms.device)
        count.index_add_(0, ends.view(-1), torch.ones_like(count).repeat_interleave(k))
        count = count.view(batch, 1, tokens)
        given, own = terms.float().unflatten(-1, (-1, 2)).unbind(dim=-1)
        # From here on an edge is `given[neighbor] + own[token]`.
        own = own - given
        # Centered before squaring: otherwise a large mean would swamp a small variance.
        given = (given - _spread(_group_mean(_count_sum(count, given)) / (tokens * k), given)).flatten(0, 1)
        own = (own - _spread(_group_mean(own.sum(dim=1, keepdim=True)) / tokens, own)).flatten(0, 1)
        ends_by_neighbor = ends.unbind(dim=1)
        # A negative gain turns the order of a channel around: there, the maximum after the norm is the minimum before
        # it.
        sign = torch.where(gain < 0, -1.0, 1.0)
        largest = total = given[ends_by_neighbor[0]]
        largest = largest * sign
        winner = torch.zeros_like(largest, dtype=torch.uint8)
        for number, end in enumerate(ends_by_neighbor[1:], start=1):
            rows = given[end]
            total = total + rows
            rows.mul_(sign)
            winner.masked_fill_(rows > largest, number)
            torch.maximum(largest, rows, out=largest)
        squares = _count_sum(count, given.square().view(batch, tokens, -1))
        # What is left of the squares of `given + own` over a token's edges, without those of `given`.
        squares += (own * (2 * total + k * own)).view(batch, tokens, -1).sum(dim=1, keepdim=True)
        scale = (_group_mean(squares) / (tokens * k) + eps).rsqrt()  # (batch, groups)
        best = largest.mul_(sign).add_(own).view(batch, tokens, -1)
        output = torch.addcmul(shift.float(), best, _spread(scale, best) * gain)
        output = torch.nn.functional.leaky_relu_(output, SLOPE).to(terms.dtype)
        ctx.save_for_backward(given, own, ends, count, winner, scale, gain, output)
        return output

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        given, own, ends, count, winner, scale, gain, output = ctx.saved_tensors
        batch, tokens, channels = output.shape
        k, channel_scale = ends.shape[1], _spread(scale, output)
        grad_norm = _through_activation(gradient.float(), output)
        best, total = torch.zeros_like(given), own * k
        for number, end in enumerate(ends.unbind(dim=1)):
            rows = given[end]
            total += rows
            torch.where(winner == number, rows, best, out=best)
        best = best.add_(own).view_as(grad_norm) * channel_scale  # normed
        grad_gain, grad_shift = (grad_norm * best).sum(dim=(0, 1)), grad_norm.sum(dim=(0, 1))
        grad_norm.mul_(gain)
        edges = tokens * k
        mean = _spread(_group_mean(grad_norm.sum(dim=1, keepdim=True)) / edges, grad_norm)
        slope = _spread(_group_mean((grad_norm * best).sum(dim=1, keepdim=True)) / edges, grad_norm) * channel_scale
        # The gradient of an edge is (grad_norm if it is the maximum) - mean - slope * edge, times the scale.
        grad_own = grad_norm - k * mean - slope * total.view_as(grad_norm)
        counts = count.transpose(1, 2)
        grad_given = (counts * (-mean - slope * given.view_as(grad_norm))).flatten(0, 1)
        grad_norm, rest = grad_norm.flatten(0, 1), (slope * own.view_as(grad_norm)).flatten(0, 1)
        for number, end in enumerate(ends.unbind(dim=1)):
            grad_given.index_add_(0, end, grad_norm.masked_fill(winner != number, 0).sub_(rest))
        grad_terms = output.new_empty(batch, tokens, channels, 2)
        grad_own.mul_(channel_scale)
        grad_terms[..., 1] = grad_own
        grad_terms[..., 0] = grad_given.view(batch, tokens, channels).mul_(channel_scale).sub_(grad_own)
        return grad_terms.flatten(2), None, grad_gain.to(gain.dtype), grad_shift.to(gain.dtype), None


edge_maximum_fused = _EdgeMaximum.apply


def _through_activation(gradient: Tensor, output: Tensor) -> Tensor:
    # The output of a leaky ReLU has the sign of its input.
    return torch.ops.aten.leaky_relu_backward(gradient, output.float(), SLOPE, True)


def _count_sum(count: Tensor, rows: Tensor) -> Tensor:
    """Sum `(batch, tokens, channels)` to `(batch, 1, channels)`, weighted by `count` `(batch, 1, tokens)`."""
    # No matrix product: autocast and TF32 would round the statistics.
    return (count.transpose(1, 2) * rows).sum(dim=1, keepdim=True)


def _group_mean(channels: Tensor) -> Tensor:
    """Average `(batch, 1, channels)` over the channels of each group: `(batch, groups)`."""
    return channels.view(len(channels), NUM_GROUPS, -1).mean(dim=-1)


def _spread(groups: Tensor, like: Tensor) -> Tensor:
    """Repeat `(batch, groups)` for the channels of each group: `(batch, 1, channels)`."""
    return groups.repeat_interleave(like.shape[-1] // NUM_GROUPS, dim=1).unsqueeze(1)
