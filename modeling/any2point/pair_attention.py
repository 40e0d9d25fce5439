"""Attention over a list of pairs of tokens, for masks that let few pairs through.

Heads of two channels among a handful of cell mates are too little work for attention that visits all pairs.
"""

from __future__ import annotations

from typing import Any

import torch


class PairAttention(torch.autograd.Function):
    """Attention of tokens `(rows, 3, heads, channels)`, queries, keys and values, to those they are paired with.

    Equals masked attention with softmax. The weights are computed anew in the backward pass.

    Args:
        qkv: The tokens of all clouds and views laid end to end.
        query: `(pairs,)`, the row that asks; every row asks at least one, itself.
        key: `(pairs,)`, the row that is asked.
        scale: Factor of the products of queries and keys.
    """

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
        """What every row gathers, `(rows, heads, channels)`."""
        score = _scores(qkv, query, key, scale)  # (pairs, heads)
        rows, heads = qkv.shape[0], qkv.shape[2]
        largest = score.new_full((rows, heads), -torch.inf)
        largest.scatter_reduce_(0, query.unsqueeze(1).expand_as(score), score, "amax")
        share = score.sub_(largest.index_select(0, query)).exp_()
        total = _sum_rows(rows, query, share)  # (rows, heads)
        values = qkv[:, 2].index_select(0, key)
        gathered = _sum_rows(rows, query, values.mul_(share.unsqueeze(-1))).div_(total.unsqueeze(-1))
        ctx.save_for_backward(qkv, query, key, gathered, largest.add_(total.log_()))
        ctx.scale = scale
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient of `qkv`."""
        qkv, query, key, gathered, log_total = ctx.saved_tensors
        rows = len(qkv)
        share = _scores(qkv, query, key, ctx.scale).sub_(log_total.index_select(0, query)).exp_()
        asked = gradient.index_select(0, query)  # (pairs, heads, channels)
        of_share = (asked * qkv[:, 2].index_select(0, key)).sum(dim=-1)
        of_value = _sum_rows(rows, key, asked.mul_(share.unsqueeze(-1)))
        # The gradient of a softmax: what all shares of a query have in common changes nothing.
        common = (gradient * gathered).sum(dim=-1)
        of_score = of_share.sub_(common.index_select(0, query)).mul_(share).mul_(ctx.scale).unsqueeze(-1)
        of_query = _sum_rows(rows, query, of_score * qkv[:, 1].index_select(0, key))
        of_key = _sum_rows(rows, key, of_score * qkv[:, 0].index_select(0, query))
        return torch.stack([of_query, of_key, of_value], dim=1), None, None, None


def _scores(qkv: torch.Tensor, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    return qkv[:, 0].index_select(0, query).mul_(qkv[:, 1].index_select(0, key)).sum(dim=-1).mul_(scale)


def _sum_rows(rows: int, index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return values.new_zeros(rows, *values.shape[1:]).index_add_(0, index, values)
