"""Batch norm, ReLU and a linear layer on many rows.

The input may be all sums of one of many rows and one of few (the points of a grid around every point). The fused
implementation saves only the summands, computes the norm's statistics from theirs, and processes rows in parts that
stay in the cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hf_any3d.modeling.kernels.dispatch import without_autocast
from hf_any3d.modeling.layers.forward_contract import is_unmodified

# Numbers per part: on the CPU as many as fit into the core's cache, elsewhere 256 MiB.
_PART_CPU, _PART = 1 << 18, 1 << 26


def normed_linear_plain(rows: Tensor, few: Tensor | None, norm: nn.BatchNorm1d, linear: nn.Linear) -> Tensor:
    """Compute `linear(relu(norm(rows + few)))`; in training, the norm updates its running statistics.

    Args:
        rows: `(rows, channels)`.
        few: `(few, channels)`, each added to every row, or None.
        norm: Norm of `channels`.
        linear: Layer with `channels` inputs.

    Returns:
        `(rows, few, out_channels)`; `(rows, 1, out_channels)` without `few`.
    """
    sums = rows.unsqueeze(1) if few is None else rows.unsqueeze(1) + few
    return linear(torch.relu(norm(sums.flatten(0, 1)))).view(*sums.shape[:2], -1)


def is_plain(rows: Tensor, few: Tensor | None, norm: nn.BatchNorm1d, linear: nn.Linear) -> bool:
    """Return whether both layers are unchanged modules."""
    return is_unmodified(norm, linear)


def normed_linear_fused(rows: Tensor, few: Tensor | None, norm: nn.BatchNorm1d, linear: nn.Linear) -> Tensor:
    """Compute `normed_linear_plain`; saves only its input."""
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


def _statistics(rows: Tensor, few: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Compute mean and variance over all sums, `(channels,)`, and update the norm's running statistics."""
    # Column sums in parts are several times faster than var_mean.
    mean = rows.mean(dim=0, dtype=torch.float32)
    variance = sum((rows[part] - mean).square_().sum(dim=0) for part in _parts(rows, few)) / len(rows)
    few_variance, few_mean = torch.var_mean(few.float(), dim=0, correction=0)
    # Every row is added to every one of `few`, so over all sums the two are independent.
    mean, variance = mean + few_mean, variance + few_variance
    count = len(rows) * len(few)
    norm.num_batches_tracked.add_(1)
    # As in torch: without momentum, running statistics are the mean over batches.
    momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((variance * (count / max(count - 1, 1))).to(norm.running_var.dtype), momentum)
    return mean, variance


def _parts(rows: Tensor, few: Tensor) -> Iterator[slice]:
    size = max(1, (_PART_CPU if rows.device.type == "cpu" else _PART) // few.numel())
    return (slice(start, start + size) for start in range(0, len(rows), size))


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        few: Tensor,
        mean: Tensor,
        scale: Tensor,
        gain: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        batch_statistics: bool,
    ) -> Tensor:
        ctx.save_for_backward(rows, few, mean, scale, gain, shift, weight)
        ctx.batch_statistics = batch_statistics
        output = rows.new_empty(len(rows), len(few), len(weight))
        for part in _parts(rows, few):
            inputs = _linear_input(rows[part], few, mean, scale, gain, shift)
            inputs = inputs.flatten(0, 1).to(weight.dtype)
            torch.addmm(bias, inputs, weight.T, out=output[part].view(len(inputs), -1))
        return output

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, few, mean, scale, gain, shift, weight = ctx.saved_tensors
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_rows = torch.empty_like(rows, dtype=torch.float32)
        grad_few = torch.zeros_like(few, dtype=torch.float32)
        grad_gain, grad_shift = torch.zeros_like(mean), torch.zeros_like(mean)
        for part in _parts(rows, few):
            inputs = _linear_input(rows[part], few, mean, scale, gain, shift)  # (rows, few, channels)
            leaving = gradient[part].flatten(0, 1)
            grad_weight += leaving.T @ inputs.flatten(0, 1).to(leaving.dtype)
            grad_norm = (leaving @ weight).view_as(inputs)
            grad_norm = torch.ops.aten.threshold_backward(grad_norm.float(), inputs, 0)
            torch.sum(grad_norm, dim=1, out=grad_rows[part])
            summed = grad_norm.sum(dim=0)
            grad_few += summed
            grad_shift += summed.sum(dim=0)
            # Two sums instead of a copy of the normed rows: the product is linear in both summands of a row.
            grad_gain += (grad_rows[part] * (rows[part] - mean)).sum(dim=0) + (summed * few).sum(dim=0)
        grad_gain *= scale
        factor = scale * gain
        grad_rows *= factor
        grad_few *= factor
        if ctx.batch_statistics:
            # The gradient of a row through the statistics is a linear function of the row.
            many, times = len(rows), len(few)
            average = factor * grad_shift / (many * times)
            slope = factor * scale * grad_gain / (many * times)
            middle = few.float().mean(dim=0) - mean
            grad_rows -= times * (average + slope * middle)
            grad_rows.addcmul_(rows.float(), slope * times, value=-1)
            center = rows.float().mean(dim=0) - mean
            grad_few -= many * (average + slope * (few + center))
        grad_bias = gradient.sum(dim=(0, 1))
        return (
            grad_rows.to(rows.dtype),
            grad_few.to(few.dtype),
            None,
            None,
            grad_gain.to(gain.dtype),
            grad_shift.to(shift.dtype),
            grad_weight.to(weight.dtype),
            grad_bias,
            None,
        )


def _linear_input(rows: Tensor, few: Tensor, mean: Tensor, scale: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Compute the linear layer's input, `(rows, few, channels)`."""
    factor = scale * gain
    return torch.add((rows * factor).unsqueeze(1), torch.addcmul(shift - mean * factor, few, factor)).relu_()
