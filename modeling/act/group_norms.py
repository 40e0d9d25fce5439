"""Group norm with leaky ReLU on tokens and on the edges of a graph between them, without the edges.

An edge of a graph convolution carries `a[neighbor] - a[token] + b[token]`. Of all edges of a token only the largest is
wanted behind norm and activation, both of which keep order (or turn it around, where a gain is negative), so the
maximum comes first and the rest is done once a token. The norm's statistics run over all edges; they follow from sums
over tokens, weighted by how many edges end in each.

Numbers and gradients are those of the plain modules up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

NUM_GROUPS = 4
SLOPE = 0.2


def normed_edge_maximum(
    terms: torch.Tensor, neighbors: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """Maximum over a token's edges of `leaky_relu(group_norm(edges))`.

    Args:
        terms: `(batch, tokens, 2 * channels)`, for every channel a pair (a, b): an edge from a token to a neighbour is
            the neighbour's a, less the token's a, plus the token's b.
        neighbors: `(batch, tokens, k)`, in which tokens the edges of a token end.
        gain: `(channels,)` of the norm.
        shift: `(channels,)` of the norm.
        eps: Added to the variance.

    Returns:
        `(batch, tokens, channels)`.
    """
    return _NormedEdgeMaximum.apply(terms, neighbors, gain, shift, eps)


def normed_tokens(rows: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """`leaky_relu(group_norm(rows))` of `(batch, tokens, channels)`, statistics over tokens and a group's channels."""
    return _NormedTokens.apply(rows, gain, shift, eps)


