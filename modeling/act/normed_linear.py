"""Batch norm, ReLU and a linear layer on many rows as one operation that keeps only the rows in front of it.

Rows may be all sums of one of many rows and one of few (points of a grid that is laid over every place): then only the
summands are kept, and the norm's statistics follow from theirs. Rows are worked on in parts that stay in the cache.

Numbers and gradients are those of the plain modules up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

# Numbers of a part: on CPU as many as the core's cache keeps, elsewhere 256 MiB of them.
_PART_CPU, _PART = 1 << 18, 1 << 26


def normed_linear(
    rows: torch.Tensor, few: torch.Tensor | None, norm: nn.BatchNorm1d, linear: nn.Linear
) -> torch.Tensor:
    """`linear(relu(norm(rows + few)))`, with the norm's statistics updated in training.

    Args:
        rows: `(rows, channels)`.
        few: `(few, channels)`, each added to every row, or None for nothing.
        norm: Norm of `channels`.
        linear: Layer from `channels` on.

    Returns:
        `(rows, few, out_channels)`; `(rows, 1, out_channels)` without `few`.
    """
    few = rows.new_zeros(1, rows.shape[1]) if few is None else few
    batch_statistics = norm.training
    with torch.no_grad():
        mean, variance = _statistics(rows, few, norm) if batch_statistics else (norm.running_mean, norm.running_var)
    return _NormedLinear.apply(
        rows,
        few,
        mean,
        (variance + norm.eps).rsqrt(),
        norm.weight,
        norm.bias,
        linear.weight.to(rows.dtype),
        linear.bias.to(rows.dtype),
        batch_statistics,
    )


def _statistics(rows: torch.Tensor, few: torch.Tensor, norm: nn.BatchNorm1d) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over all sums, `(channels,)`, entered into the norm's running ones."""
    # By columns and in parts, which is several times faster than var_mean.
    mean = rows.mean(dim=0, dtype=torch.float32)
    variance = sum((rows[part] - mean).square_().sum(dim=0) for part in _parts(rows, few)) / len(rows)
    of_few, mean_of_few = torch.var_mean(few.float(), dim=0, correction=0)
    mean, variance = mean + mean_of_few, variance + of_few
    count = len(rows) * len(few)
    norm.num_batches_tracked.add_(1)
    # As in torch: without a momentum statistics are the plain mean over batches.
    momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((variance * (count / max(count - 1, 1))).to(norm.running_var.dtype), momentum)
    return mean, variance


def _parts(rows: torch.Tensor, few: torch.Tensor) -> Iterator[slice]:
    size = max(1, (_PART_CPU if rows.device.type == "cpu" else _PART) // few.numel())
    return (slice(start, start + size) for start in range(0, len(rows), size))


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        few: torch.Tensor,
        mean: torch.Tensor,
        scale: torch.Tensor,
        gain: torch.Tensor,
        shift: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        batch_statistics: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, few, mean, scale, gain, shift, weight)
        ctx.batch_statistics = batch_statistics
        output = rows.new_empty(len(rows), len(few), len(weight))
        for part in _parts(rows, few):
            entering = _entering(rows[part], few, mean, scale, gain, shift)
            entering = entering.flatten(0, 1).to(weight.dtype)
            torch.addmm(bias, entering, weight.T, out=output[part].view(len(entering), -1))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, few, mean, scale, gain, shift, weight = ctx.saved_tensors
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        of_rows = torch.empty_like(rows, dtype=torch.float32)
        of_few = torch.zeros_like(few, dtype=torch.float32)
        of_gain, of_shift = torch.zeros_like(mean), torch.zeros_like(mean)
        for part in _parts(rows, few):
            entering = _entering(rows[part], few, mean, scale, gain, shift)  # (rows, few, channels)
            leaving = gradient[part].flatten(0, 1)
            of_weight += leaving.T @ entering.flatten(0, 1).to(leaving.dtype)
            behind = (leaving @ weight).view_as(entering)
            behind = torch.ops.aten.threshold_backward(behind.float(), entering, 0)
            torch.sum(behind, dim=1, out=of_rows[part])
            summed = behind.sum(dim=0)
            of_few += summed
            of_shift += summed.sum(dim=0)
            # Twice over the part instead of a copy of the normed rows: the sum of products splits as the rows do.
            of_gain += (of_rows[part] * (rows[part] - mean)).sum(dim=0) + (summed * few).sum(dim=0)
        of_gain *= scale
        factor = scale * gain
        of_rows *= factor
        of_few *= factor
        if ctx.batch_statistics:
            # What every row gets back through the statistics is a linear function of the row.
            many, times = len(rows), len(few)
            average = factor * of_shift / (many * times)
            slant = factor * scale * of_gain / (many * times)
            middle = few.float().mean(dim=0) - mean
            of_rows -= times * (average + slant * middle)
            of_rows.addcmul_(rows.float(), slant * times, value=-1)
            centre = rows.float().mean(dim=0) - mean
            of_few -= many * (average + slant * (few + centre))
        of_bias = gradient.sum(dim=(0, 1))
        return (
            of_rows.to(rows.dtype),
            of_few.to(few.dtype),
            None,
            None,
            of_gain.to(gain.dtype),
            of_shift.to(shift.dtype),
            of_weight.to(weight.dtype),
            of_bias,
            None,
        )


def _entering(
    rows: torch.Tensor,
    few: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    gain: torch.Tensor,
    shift: torch.Tensor,
) -> torch.Tensor:
    """What enters the linear layer, `(rows, few, channels)`."""
    factor = scale * gain
    return torch.add((rows * factor).unsqueeze(1), torch.addcmul(shift - mean * factor, few, factor)).relu_()
