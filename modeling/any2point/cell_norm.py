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
    computes the normalised rows anew. Views know nothing of each other, so on CPU they go one by one, each small
    enough to stay in the cache from the first piece to the last.
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
        normed = torch.empty_like(rows)
        mean, variance = torch.empty_like(weight), torch.empty_like(weight)  # (views, hidden)
        for part in _parts(rows):
            some, here = rows[:, part], occupied[:, part]
            mean[part] = _sum_rows(here, some) / total[part]
            centered = some - mean[part].unsqueeze(1)  # (batch, views of the part, rows, hidden)
            squares = _sum_rows(here, centered.square()) + (total[part] - count[part]) * mean[part].square()
            variance[part] = squares / total[part]
            scale = weight[part] * (variance[part] + eps).rsqrt()
            torch.addcmul(bias[part].unsqueeze(1), centered, scale.unsqueeze(1), out=centered)
            normed[:, part] = nn.functional.gelu(centered) if gelu else centered
        ctx.save_for_backward(rows, occupied, weight, bias, mean, (variance + eps).rsqrt(), total)
        ctx.gelu = gelu
        ctx.mark_non_differentiable(mean, variance)
        return normed, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, occupied, weight, bias, mean, deviation, total = ctx.saved_tensors
        rows_gradient = torch.empty_like(rows)
        weight_gradient, bias_gradient = torch.empty_like(weight), torch.empty_like(weight)
        for part in _parts(rows):
            gain, spread, here = weight[part].unsqueeze(1), deviation[part].unsqueeze(1), occupied[:, part]
            standard = (rows[:, part] - mean[part].unsqueeze(1)).mul_(spread)
            of_normed = gradient[:, part]
            if ctx.gelu:
                normed = torch.addcmul(bias[part].unsqueeze(1), standard, gain)
                of_normed = torch.ops.aten.gelu_backward(of_normed, normed)
            bias_gradient[part] = _sum_rows(here, of_normed)
            weight_gradient[part] = _sum_rows(here, of_normed * standard)
            # In training, mean and variance move with every occupied row.
            of_mean, of_deviation = bias_gradient[part] / total[part], weight_gradient[part] / total[part]
            shared = torch.addcmul(of_mean.unsqueeze(1), standard, of_deviation.unsqueeze(1), out=standard)
            of_rows = torch.sub(of_normed, shared, out=shared).mul_(gain * spread)
            torch.mul(of_rows, here.unsqueeze(-1), out=rows_gradient[:, part])
        return rows_gradient, None, weight_gradient, bias_gradient, None, None, None, None


def _parts(rows: torch.Tensor) -> list[slice]:
    """The views of `(batch, views, rows, hidden)` that are normalised together."""
    views = rows.shape[1]
    together = 1 if rows.device.type == "cpu" and not torch.compiler.is_compiling() else views
    return [slice(view, view + together) for view in range(0, views, together)]


def _sum_rows(occupied: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum of the occupied rows over batch and cells: `(batch, views, rows, hidden)` to `(views, hidden)`."""
    # A product for speed; autocast would round the statistics to half precision.
    with torch.autocast(values.device.type, enabled=False):
        return (occupied.unsqueeze(-2) @ values).sum(dim=0).squeeze(-2)