class _NormedEdgeMaximum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, terms: torch.Tensor, neighbors: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor, eps: float
    ) -> torch.Tensor:
        batch, tokens, k = neighbors.shape
        offset = torch.arange(batch, device=terms.device).mul_(tokens)[:, None, None]
        ends = (neighbors + offset).view(-1, k)  # (batch * tokens, k)
        count = torch.zeros(batch * tokens, device=terms.device)
        count.index_add_(0, ends.view(-1), torch.ones_like(count).repeat_interleave(k))
        count = count.view(batch, 1, tokens)
        given, own = terms.float().unflatten(-1, (-1, 2)).unbind(dim=-1)
        own = own - given
        # Centred before it is squared, lest a small spread drown beside a large mean.
        given = (given - _spread(_group_mean(_count_sum(count, given)) / (tokens * k), given)).flatten(0, 1)
        own = (own - _spread(_group_mean(own.sum(dim=1, keepdim=True)) / tokens, own)).flatten(0, 1)
        ends_of_few = ends.unbind(dim=1)
        sign = torch.where(gain < 0, -1.0, 1.0)
        largest = total = given[ends_of_few[0]]
        largest = largest * sign
        winner = torch.zeros_like(largest, dtype=torch.uint8)
        for number, end in enumerate(ends_of_few[1:], start=1):
            rows = given[end]
            total = total + rows
            rows.mul_(sign)
            winner.masked_fill_(rows > largest, number)
            torch.maximum(largest, rows, out=largest)
        squares = _count_sum(count, given.square().view(batch, tokens, -1))
        squares += (own * (2 * total + k * own)).view(batch, tokens, -1).sum(dim=1, keepdim=True)
        scale = (_group_mean(squares) / (tokens * k) + eps).rsqrt()  # (batch, groups)
        best = largest.mul_(sign).add_(own).view(batch, tokens, -1)
        output = torch.addcmul(shift.float(), best, _spread(scale, best) * gain)
        output = torch.nn.functional.leaky_relu_(output, SLOPE).to(terms.dtype)
        ctx.save_for_backward(given, own, ends, count, winner, scale, gain, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        given, own, ends, count, winner, scale, gain, output = ctx.saved_tensors
        batch, tokens, channels = output.shape
        k, channel_scale = ends.shape[1], _spread(scale, output)
        behind = _through_activation(gradient.float(), output)
        best, total = torch.zeros_like(given), own * k
        for number, end in enumerate(ends.unbind(dim=1)):
            rows = given[end]
            total += rows
            torch.where(winner == number, rows, best, out=best)
        best = best.add_(own).view_as(behind) * channel_scale  # normed
        of_gain, of_shift = (behind * best).sum(dim=(0, 1)), behind.sum(dim=(0, 1))
        behind.mul_(gain)
        edges = tokens * k
        mean = _spread(_group_mean(behind.sum(dim=1, keepdim=True)) / edges, behind)
        slant = _spread(_group_mean((behind * best).sum(dim=1, keepdim=True)) / edges, behind) * channel_scale
        # Each edge gets behind (where it won) - mean - slant * edge, all times the scale.
        of_own = behind - k * mean - slant * total.view_as(behind)
        counts = count.transpose(1, 2)
        of_given = (counts * (-mean - slant * given.view_as(behind))).flatten(0, 1)
        behind, rest = behind.flatten(0, 1), (slant * own.view_as(behind)).flatten(0, 1)
        for number, end in enumerate(ends.unbind(dim=1)):
            of_given.index_add_(0, end, behind.masked_fill(winner != number, 0).sub_(rest))
        of_terms = output.new_empty(batch, tokens, channels, 2)
        of_own.mul_(channel_scale)
        of_terms[..., 1] = of_own
        of_terms[..., 0] = of_given.view(batch, tokens, channels).mul_(channel_scale).sub_(of_own)
        return of_terms.flatten(2), None, of_gain.to(gain.dtype), of_shift.to(gain.dtype), None


class _NormedTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
        tokens = rows.shape[1]
        # By columns, which is several times faster than var_mean over groups of them.
        mean = _group_mean(rows.sum(dim=1, keepdim=True, dtype=torch.float32)) / tokens  # (batch, groups)
        centred = rows - _spread(mean, rows)
        scale = (_group_mean(centred.square().sum(dim=1, keepdim=True)) / tokens + eps).rsqrt()
        output = torch.addcmul(shift.float(), centred, _spread(scale, rows) * gain, out=centred)
        output = torch.nn.functional.leaky_relu_(output, SLOPE).to(rows.dtype)
        ctx.save_for_backward(rows, mean, scale, gain, output)
        ctx.tokens = tokens
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, mean, scale, gain, output = ctx.saved_tensors
        behind = _through_activation(gradient.float(), output)
        mean, scale = _spread(mean, output), _spread(scale, output)
        # Sums over tokens are all that is needed of the normed rows; the rows themselves are read as they are.
        sums = behind.sum(dim=1, keepdim=True)  # (batch, 1, channels)
        products = (behind * rows).sum(dim=1, keepdim=True)
        normed_products = (products - sums * mean) * scale
        average = _spread(_group_mean(sums * gain) / ctx.tokens, output)
        slant = _spread(_group_mean(normed_products * gain) / ctx.tokens, output) * scale * scale
        of_rows = (
            behind.mul_(scale * gain).addcmul_(rows.float(), slant, value=-1).add_(slant * mean - average * scale)
        )
        of_gain, of_shift = normed_products.sum(dim=(0, 1)), sums.sum(dim=(0, 1))
        return of_rows.to(rows.dtype), of_gain.to(gain.dtype), of_shift.to(gain.dtype), None


def _through_activation(gradient: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    # The sign of what leaves a leaky ReLU is the sign of what enters.
    return torch.ops.aten.leaky_relu_backward(gradient, output.float(), SLOPE, True)


def _count_sum(count: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Sum `(batch, 1, channels)` of `(batch, tokens, channels)`, each token `count` `(batch, 1, tokens)` times."""
    # Not a matrix product: autocast and TF32 would round the statistics.
    return (count.transpose(1, 2) * rows).sum(dim=1, keepdim=True)


def _group_mean(channels: torch.Tensor) -> torch.Tensor:
    """`(batch, 1, channels)` to the mean over the channels of each group, `(batch, groups)`."""
    return channels.view(len(channels), NUM_GROUPS, -1).mean(dim=-1)


def _spread(groups: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`(batch, groups)` to `(batch, 1, channels)`."""
    return groups.repeat_interleave(like.shape[-1] // NUM_GROUPS, dim=1).unsqueeze(1)
