"""Attention among the tokens that share a cell, along the list of their pairs.

Cells are small: of all pairs of tokens few share one. A kernel for masked attention computes every score and throws
nearly all of them away.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.any2point.geometry import Membership, Pairs

# With many more pairs than this share of all of them, the kernel is faster (measured: equal at a fifth).
_FEW = 1 / 6


def attend_in_cells(
    qkv: torch.Tensor, members: Membership, heads: int, scale: float, dropout: float = 0.0
) -> torch.Tensor:
    """What every token gathers in its cell.

    Args:
        qkv: `(batch, views, tokens, 3 * width)`, queries, keys and values, each of all heads side by side.
        members: Cells of the tokens.
        heads: Number of heads.
        scale: Factor of the scores.
        dropout: Dropout of the attention's weights.

    Returns:
        `(batch, views, tokens, width)`.
    """
    if not dropout and _has_few_pairs(qkv, members):
        return _PairAttention.apply(qkv.flatten(0, 2), members.pairs, heads, scale).view(*qkv.shape[:3], -1)
    # Four axes, views beside clouds: for more, torch has no kernel that keeps no attention weights.
    query, key, value = (
        part.transpose(1, 2) for part in qkv.flatten(0, 1).unflatten(-1, (3, heads, -1)).unbind(2)
    )  # each (batch * views, heads, tokens, head width)
    gathered = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=members.same.flatten(0, 1), dropout_p=dropout, scale=scale
    )
    return gathered.transpose(1, 2).reshape(*qkv.shape[:3], -1)


def _has_few_pairs(qkv: torch.Tensor, members: Membership) -> bool:
    # Other devices would have to wait for the number of pairs, and compilers know no sizes that depend on data.
    if torch.compiler.is_compiling() or qkv.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return len(members.pairs.query) <= _FEW * members.same.numel()


class _PairAttention(torch.autograd.Function):
    """Attention `(tokens, width)` of rows `(tokens, 3 * width)` of all clouds and views; keeps its input only.

    Every sum over the partners of a token is a sum over a run of the list.
    """

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, pairs: Pairs, heads: int, scale: float) -> torch.Tensor:
        width = qkv.shape[1] // 3
        # A product with its transpose repeats a head's number for all of its channels.
        channels = torch.eye(heads, dtype=qkv.dtype, device=qkv.device).repeat_interleave(width // heads, dim=0)
        query, key, value = _gather(qkv, pairs)
        score = _sum_heads(query.mul_(key), heads).mul_(scale)  # (pairs, heads)
        largest = torch.segment_reduce(score, "max", lengths=pairs.partners, axis=0, unsafe=True)
        share = score.sub_(largest.index_select(0, pairs.query)).exp_()
        total = pairs.sum(share)  # (tokens, heads)
        gathered = pairs.sum((share @ channels.T).mul_(value)).div_(total @ channels.T)
        ctx.save_for_backward(qkv, channels, gathered, largest.add_(total.log_()))
        ctx.pairs, ctx.scale = pairs, scale
        return gathered

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv, channels, gathered, level = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        query, key, value = _gather(qkv, pairs)
        heads = channels.shape[1]
        score = _sum_heads(query * key, heads).mul_(ctx.scale)
        share = score.sub_(level.index_select(0, pairs.query)).exp_()  # (pairs, heads)
        of_gathered = gradient.index_select(0, pairs.query)
        of_score = _sum_heads(value.mul_(of_gathered), heads)
        # Shares sum to one: what a token's partners have in common is taken off.
        common = _sum_heads(gradient * gathered, heads)
        of_score.sub_(common.index_select(0, pairs.query)).mul_(share).mul_(ctx.scale)
        of_score = of_score @ channels.T  # (pairs, width)
        of_query = pairs.sum(key.mul_(of_score))
        of_key = pairs.sum(query.mul_(of_score), over_queries=True)
        of_value = pairs.sum(of_gathered.mul_(share @ channels.T), over_queries=True)
        return torch.cat([of_query, of_key, of_value], dim=1), None, None, None


def _gather(qkv: torch.Tensor, pairs: Pairs) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of the pairs, `(pairs, width)` each, free to be used up."""
    query, key, value = qkv.chunk(3, dim=1)
    return query.index_select(0, pairs.query), key.index_select(0, pairs.key), value.index_select(0, pairs.key)


def _sum_heads(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Sums `(rows, heads)` over the channels of each head of `(rows, width)`."""
    # Heads are narrow. One channel of all of them at a time is faster than a sum over so few and than a product.
    return functools.reduce(torch.add, rows.view(len(rows), heads, -1).unbind(-1))
