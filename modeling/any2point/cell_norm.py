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
        rows = rows.to(self.weight.dtype)
        if not self.training:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            normed = torch.addcmul((self.bias - self.running_mean * scale).unsqueeze(1), rows, scale.unsqueeze(1))
            return nn.functional.gelu(normed) if gelu else normed
        occupied = members.occupied.to(rows.dtype)  # (batch, views, rows)
        count = occupied.sum(dim=(0, 2)).unsqueeze(-1)  # (views, 1)
        # A copy, because a compiled graph takes no tensor for two arguments.
        total = torch.full_like(count, len(rows) * members.cells) if self.count_empty else count.clone()
        normed, mean, variance = _NormalizeOccupied.apply(
            rows, occupied, self.weight, self.bias, count, total, self.eps, gelu
        )
        if members.first_visit(self):
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (total / (total - 1).clamp_min(1)), self.momentum)
        return normed


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
        mean = _sum_rows(occupied, rows) / total  # (views, hidden)
        centered = rows - mean.unsqueeze(1)
        variance = (_sum_rows(occupied, centered.square()) + (total - count) * mean.square()) / total
        deviation = (variance + eps).rsqrt()
        ctx.save_for_backward(rows, occupied, weight, bias, mean, deviation, total)
        ctx.gelu = gelu
        normed = torch.addcmul(bias.unsqueeze(1), centered, (weight * deviation).unsqueeze(1))
        ctx.mark_non_differentiable(mean, variance)
        return nn.functional.gelu(normed) if gelu else normed, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, occupied, weight, bias, mean, deviation, total = ctx.saved_tensors
        standard = (rows - mean.unsqueeze(1)) * deviation.unsqueeze(1)
        if ctx.gelu:
            normed = torch.addcmul(bias.unsqueeze(1), standard, weight.unsqueeze(1))
            gradient = torch.ops.aten.gelu_backward(gradient, normed)
        bias_gradient = _sum_rows(occupied, gradient)
        weight_gradient = _sum_rows(occupied, gradient * standard)
        # In training, mean and variance move with every occupied row.
        shared = torch.addcmul((bias_gradient / total).unsqueeze(1), standard, (weight_gradient / total).unsqueeze(1))
        rows_gradient = (gradient - shared) * (weight * deviation).unsqueeze(1) * occupied.unsqueeze(-1)
        return rows_gradient, None, weight_gradient, bias_gradient, None, None, None, None


def _sum_rows(occupied: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum of the occupied rows over batch and cells: `(batch, views, rows, hidden)` to `(views, hidden)`."""
    # A product for speed; autocast would round the statistics to half precision.
    with torch.autocast(values.device.type, enabled=False):
        return (occupied.unsqueeze(-2) @ values).sum(dim=0).squeeze(-2)
