"""Batch norm over cells, with its activation, in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.any2point.geometry import Membership


class CellNorm(nn.Module):
    """Batch norm over the occupied cells of each view.

    Args:
        views: Number of views, each with statistics of its own.
        hidden_size: Channels.
        count_empty: Let empty cells take part in training as rows of zeros, as the released programs do.
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics.
    """

    def __init__(
        self, views: int, hidden_size: int, count_empty: bool = False, eps: float = 1e-5, momentum: float = 0.1
    ):
        super().__init__()
        self.count_empty, self.eps, self.momentum = count_empty, eps, momentum
        self.weight = nn.Parameter(torch.ones(views, hidden_size))
        self.bias = nn.Parameter(torch.zeros(views, hidden_size))
        self.register_buffer("running_mean", torch.zeros(views, hidden_size))
        self.register_buffer("running_var", torch.ones(views, hidden_size))

    def forward(self, rows: torch.Tensor, members: Membership, gelu: bool = False) -> torch.Tensor:
        """Normalise `(batch, views, rows, hidden)` and apply GELU; what empty rows come out as means nothing."""
        own = self.weight.dtype
        if self.training:
            # In a half precision model, too: counts and sums of many rows do not fit into half precision.
            rows = rows.to(torch.promote_types(own, torch.float32))
        else:
            rows = rows.to(own)
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            normed = torch.addcmul((self.bias - self.running_mean * scale).unsqueeze(1), rows, scale.unsqueeze(1))
            return nn.functional.gelu(normed) if gelu else normed
        occupied = members.occupied.to(rows.dtype)  # (batch, views, rows)
        count = occupied.sum(dim=(0, 2)).unsqueeze(-1)  # (views, 1)
        # A copy, because a compiled graph takes no tensor for two arguments.
        total = torch.full_like(count, len(rows) * members.cells) if self.count_empty else count.clone()
        normed, mean, variance = _NormalizeOccupied.apply(
            rows, occupied, self.weight.to(rows.dtype), self.bias.to(rows.dtype), count, total, self.eps, gelu
        )
        if members.first_visit(self):
            with torch.no_grad():
                unbiased = variance * (total / (total - 1).clamp_min(1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return normed.to(own)


class _NormalizeOccupied(torch.autograd.Function):
    """Batch statistics, scaling and GELU as one step that keeps its input only.

    The pieces would keep four tensors of the size of the rows and read them many times; here the backward pass
    computes the normalised rows anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        occupied: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        count: torch.Tensor,
        total: torch.Tensor,
        eps: float,
        gelu: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        table, inside = _by_view(rows), _by_view(occupied)
        mean = _sum_rows(inside, table) / total  # (views, hidden)
        centered = table - mean.unsqueeze(1)
        squares = _sum_rows(inside, centered.square()) + (total - count) * mean.square()
        variance = squares / total
        scale = weight * (variance + eps).rsqrt()
        normed = torch.addcmul(bias.unsqueeze(1), centered, scale.unsqueeze(1), out=centered)
        if gelu:
            normed = nn.functional.gelu(normed)
        ctx.save_for_backward(rows, occupied, weight, bias, mean, (variance + eps).rsqrt(), total)
        ctx.gelu = gelu
        ctx.mark_non_differentiable(mean, variance)
        return _by_cloud(normed, rows), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, occupied, weight, bias, mean, deviation, total = ctx.saved_tensors
        table, inside, of_normed = _by_view(rows), _by_view(occupied), _by_view(gradient)
        scale = weight * deviation
        centered = table - mean.unsqueeze(1)
        if ctx.gelu:
            normed = torch.addcmul(bias.unsqueeze(1), centered, scale.unsqueeze(1))
            of_normed = torch.ops.aten.gelu_backward(of_normed, normed)
        of_bias = _sum_rows(inside, of_normed)
        of_weight = _sum_rows(inside, of_normed * centered) * deviation
        # In training, mean and variance move with every occupied row.
        share = scale / -total
        of_mean, of_centered = (of_bias * share).unsqueeze(1), (of_weight * deviation * share).unsqueeze(1)
        of_rows = torch.addcmul(of_mean, centered, of_centered, out=centered)
        of_rows.addcmul_(of_normed, scale.unsqueeze(1)).mul_(inside.unsqueeze(-1))
        return _by_cloud(of_rows, rows), None, of_weight, of_bias, None, None, None, None


def _by_view(rows: torch.Tensor) -> torch.Tensor:
    """`(batch, views, rows, ...)` as `(views, batch * rows, ...)`, a copy only where views are not in one piece."""
    return rows.transpose(0, 1).flatten(1, 2)


def _by_cloud(table: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `_by_view` for tensors of the shape of `like`."""
    return table.unflatten(1, (len(like), -1)).transpose(0, 1)


def _sum_rows(occupied: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum of the occupied rows: `(views, rows, hidden)` to `(views, hidden)`."""
    # Not a matrix product: autocast and TF32 would round the statistics. On a CPU a bag reads memory once.
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return (occupied.unsqueeze(-1) * values).sum(dim=1)
    views, rows, hidden_size = values.shape
    index = torch.arange(views * rows).view(views, rows)
    return nn.functional.embedding_bag(
        index, values.reshape(-1, hidden_size), mode="sum", per_sample_weights=occupied.to(values.dtype)
    )
