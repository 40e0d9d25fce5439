"""Maxima over neighbors, products with their sparse gradients, and batch norms fused with linear layers."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.dispatch import is_exporting
from hf_any3d.modeling.layers.direct_weights import is_unmodified


def largest(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum over the neighbors of `(centers, k, width)` and its first index; overwrites `rows`."""
    k = rows.shape[1]
    largest = rows.amax(dim=1)
    # Several times faster than a maximum with indices: all but the maxima become hugely negative, and of these the
    # first has the largest place, as places count down.
    places = torch.arange(k, 0, -1, device=rows.device, dtype=rows.dtype).unsqueeze(-1)
    rows.sub_(largest.unsqueeze(1))
    first = torch.add(places, rows, alpha=1e30, out=rows).amax(dim=1)
    return largest, (k - first).long().clamp_(0, k - 1)  # rows of NaN have no winner


@dataclass
class PooledGradient:
    """Gradient with respect to the input of the maximum: one value per center and channel, zero elsewhere.

    Args:
        values: `(centers, width)`.
        winners: `(centers, width)`, the neighbor that each value belongs to.
        k: Neighbors per center.
        parts: Parts of the centers.
    """

    values: Tensor
    winners: Tensor
    k: int
    parts: list[slice]

    def total(self) -> Tensor:
        """Sum over all rows: `(width,)`."""
        return self.values.sum(dim=0)

    def product(self, hidden: Iterable[Tensor]) -> Tensor:
        """Multiply the transposed gradient `(width, rows)` by other rows `(rows, hidden)`, given in parts."""
        return sum(self.transposed_times(rows, number) for number, rows in enumerate(hidden))

    def times(self, weight: Tensor, number: int) -> Tensor:
        """Multiply a part by `weight` `(width, hidden)`: `(rows, hidden)`."""
        # A bag is a row of the part: the weight's rows of the channels that it wins, times their gradients.
        channels, values, starts = self._by_row
        part = self.parts[number]
        width = self.values.shape[1]
        entries = slice(part.start * width, part.stop * width)
        return nn.functional.embedding_bag(
            channels[entries],
            weight,
            starts[part.start * self.k : part.stop * self.k] - entries.start,
            mode="sum",
            per_sample_weights=values[entries],
        )

    def add_to(self, out: Tensor, number: int) -> Tensor:
        """Add the gradient of a part to its rows `out` `(rows, width)`."""
        part = self.parts[number]
        out.view(-1, self.k, out.shape[1]).scatter_add_(
            1, self.winners[part].unsqueeze(1), self.values[part].unsqueeze(1)
        )
        return out

    def transposed_times(self, hidden: Tensor, number: int) -> Tensor:
        """Multiply a part, transposed `(width, rows)`, by other rows `(rows, hidden)`."""
        # A bag is a channel: its winning row of every center in the part, counted from the first row of that.
        winners = self.winners[self.parts[number]]
        rows = winners + torch.arange(len(winners), device=winners.device).unsqueeze(1) * self.k
        values = self.values[self.parts[number]]
        starts = torch.arange(rows.shape[1], device=rows.device) * len(rows)
        return nn.functional.embedding_bag(
            rows.T.flatten(), hidden, starts, mode="sum", per_sample_weights=values.T.flatten()
        )

    @cached_property
    def _by_row(self) -> tuple[Tensor, Tensor, Tensor]:
        """Channels and values of all entries, sorted by row, and the start of every row."""
        centers, width = self.winners.shape
        # numpy sorts small rows of int32 with the processor's vectors: by neighbor, then by channel.
        key = (self.winners * width + torch.arange(width)).int()
        key = torch.from_numpy(np.sort(key.numpy(), axis=1)).long()
        channels = key % width
        rows = key // width + torch.arange(centers).unsqueeze(1) * self.k
        count = count_index(rows.flatten(), centers * self.k)
        starts = count.cumsum(0) - count
        return channels.flatten(), self.values.gather(1, channels).flatten(), starts


def count_index(index: Tensor, count: int) -> Tensor:
    """Count how often each number from 0 to `count` - 1 occurs: `(count,)`."""
    # Not bincount: the length of its result depends on the data, so that a GPU would have to wait.
    return index.new_zeros(count).scatter_add_(0, index, torch.ones_like(index))


