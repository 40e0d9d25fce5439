"""The backward pass of `pooled_blocks`; notation as there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from hf_any3d.modeling.any2point.neighborhoods import Neighborhoods
from hf_any3d.modeling.any2point.pooled_blocks import Block, Kept, pooled_blocks
from hf_any3d.modeling.pooling_rows import PooledGradient


class _PooledGradient(PooledGradient):
    """The gradient in front of the maximum, with what the first block needs."""

    def add_product(self, out: torch.Tensor, weight: torch.Tensor, number: int) -> torch.Tensor:
        """Add the product of a part with `weight` `(width, hidden)` to `out` `(rows, hidden)`."""
        return out.add_(self.times(weight, number))

    def add_to_features(self, out: torch.Tensor, hoods: Neighborhoods) -> None:
        """Add the gradient of all rows to the features `(points, width / 2)` they were gathered from."""
        half = out.shape[1]
        out.scatter_add_(0, hoods.neighbors.gather(1, self.winners[:, :half]), self.values[:, :half])
        out.index_add_(0, hoods.centers, self.values[:, half:])


@dataclass
class RowsGradient:
    """The gradient behind a block that another one follows.

    Args:
        parts: For each part `(rows, width)`.
        sum: `(width,)` over all rows.
        times_hidden: `(width, hidden)`, product of its transpose with the rows that entered the second linear layer.
        of_features: `(points, width / 2)`, what reaches the features past the block where it is the first one.
    """

    parts: list[torch.Tensor]
    sum: torch.Tensor
    times_hidden: torch.Tensor
    of_features: torch.Tensor

    def total(self) -> torch.Tensor:
        """Sum over all rows, `(width,)`."""
        return self.sum

    def product(self, hidden: Iterable[torch.Tensor]) -> torch.Tensor:
        """Product of the transposed gradient `(width, rows)` with the block's hidden rows, known already."""
        return self.times_hidden

    def add_product(self, out: torch.Tensor, weight: torch.Tensor, number: int) -> torch.Tensor:
        """Add the product of a part with `weight` `(width, hidden)` to `out` `(rows, hidden)`."""
        return out.addmm_(self.parts[number], weight)

    def add_to(self, out: torch.Tensor, number: int) -> torch.Tensor:
        """Add the gradient of a part to its rows `out` `(rows, width)`."""
        return out.add_(self.parts[number])

    def add_to_features(self, out: torch.Tensor, hoods: Neighborhoods) -> None:
        """Add the gradient of all rows to the features `(points, width / 2)` they were gathered from."""
        out.add_(self.of_features)


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
    parts = hoods.parts()
    kept = Kept.unpack(rest, len(blocks), len(parts))
    behind: _PooledGradient | RowsGradient
    behind = _PooledGradient(gradient.where(pooled > 0, 0), winners, neighbors.shape[1], parts)
    gradients: list[torch.Tensor] = []
    for number in reversed(range(len(blocks))):
        block, one = blocks[number], kept[number]
        of_reduced, of_norm, of_expand = _through_expand(hoods, block, one, behind)
        if number:
            hidden = kept[number - 1].hidden(blocks[number - 1])
            behind, of_reduce = _to_rows(hoods, block, one.inputs, of_reduced, behind, hidden, first=number == 1)
        else:
            of_features, of_reduce = _to_features(hoods, block, of_reduced, behind)
        of_biases = torch.zeros_like(block.reduce_bias), torch.zeros_like(block.expand_bias)
        of_reduce = [of_reduce, of_biases[0], *of_norm]
        gradients = [*of_reduce, of_expand[0], of_biases[1], *of_expand[1:], *gradients]
    return [of_features, *gradients]


@dataclass
class ReducedGradient:
    """The gradient behind the first linear layer of a block, made in parts from that behind its norm.

    Args:
        behind: For each part `(rows, hidden)`, the gradient behind the norm.
        reduced: For each part `(rows, hidden)`, what left the linear layer.
        gain: `(hidden,)`, factors of `behind`.
        slope: `(hidden,)`, factors of `reduced`: in training the statistics move with every row.
        constant: `(hidden,)`.
    """

    behind: list[torch.Tensor]
    reduced: list[torch.Tensor]
    gain: torch.Tensor
    slope: torch.Tensor
    constant: torch.Tensor

    def rows(self, numbers: slice) -> torch.Tensor:
        """The rows `(rows, hidden)` of some parts together."""
        behind, reduced = self.behind[numbers], self.reduced[numbers]
        sizes = [len(rows) for rows in behind]
        together = self.gain.new_empty(sum(sizes), len(self.gain))
        for out, rows, entered in zip(together.split(sizes), behind, reduced, strict=True):
            torch.addcmul(self.constant, rows, self.gain, out=out).addcmul_(entered, self.slope)
        return together


