"""The backward pass of `pooled_blocks`; notation as there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.any2point.neighborhoods import Neighborhoods
from hf_any3d.modeling.any2point.pooled_blocks import Block, Kept, pooled_blocks


@dataclass
class PooledGradient:
    """The gradient in front of the maximum: one value for each centre and channel, zero for all other neighbours.

    Args:
        values: `(centers, width)`.
        winners: `(centers, width)`, the neighbour that each value belongs to.
        k: Neighbours of a centre.
    """

    values: torch.Tensor
    winners: torch.Tensor
    k: int

    def total(self) -> torch.Tensor:
        """Sum over all rows, `(width,)`."""
        return self.values.sum(dim=0)

    def rows(self, group: slice) -> torch.Tensor:
        """`(centers, width)`, the rows of the winners, counted from the first row of a part."""
        winners = self.winners[group]
        return winners + torch.arange(len(winners), device=winners.device).unsqueeze(1) * self.k

    def transposed_times(self, hidden: torch.Tensor, group: slice) -> torch.Tensor:
        """Product of the transposed gradient `(width, rows)` with a part of other rows."""
        rows = self.rows(group)
        starts = torch.arange(rows.shape[1], device=rows.device) * len(rows)
        return nn.functional.embedding_bag(
            rows.T.flatten(), hidden, starts, mode="sum", per_sample_weights=self.values[group].T.flatten()
        )

    def add_times(self, out: torch.Tensor, weight: torch.Tensor, group: slice) -> torch.Tensor:
        """Add the product of a part with `weight` `(width, hidden)` to its rows `out`."""
        scaled = self.values[group].unsqueeze(-1) * weight  # (centers, width, hidden)
        return out.index_add_(0, self.rows(group).flatten(), scaled.flatten(0, 1))

    def add_to(self, out: torch.Tensor, group: slice) -> torch.Tensor:
        """Add the gradient of a part to its rows `out` `(rows, width)`."""
        centers = len(self.winners[group])
        places = self.winners[group].unsqueeze(1)
        out.view(centers, self.k, -1).scatter_add_(1, places, self.values[group].unsqueeze(1))
        return out

    def add_to_features(self, out: torch.Tensor, hoods: Neighborhoods) -> None:
        """Add the gradient of all rows to the features `(points, width / 2)` they were gathered from."""
        half = out.shape[1]
        out.scatter_add_(0, hoods.neighbors.gather(1, self.winners[:, :half]), self.values[:, :half])
        out.index_add_(0, hoods.centers, self.values[:, half:])


@dataclass
class RowsGradient:
    """The gradient behind a block that another one follows: `values` `(rows, width)`."""

    values: torch.Tensor
    k: int

    def total(self) -> torch.Tensor:
        """Sum over all rows, `(width,)`."""
        return self.values.sum(dim=0)

    def transposed_times(self, hidden: torch.Tensor, group: slice) -> torch.Tensor:
        """Product of the transposed gradient `(width, rows)` with a part of other rows."""
        return self._part(group).T @ hidden

    def add_times(self, out: torch.Tensor, weight: torch.Tensor, group: slice) -> torch.Tensor:
        """Add the product of a part with `weight` `(width, hidden)` to its rows `out`."""
        return out.addmm_(self._part(group), weight)

    def add_to(self, out: torch.Tensor, group: slice) -> torch.Tensor:
        """Add the gradient of a part to its rows `out` `(rows, width)`."""
        return out.add_(self._part(group))

    def add_to_features(self, out: torch.Tensor, hoods: Neighborhoods) -> None:
        """Add the gradient of all rows to the features `(points, width / 2)` they were gathered from."""
        half = out.shape[1]
        for group, _ in hoods.parts():
            rows = self._part(group)
            out.index_add_(0, hoods.neighbors[group].flatten(), rows[:, :half])
            out.index_add_(0, hoods.centers[group], rows.view(-1, self.k, 2 * half)[:, :, half:].sum(dim=1))

    def _part(self, group: slice) -> torch.Tensor:
        return self.values[group.start * self.k : group.stop * self.k]


@torch.library.custom_op("hf_any3d::pooled_blocks_backward", mutates_args=())
def pooled_blocks_backward(
    gradient: torch.Tensor,
    features: torch.Tensor,
    neighbors: torch.Tensor,
    centers: torch.Tensor,
    offsets: torch.Tensor,
    frequencies: torch.Tensor,
    weights: list[torch.Tensor],
    eps: list[float],
    results: list[torch.Tensor],
) -> list[torch.Tensor]:
    """Gradients of `pooled_blocks`.

    Args:
        gradient: `(centers, width)` of the pooled features.
        features: An argument of the forward pass, as the next six.
        neighbors: Neighbours.
        centers: Centres.
        offsets: Offsets.
        frequencies: Frequencies.
        weights: Weights.
        eps: Epsilons.
        results: What the forward pass returned.

    Returns:
        The gradient of `features`, then those of `weights`.
    """
    hoods = Neighborhoods(features, neighbors, centers, offsets, frequencies)
    blocks = Block.unpack(weights, eps)
    pooled, winners, *rest = results
    kept = [Kept(*rest[Kept.FIELDS * i : Kept.FIELDS * (i + 1)]) for i in range(len(blocks))]
    inputs = rest[Kept.FIELDS * len(blocks) :]
    k = neighbors.shape[1]
    behind: PooledGradient | RowsGradient = PooledGradient(gradient.where(pooled > 0, 0), winners, k)
    gradients: list[torch.Tensor] = []
    for number in reversed(range(len(blocks))):
        block, one = blocks[number], kept[number]
        of_hidden, of_expand = _through_expand(hoods, block, one, behind)
        of_reduced, of_gain, of_shift = _through_reduce_norm(block, one, of_hidden)
        if number:
            behind, of_reduce = _to_rows(hoods, block, inputs[number - 1], of_reduced, behind)
        else:
            of_features, of_reduce = _to_features(hoods, block, of_reduced, behind)
        of_biases = torch.zeros_like(block.reduce_bias), torch.zeros_like(block.expand_bias)
        of_reduce = [of_reduce, of_biases[0], of_gain, of_shift]
        gradients = [*of_reduce, of_expand[0], of_biases[1], *of_expand[1:], *gradients]
    return [of_features, *gradients]


def _through_expand(
    hoods: Neighborhoods, block: Block, kept: Kept, behind: PooledGradient | RowsGradient
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Gradients of the rows in front of the second linear layer, and of that layer and its norm."""
    count = len(kept.reduced)
    product = torch.zeros_like(block.expand)  # (width, hidden), gradient times hidden rows
    for group, part in hoods.parts():
        product += behind.transposed_times(kept.hidden(block, part), group)
    of_shift = behind.total()
    deviation = (kept.expand_variance + block.expand_eps).rsqrt()
    gain = block.expand_gain * deviation
    # The rows behind the layer are not kept. Their products with the gradient and with the hidden rows follow from
    # the layer's weight and from the hidden rows' products with the gradient and with themselves.
    of_gain = deviation * ((block.expand * product).sum(dim=1) - kept.expand_mean * of_shift)
    share = (gain * deviation * of_gain).unsqueeze(1) * block.expand  # (width, hidden)
    of_weight = gain.unsqueeze(1) * (product - of_shift.outer(kept.hidden_mean)) - share @ kept.hidden_covariance
    weight = gain.unsqueeze(1) * block.expand
    spread = block.expand.T @ share / count  # (hidden, hidden)
    constant = kept.hidden_mean @ spread - of_shift @ weight / count
    of_hidden = torch.empty_like(kept.reduced)
    for group, part in hoods.parts():
        hidden = kept.hidden(block, part)
        rows = torch.addmm(constant, hidden, spread, alpha=-1, out=of_hidden[part])
        behind.add_times(rows, weight, group).mul_(hidden > 0)
    return of_hidden, [of_weight, of_gain, of_shift]


