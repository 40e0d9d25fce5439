"""Batches of several training processes, treated as one.

Statistics of batch norms and contrastive losses depend on all clouds of a batch. In several processes each has a part
of the batch; within `joined_batches()` they compute the same as one process with all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

_is_joined = False


@contextmanager
def joined_batches(join: bool = True) -> Iterator[None]:
    """Let losses that compare the clouds of a batch compare those of all processes, which must run the same code.

    Args:
        join: False changes nothing.
    """
    global _is_joined
    before = _is_joined
    _is_joined = join
    try:
        yield
    finally:
        _is_joined = before


def is_joined() -> bool:
    """Return whether this is within `joined_batches()`."""
    return _is_joined


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate `(rows, ...)` of all processes in the order of their ranks, with a gradient."""
    return _GatherRows.apply(rows)


def rows_of_processes(rows: Tensor) -> list[int]:
    """Return how many rows each process has, which differ in the last batch of an epoch."""
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.full_like(counts[0], len(rows)))
    return torch.cat(counts).tolist()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = rows_of_processes(rows)
        # all_gather writes into tensors that must exist, be contiguous, and have one size.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(gathered, padded)
        ctx.first = sum(counts[: distributed.get_rank()])
        ctx.rows = len(rows)
        return torch.cat([table[:count] for table, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every process computes a loss of its own from the gathered rows.
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient[ctx.first :][: ctx.rows]


class JoinedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose batch statistics are those of all processes, on any device.

    torch's own `SyncBatchNorm` is for accelerators only.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        # torch's own norms take one number of dimensions each; this one stands for all of them.
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `(rows, channels, ...)`."""
        if not self.training:
            return super().forward(input)
        # Channels last, as one view: the computation is that of the cells of several views.
        rows = input.movedim(1, -1)
        table = rows.reshape(1, -1, rows.shape[-1])  # (1, rows, channels)
        weight, bias = (table.new_ones(1) if own is None else own for own in (self.weight, self.bias))
        if self.bias is None:
            bias = torch.zeros_like(weight)
        # Processes may have different numbers of rows.
        total = summed_over_processes(torch.full((1, 1), table.shape[1], dtype=torch.float32, device=table.device))
        normed, mean, variance = joined_norm(table, None, weight, bias, total, total, self.eps)
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                # As in torch: without momentum, running statistics are the mean over batches.
                momentum = 1 / self.num_batches_tracked if self.momentum is None else torch.tensor(self.momentum)
                # The running variance is the unbiased one, though the batch is normalized by the biased one.
                count = total[0, 0]
                unbiased = variance[0] * count / (count - 1).clamp(min=1)
                for running, new in ((self.running_mean, mean[0]), (self.running_var, unbiased)):
                    running.lerp_(new.to(running.dtype), momentum.to(running))
        return normed.view(rows.shape).movedim(-1, 1).to(input.dtype)


def summed_over_processes(values: Tensor) -> Tensor:
    """Return the sum of tensors of all processes, without a gradient."""
    values = values.detach().clone()
    distributed.all_reduce(values)
    return values


def joined_norm(
    rows: Tensor, occupied: Tensor | None, weight: Tensor, bias: Tensor, count: Tensor, total: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize the rows of each view by the batch statistics of all processes.

    Args:
        rows: `(views, rows, channels)` of this process.
        occupied: `(views, rows)`, 1 for rows that count, else 0; None if all count.
        weight: `(views, channels)` or `(channels,)`, the norm's gain.
        bias: As `weight`, the norm's shift.
        count: `(views, 1)`, number of rows that count in all processes.
        total: `(views, 1)`, divisor of the statistics; larger than `count` if rows of zeros count too.
        eps: Added to the variance.

    Returns:
        `(views, rows, channels)` in float32 or better; mean and variance `(views, channels)` without gradients.
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        weight, bias = (own.to(rows.dtype).expand(len(rows), -1) for own in (weight, bias))
        return _JoinedNorm.apply(rows, occupied, weight, bias, count, total, eps)


class _JoinedNorm(torch.autograd.Function):
    """Saves only its input; the backward pass sums two vectors per view over the processes."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        occupied: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        count: Tensor,
        total: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = summed_over_processes(_sum(rows, occupied)) / total  # (views, channels)
        centered = rows - mean.unsqueeze(1)
        # Two sums, as the difference of mean square and squared mean would lose digits.
        squares = summed_over_processes(_sum(centered.square(), occupied))
        variance = (squares + (total - count) * mean.square()) / total
        deviation = (variance + eps).rsqrt()
        ctx.save_for_backward(rows, occupied, weight, mean, deviation, total)
        ctx.mark_non_differentiable(mean, variance)
        return centered.mul_((weight * deviation).unsqueeze(1)).add_(bias.unsqueeze(1)), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        rows, occupied, weight, mean, deviation, total = ctx.saved_tensors
        centered = rows - mean.unsqueeze(1)
        grad_bias = _sum(gradient, occupied)
        grad_weight = _sum(gradient * centered, occupied) * deviation
        # Mean and variance depend on the rows of every process; the gradients of gain and shift stay apart, and are
        # averaged over the processes with all others.
        all_bias, all_weight = summed_over_processes(torch.stack([grad_bias, grad_weight]))
        scale = weight * deviation
        grad_rows = gradient * scale.unsqueeze(1)
        grad_rows -= (all_bias * scale / total).unsqueeze(1)
        grad_rows -= centered.mul_((all_weight * deviation * scale / total).unsqueeze(1))
        if occupied is not None:
            grad_rows *= occupied.unsqueeze(-1)
        return grad_rows, None, grad_weight, grad_bias, None, None, None


def _sum(values: Tensor, occupied: Tensor | None) -> Tensor:
    """Sum `(views, rows, channels)` over the rows that count."""
    return (values if occupied is None else values * occupied.unsqueeze(-1)).sum(dim=1)