def _through_expand(
    hoods: Neighborhoods, block: Block, kept: Kept, behind: _PooledGradient | RowsGradient
) -> tuple[ReducedGradient, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """The gradient behind the first linear layer; gradients of its norm; of the second layer with its norm."""
    product = behind.product(kept.hidden(block))  # (width, hidden)
    of_shift = behind.total()
    deviation = (kept.expand_variance + block.expand_eps).rsqrt()
    gain = block.expand_gain * deviation
    # The rows behind the layer are not kept. Their products with the gradient and with the hidden rows follow from
    # the layer's weight and from the hidden rows' products with the gradient and with themselves.
    of_gain = deviation * ((block.expand * product).sum(dim=1) - kept.expand_mean * of_shift)
    share = (gain * deviation * of_gain).unsqueeze(1) * block.expand  # (width, hidden)
    of_weight = gain.unsqueeze(1) * (product - of_shift.outer(kept.hidden_mean)) - share @ kept.hidden_covariance
    weight = gain.unsqueeze(1) * block.expand
    spread = block.expand.T @ share / -hoods.count  # (hidden, hidden)
    constant = kept.hidden_mean @ -spread - of_shift @ weight / hoods.count
    # Part by part: small pieces of memory come from what was freed before, a large one is new at every step.
    of_hidden: list[torch.Tensor] = []
    total, moment = torch.zeros_like(block.reduce_gain), torch.zeros_like(block.reduce_gain)
    for number, (hidden, reduced) in enumerate(zip(kept.hidden(block), kept.reduced, strict=True)):
        rows = torch.addmm(constant, hidden, spread)
        of_hidden.append(rows)
        behind.add_product(rows, weight, number)
        torch.ops.aten.threshold_backward.grad_input(rows, hidden, 0, grad_input=rows)  # the ReLU
        total += rows.sum(dim=0)
        moment += torch.sub(reduced, kept.reduce_mean, out=hidden).mul_(rows).sum(dim=0)
    return *_through_norm(block, kept, hoods.count, of_hidden, total, moment), (of_weight, of_gain, of_shift)


def _through_norm(
    block: Block, kept: Kept, count: int, of_hidden: list[torch.Tensor], total: torch.Tensor, moment: torch.Tensor
) -> tuple[ReducedGradient, tuple[torch.Tensor, ...]]:
    """The gradient in front of the first norm, from the sum of that behind it and of its product with the rows."""
    deviation = (kept.reduce_variance + block.reduce_eps).rsqrt()
    gain = block.reduce_gain * deviation
    slope = gain * deviation.square() * moment / -count
    constant = -kept.reduce_mean * slope - gain * total / count
    return ReducedGradient(of_hidden, kept.reduced, gain, slope, constant), (moment * deviation, total)


def _to_rows(
    hoods: Neighborhoods,
    block: Block,
    inputs: list[torch.Tensor],
    of_reduced: ReducedGradient,
    behind: _PooledGradient | RowsGradient,
    hidden_before: Iterable[torch.Tensor],
    first: bool,
) -> tuple[RowsGradient, torch.Tensor]:
    """Gradients behind the block before, its ReLU passed, and of the first linear layer."""
    of_weight = torch.zeros_like(block.reduce)
    width = block.reduce.shape[1]
    of_features = torch.zeros_like(hoods.features)
    gradient = RowsGradient([], block.reduce.new_zeros(width), torch.zeros_like(block.expand), of_features)
    for number, (part, entered, hidden) in enumerate(zip(hoods.parts(), inputs, hidden_before, strict=True)):
        reduced = of_reduced.rows(slice(number, number + 1))
        of_weight.addmm_(reduced.T, entered)
        rows = behind.add_to(reduced @ block.reduce, number)
        torch.ops.aten.threshold_backward.grad_input(rows, entered, 0, grad_input=rows)  # the ReLU
        # What the block before needs of all rows at first, while these are at hand.
        gradient.sum += rows.sum(dim=0)
        gradient.times_hidden.addmm_(rows.T, hidden)
        if first:
            hoods.add_to_features(of_features, part, rows)
        gradient.parts.append(rows)
    return gradient, of_weight


def _to_features(
    hoods: Neighborhoods, block: Block, of_reduced: ReducedGradient, behind: _PooledGradient | RowsGradient
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the features that rows were gathered from, and of the first linear layer."""
    of_features, of_weight = hoods.reduced_gradient(block.reduce, of_reduced.rows)
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
    # Otherwise zeros as large as all that is kept would be made for the outputs that no gradient reaches.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradients: list[torch.Tensor]) -> tuple[Any, ...]:
    tensors, weights = ctx.counts
    saved = list(ctx.saved_tensors)
    features, *of_weights = pooled_blocks_backward(
        gradients[0], *saved[:tensors], saved[tensors : tensors + weights], ctx.eps, saved[tensors + weights :]
    )
    return features, None, None, None, None, of_weights, None


pooled_blocks.register_autograd(_backward, setup_context=_keep)

__all__ = ["pooled_blocks", "pooled_blocks_backward"]