def _through_reduce_norm(
    block: Block, kept: Kept, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the rows behind the first linear layer, in the place of `gradient`, and of gain and shift."""
    count = len(gradient)
    deviation = (kept.reduce_variance + block.reduce_eps).rsqrt()
    of_shift = gradient.sum(dim=0)
    parts = zip(gradient.split(1024), kept.reduced.split(1024), strict=True)
    of_gain = sum(((rows - kept.reduce_mean) * part).sum(dim=0) for part, rows in parts) * deviation
    gain = block.reduce_gain * deviation
    slope = gain * deviation * of_gain / count
    constant = kept.reduce_mean * slope - gain * of_shift / count
    for part, rows in zip(gradient.split(1024), kept.reduced.split(1024), strict=True):
        part.mul_(gain).add_(constant).addcmul_(rows, slope, value=-1)
    return gradient, of_gain, of_shift


def _to_rows(
    hoods: Neighborhoods,
    block: Block,
    inputs: torch.Tensor,
    of_reduced: torch.Tensor,
    behind: PooledGradient | RowsGradient,
) -> tuple[RowsGradient, torch.Tensor]:
    """Gradients behind the block before, its ReLU passed, and of the first linear layer."""
    of_weight = torch.zeros_like(block.reduce)
    of_inputs = torch.empty_like(inputs)
    for group, part in hoods.parts():
        of_weight += of_reduced[part].T @ inputs[part]
        rows = torch.mm(of_reduced[part], block.reduce, out=of_inputs[part])
        behind.add_to(rows, group).mul_(inputs[part] > 0)
    return RowsGradient(of_inputs, behind.k), of_weight


def _to_features(
    hoods: Neighborhoods, block: Block, of_reduced: torch.Tensor, behind: PooledGradient | RowsGradient
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the features that rows were gathered from, and of the first linear layer."""
    of_weight = torch.zeros_like(block.reduce)
    points, half = hoods.features.shape
    # Gathering is linear: narrow rows are brought back to the points first and widened there.
    as_neighbor = of_reduced.new_zeros(points, of_reduced.shape[1])
    as_center = torch.zeros_like(as_neighbor)
    for group, part in hoods.parts():
        rows = of_reduced[part]
        of_weight += rows.T @ hoods.rows(group)
        as_neighbor.index_add_(0, hoods.neighbors[group].flatten(), rows)
        as_center.index_add_(0, hoods.centers[group], rows.view(-1, behind.k, rows.shape[1]).sum(dim=1))
    of_features = as_neighbor @ block.reduce[:, :half] + as_center @ block.reduce[:, half:]
    behind.add_to_features(of_features, hoods)
    return of_features, of_weight


@pooled_blocks_backward.register_fake
def _gradient_shapes(gradient, features, neighbors, centers, offsets, frequencies, weights, eps, results):
    return [torch.empty_like(features), *map(torch.empty_like, weights)]


def _keep(ctx: Any, inputs: tuple, output: list[torch.Tensor]) -> None:
    *tensors, weights, eps = inputs
    ctx.eps, ctx.counts = eps, (len(tensors), len(weights))
    ctx.save_for_backward(*tensors, *weights, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, gradients: list[torch.Tensor]) -> tuple[Any, ...]:
    tensors, weights = ctx.counts
    saved = list(ctx.saved_tensors)
    features, *of_weights = pooled_blocks_backward(
        gradients[0], *saved[:tensors], saved[tensors : tensors + weights], ctx.eps, saved[tensors + weights :]
    )
    return features, None, None, None, None, of_weights, None


pooled_blocks.register_autograd(_backward, setup_context=_keep)

__all__ = ["pooled_blocks", "pooled_blocks_backward"]