def pool_statistics(
    statistics: list[tuple[Tensor, Tensor]], shares: list[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return mean and variance `(channels,)` of all rows from those of their parts.

    Args:
        statistics: Mean and variance of each part, `(channels,)`.
        shares: Each part's share of the rows; numbers of Python, which no device has to be sent.
        dtype: To compute in.
    """
    mean, variance = (torch.zeros_like(statistics[0][0], dtype=dtype) for _ in range(2))
    for (part, _), share in zip(statistics, shares, strict=True):
        mean.add_(part, alpha=share)
    # Variance within the parts plus variance between them: no cancellation of large numbers.
    for (part, within), share in zip(statistics, shares, strict=True):
        variance.add_(within + (part - mean).square(), alpha=share)
    return mean, variance


def segment_mean(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """Return the mean of the rows `(rows, channels)` with each index: `(count, channels)`, 0 where there is none."""
    lengths = count_index(index, count)
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    # index_add takes a tenth of the time of scatter_add, which needs an index of the size of the values.
    total = wide.new_zeros(count, wide.shape[1]).index_add(0, index, wide)
    return (total / lengths.clamp(min=1)[:, None]).to(rows.dtype)


def segment_maximum(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """Return the maximum of the rows `(rows, channels)` with each index: `(count, channels)`, 0 where there is none.

    Equal maxima share the gradient.

    Args:
        rows: `(rows, channels)`.
        index: `(rows,)` integers, 0 to `count` - 1.
        count: Number of results.
    """
    # (count,), 0 where a result has no rows
    lengths = count_index(index, count)
    if is_exporting():
        # Exported formats do not support segments.
        largest = rows.new_full((count, rows.shape[1]), -torch.inf)
        largest = largest.scatter_reduce(0, index[:, None].expand_as(rows), rows, "amax")
    else:
        # Rows sorted by index are reduced in consecutive runs: several times faster than scatter_reduce.
        rows = rows.index_select(0, index.argsort(stable=True))
        largest = torch.segment_reduce(rows, "max", lengths=lengths, axis=0, unsafe=True)
    # Empty segments are -inf until here.
    return largest.masked_fill(lengths[:, None] == 0, 0)


def is_plain_training(linear: nn.Module, norm: nn.Module) -> bool:
    """Return whether a linear layer and its norm are unchanged modules of torch, in training and in full precision.

    Synchronized norms, adapters and observers replace these modules with other types or add hooks to them.
    """
    if not is_unmodified(linear, norm) or not norm.training:
        return False
    # Without a momentum a norm averages over all batches, which `update_running_statistics` does not.
    return linear.weight.dtype in (torch.float32, torch.float64) and norm.momentum is not None


def has_folded_norms(*pairs: tuple[nn.Module, nn.Module]) -> bool:
    """Return whether norms may become part of the layers before them: in evaluation, without gradients, unchanged."""
    if torch.compiler.is_compiling() or not all(is_unmodified(*pair) for pair in pairs):
        return False
    needs_gradient = any(weight.requires_grad for pair in pairs for layer in pair for weight in layer.parameters())
    # Norms without running statistics use those of the batch in evaluation, too.
    has_statistics = all(norm.track_running_stats and not norm.training for _, norm in pairs)
    return has_statistics and not (torch.is_grad_enabled() and needs_gradient)


def folded(linear: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a linear layer and the norm after it, with running statistics, in full precision."""
    wide = torch.promote_types(linear.weight.dtype, torch.float32)
    mean = norm.running_mean.to(wide)
    variance = norm.running_var.to(wide)
    # gain * (W x + b - mean) + shift, as weight and bias of one layer
    gain = norm.weight.to(wide) * (variance + norm.eps).rsqrt()
    bias = -mean if linear.bias is None else linear.bias.to(wide) - mean
    return linear.weight.to(wide) * gain.unsqueeze(1), bias * gain + norm.bias.to(wide)


@torch.no_grad()
def update_running_statistics(
    norm: nn.BatchNorm1d, bias: Tensor | None, mean: Tensor, variance: Tensor, rows: int
) -> None:
    """Update running statistics as the norm itself would.

    Args:
        norm: Batch norm to update.
        bias: Bias of the preceding layer, which `mean` does not include.
        mean: `(channels,)`.
        variance: `(channels,)`, biased (divided by `rows`).
        rows: Number of rows.

    Raises:
        ValueError: There is a single row, which has no variance; torch's own norm says the same.
    """
    if rows < 2:
        raise ValueError(f"{rows} row in training; expected at least 2 points in the neighborhoods of a batch")
    norm.num_batches_tracked += 1
    # Means move with the bias that was left out; variances do not.
    norm.running_mean.lerp_(mean if bias is None else mean + bias, norm.momentum)
    norm.running_var.lerp_(variance * (rows / (rows - 1)), norm.momentum)
