"""Attention among the tokens that share a cell, along the list of these pairs.

For the tokens of all clouds in one list, a mask of all pairs would not fit into memory.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.cells import Pairs
from hf_any3d.modeling.kernels.dispatch import Kernel, without_autocast


def pair_attention_plain(qkv: Tensor, pairs: Pairs, heads: int, scale: float, dropout: float = 0.0) -> Tensor:
    """Attend to the tokens of the same cell along the list of pairs, for tokens of all clouds in one list.

    Args:
        qkv: `(tokens, 3 * width)`: queries, keys and values, each with its heads concatenated.
        pairs: Pairs of tokens that share a cell.
        heads: Number of heads.
        scale: Factor of the scores.
        dropout: Dropout of the attention weights.

    Returns:
        `(tokens, width)`.

    Source: Any2Point, Sec. 3.3.
    """
    query, key, value = (part.unflatten(1, (heads, -1)) for part in _gather(qkv, pairs))  # (pairs, heads, head width)
    score = (query * key).sum(dim=-1).mul(scale).to(torch.promote_types(qkv.dtype, torch.float32))  # (pairs, heads)
    # A softmax over lists of different lengths; the largest score of each is subtracted to keep exp in range.
    largest = score.new_full((len(qkv), heads), -torch.inf)
    largest = largest.scatter_reduce(0, pairs.query[:, None].expand_as(score), score.detach(), "amax")
    share = (score - largest[pairs.query]).exp()
    share = share / torch.zeros_like(largest).index_add(0, pairs.query, share)[pairs.query]
    share = nn.functional.dropout(share, dropout).to(qkv.dtype)
    gathered = qkv.new_zeros(len(qkv), *value.shape[1:]).index_add(0, pairs.query, share.unsqueeze(-1) * value)
    return gathered.flatten(1)


def pair_attention_fused(qkv: Tensor, pairs: Pairs, heads: int, scale: float, dropout: float = 0.0) -> Tensor:
    """Run `pair_attention_plain` without dropout; saves only its input."""
    return _PairAttention.apply(qkv, pairs, heads, scale)


def has_no_dropout(qkv: Tensor, pairs: Pairs, heads: int, scale: float, dropout: float = 0.0) -> bool:
    """Return whether there is no dropout."""
    return not dropout


class _PairAttention(torch.autograd.Function):
    """Attention `(tokens, width)` of rows `(tokens, 3 * width)` of all clouds and views.

    The sums over the partners of a token are sums over consecutive pairs. Half precision is computed in float32.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, pairs: Pairs, heads: int, scale: float) -> Tensor:
        wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
        width = qkv.shape[1] // 3
        # A product with its transpose repeats the number of a head for all of its channels.
        channels = torch.eye(heads, dtype=wide.dtype, device=qkv.device).repeat_interleave(width // heads, dim=0)
        query, key, value = _gather(wide, pairs)
        score = _sum_heads(query.mul_(key), heads).mul_(scale)  # (pairs, heads)
        largest = torch.segment_reduce(score, "max", lengths=pairs.partners, axis=0, unsafe=True)
        share = score.sub_(largest.index_select(0, pairs.query)).exp_()
        total = pairs.sum(share)  # (tokens, heads)
        gathered = pairs.sum((share @ channels.T).mul_(value)).div_(total @ channels.T)
        # With the logarithm of the softmax's divisor, the backward pass gets all shares from the scores alone.
        ctx.save_for_backward(qkv, channels, gathered, largest.add_(total.log_()))
        ctx.pairs = pairs
        ctx.scale = scale
        return gathered.to(qkv.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        qkv, channels, gathered, log_total = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        gradient = gradient.to(channels.dtype)
        query, key, value = _gather(qkv.to(channels.dtype), pairs)
        heads = channels.shape[1]
        score = _sum_heads(query * key, heads).mul_(ctx.scale)
        share = score.sub_(log_total.index_select(0, pairs.query)).exp_()  # (pairs, heads)
        grad_gathered = gradient.index_select(0, pairs.query)
        grad_score = _sum_heads(value.mul_(grad_gathered), heads)
        # The shares of a token sum to one, so the part common to all of its partners is subtracted.
        common = _sum_heads(gradient * gathered, heads)
        grad_score.sub_(common.index_select(0, pairs.query)).mul_(share).mul_(ctx.scale)
        grad_score = grad_score @ channels.T  # (pairs, width)
        grad_query = pairs.sum(key.mul_(grad_score))
        grad_key = pairs.sum(query.mul_(grad_score), over_queries=True)
        grad_value = pairs.sum(grad_gathered.mul_(share @ channels.T), over_queries=True)
        return torch.cat([grad_query, grad_key, grad_value], dim=1).to(qkv.dtype), None, None, None


def _gather(qkv: Tensor, pairs: Pairs) -> tuple[Tensor, ...]:
    """Return new tensors of the queries, keys and values of the pairs, `(pairs, width)` each."""
    query, key, value = qkv.chunk(3, dim=1)
    return query.index_select(0, pairs.query), key.index_select(0, pairs.key), value.index_select(0, pairs.key)


def _sum_heads(rows: Tensor, heads: int) -> Tensor:
    """Sum `(rows, width)` over the channels of each head: `(rows, heads)`."""
    # Heads are narrow: adding one channel of all heads at a time is faster than a sum or a product.
    return functools.reduce(torch.add, rows.view(len(rows), heads, -1).unbind(-1))


pair_attention = Kernel(pair_attention_plain, pair_attention_fused, "Not with dropout.", condition=has_no_dropout)
