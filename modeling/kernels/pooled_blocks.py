"""Residual blocks of a tokenizer stage and the maximum over neighbors.

A stage has one row for every neighbor of every center, far more rows than points or tokens, and its batch norms need
all rows before they return the first. Run layer by layer, each layer, norm and sum reads and writes all rows through
main memory and saves them for the backward pass. The fused implementation

- multiplies the summands of the first linear layer's input, of which there are few, before they are added;
- works on parts of the rows that stay in the cache, wherever a norm does not need all of them;
- computes the statistics after a linear layer from the mean and the covariance of its input, so that the norm becomes
  part of the weights, and the residual sum part of the product;
- saves only the narrow rows between the two layers of a block, and its input; those of the first block, sums of few
  rows of tables, and the input of the second are computed again by the backward pass;
- multiplies the sparse gradient of the maximum, one neighbor per center and channel, as sums of few rows; the norm's
  contribution to the others is a linear function of them.

Results and gradients equal those of the modules up to rounding. With features in bfloat16, as under autocast, rows are
multiplied in bfloat16; rows themselves, statistics of the norms and gradients stay in float32. Both passes are custom
operators, which `torch.compile` supports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.dispatch import operator, statistics_dtype, without_autocast
from hf_any3d.modeling.kernels.neighborhoods import Neighborhoods
from hf_any3d.modeling.kernels.pooling import (
    PooledGradient,
    is_plain_training,
    largest,
    pool_statistics,
    update_running_statistics,
)
from hf_any3d.modeling.kernels.residual_blocks import Block, Saved, add_product, multiply


class ResidualBlock(Protocol):
    """Module that computes `relu(rows + expand_norm(expand(relu(reduce_norm(reduce(rows))))))`."""

    reduce: nn.Linear
    reduce_norm: nn.BatchNorm1d
    expand: nn.Linear
    expand_norm: nn.BatchNorm1d

    def __call__(self, rows: Tensor) -> Tensor:
        """Map `(rows, width)` to `(rows, width)`."""


def pooled_blocks_plain(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> Tensor:
    """Apply residual blocks to the rows of all neighborhoods and take the maximum of each neighborhood.

    In training, the norms update their running statistics.

    Args:
        neighborhoods: The neighborhoods.
        blocks: The blocks.

    Returns:
        `(centers, width)`.
    """
    rows = neighborhoods.all_rows()
    for block in blocks:
        rows = block(rows)
    return rows.view(*neighborhoods.neighbors.shape, -1).amax(dim=1)


def blocks_are_plain(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> bool:
    """Return whether there are blocks, unchanged and training in full precision, and offsets need no gradient."""
    pairs = [pair for block in blocks for pair in _layers(block)]
    return bool(pairs) and not neighborhoods.offsets.requires_grad and all(is_plain_training(*pair) for pair in pairs)


def _layers(block: ResidualBlock) -> tuple[tuple[nn.Linear, nn.BatchNorm1d], ...]:
    return (block.reduce, block.reduce_norm), (block.expand, block.expand_norm)


def pooled_blocks_fused(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> Tensor:
    """Compute `pooled_blocks_plain` in training; see the module."""
    weights, eps = [], []
    for block in blocks:
        for linear, norm in _layers(block):
            weights += [linear.weight, linear.bias, norm.weight, norm.bias]
            eps.append(norm.eps)
    features = neighborhoods.features.to(weights[0].dtype)  # half precision under autocast
    rounded = neighborhoods.features.dtype == torch.bfloat16
    pooled, _, *rest = pooled_blocks(
        features,
        neighborhoods.neighbors,
        neighborhoods.centers,
        neighborhoods.offsets,
        neighborhoods.frequencies,
        weights,
        eps,
        rounded,
    )
    for block, saved in zip(blocks, Saved.unpack(rest, len(blocks), len(neighborhoods.parts())), strict=True):
        statistics = (saved.reduce_mean, saved.reduce_variance), (saved.expand_mean, saved.expand_variance)
        for (linear, norm), (mean, variance) in zip(_layers(block), statistics, strict=True):
            update_running_statistics(norm, linear.bias, mean, variance, neighborhoods.count)
    return pooled


@operator("pooled_blocks")
def pooled_blocks(
    features: Tensor,
    neighbors: Tensor,
    centers: Tensor,
    offsets: Tensor,
    frequencies: Tensor,
    weights: list[Tensor],
    eps: list[float],
    rounded: bool,
) -> list[Tensor]:
    """Apply residual blocks with batch statistics, then take the maximum of each neighborhood.

    Args:
        features: See `Neighborhoods`, as the next four.
        neighbors: Neighbors of the centers.
        centers: The centers.
        offsets: Normalized offsets.
        frequencies: Frequencies of their encoding.
        weights: Eight tensors per block, in the order of `Block`.
        eps: Two numbers per block, in the order of `Block`.
        rounded: Whether products are computed in bfloat16.

    Returns:
        The pooled features `(centers, width)`, the neighbors `(centers, width)` that have the maximum, as numbers in
        [0, k), then the tensors that `Saved.unpack` reads.
    """
    neighborhoods = Neighborhoods(features, neighbors, centers, offsets, frequencies)
    parts = neighborhoods.parts()
    first, *others = Block.unpack(weights, eps)
    saved = [_first_half(neighborhoods, first, neighborhoods.reduced_rows(first.reduce), [])]
    # The input of the first block is computed only here, one part at a time, and overwritten.
    sums, shift = _second_half(first, saved[0], map(neighborhoods.rows, parts), rounded)
    for number, block in enumerate(others, start=1):
        inputs: list[Tensor] = []
        saved.append(_first_half(neighborhoods, block, _next_rows(block, sums, shift, inputs, rounded), inputs))
        # The input is overwritten; from the third block on, the backward pass needs it (see `Saved.pack`).
        sums, shift = _second_half(block, saved[-1], map(torch.clone, inputs) if number > 1 else inputs, rounded)
    pooled = features.new_empty(len(neighbors), neighborhoods.width)
    winners = neighbors.new_empty(pooled.shape)
    for part, rows in zip(parts, sums, strict=True):
        pooled[part], winners[part] = largest(rows.view(-1, neighbors.shape[1], neighborhoods.width))
    # The shift is the same for all neighbors and the ReLU monotonic: both are applied after the maximum.
    return [
        pooled.add_(shift).relu_(),
        winners,
        *(tensor for number, one in enumerate(saved) for tensor in one.pack(number)),
    ]


def _next_rows(
    block: Block, sums: Iterable[Tensor], shift: Tensor, inputs: list[Tensor], rounded: bool
) -> Iterator[Tensor]:
    """Finish the previous block and apply this block's first linear layer, in parts; appends its input to `inputs`."""
    for rows in sums:
        inputs.append(rows.add_(shift).relu_())
        yield multiply(rows, block.reduce.T, rounded)


def _first_half(neighborhoods: Neighborhoods, block: Block, parts: Iterable[Tensor], inputs: list[Tensor]) -> Saved:
    """Compute the statistics of both norms from the output of the first linear layer, given in parts."""
    reduced, statistics = [], []
    for rows in parts:
        reduced.append(rows)
        statistics.append(torch.batch_norm_update_stats(rows, None, None, momentum=0.0))
    dtype, wide = block.reduce.dtype, statistics_dtype(block.reduce)
    mean, variance = pool_statistics(statistics, [len(rows) / neighborhoods.count for rows in reduced], wide)
    # The other four follow from the hidden rows, which need the first two.
    saved = Saved(mean.to(dtype), variance.to(dtype), *[mean] * 4, reduced, inputs)
    total = torch.zeros_like(mean)
    products = total.new_zeros(len(total), len(total))
    half = len(total) // 2
    for hidden in saved.hidden(block):
        total += hidden.sum(dim=0)
        # Symmetric: the lower left quarter follows from the upper right one.
        products[:half] += hidden[:, :half].T @ hidden
        products[half:, half:] += hidden[:, half:].T @ hidden[:, half:]
    products[half:, :half] = products[:half, half:].T
    mean = total / neighborhoods.count
    covariance = products / neighborhoods.count - mean.outer(mean)
    expand = block.expand.to(wide)
    # The diagonal of `expand @ covariance @ expand.T`, which rounding may leave below 0.
    variance = ((expand @ covariance) * expand).sum(dim=1).clamp_min_(0)
    saved.hidden_mean, saved.hidden_covariance = mean.to(dtype), covariance.to(dtype)
    saved.expand_mean, saved.expand_variance = (expand @ mean).to(dtype), variance.to(dtype)
    return saved


def _second_half(
    block: Block, saved: Saved, inputs: Iterable[Tensor], rounded: bool
) -> tuple[Iterator[Tensor], Tensor]:
    """Apply the second linear layer, its norm and the residual sum, except for the shift of each channel.

    Overwrites the block's input, given in parts. Returns the output in parts, and the shift.
    """
    weight, shift = saved.expansion(block)
    pairs = zip(inputs, saved.hidden(block), strict=True)
    return (add_product(rows, hidden, weight, rounded) for rows, hidden in pairs), shift


def _second_inputs(
    neighborhoods: Neighborhoods, first: Block, saved: Saved, rounded: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Compute the input of the second block again, with the first one's input of its second layer, part by part."""
    weight, shift = saved.expansion(first)
    for part, hidden in zip(neighborhoods.parts(), saved.hidden(first), strict=True):
        yield add_product(neighborhoods.rows(part), hidden, weight, rounded).add_(shift).relu_(), hidden


@torch.library.impl("hf_any3d::pooled_blocks", "Meta")
def _result_shapes(
    features: torch.Tensor,
    neighbors: torch.Tensor,
    centers: torch.Tensor,
    offsets: torch.Tensor,
    frequencies: torch.Tensor,
    weights: list[torch.Tensor],
    eps: list[float],
    rounded: bool,
) -> list[torch.Tensor]:
    neighborhoods = Neighborhoods(features, neighbors, centers, offsets, frequencies)
    pooled = features.new_empty(len(neighbors), neighborhoods.width)
    sizes = [(part.stop - part.start) * neighbors.shape[1] for part in neighborhoods.parts()]
    results = [pooled, neighbors.new_empty(pooled.shape)]
    for number, block in enumerate(Block.unpack(weights, eps)):
        width, hidden = block.expand.shape
        shapes = [(hidden,), (hidden,), (hidden,), (hidden, hidden), (width,), (width,)]
        shapes += [
            (size, channels) for skipped, channels in enumerate((hidden, width)) for size in sizes if number > skipped
        ]
        results += [features.new_empty(shape) for shape in shapes]
    return results


class _PooledGradient(PooledGradient):
    """Gradient of the last block's output: that of the maximum."""

    def add_product(self, out: Tensor, weight: Tensor, number: int) -> Tensor:
        """Add the product of a part with `weight` `(width, hidden)` to `out` `(rows, hidden)`."""
        return out.add_(self.times(weight, number))

    def add_to_features(self, out: Tensor, neighborhoods: Neighborhoods) -> None:
        """Add the gradient of all rows to that of the features, `(points, width / 2)`."""
        half = out.shape[1]
        out.scatter_add_(0, neighborhoods.neighbors.gather(1, self.winners[:, :half]), self.values[:, :half])
        out.index_add_(0, neighborhoods.centers, self.values[:, half:])


@dataclass
class _RowsGradient:
    """Gradient of the output of a block before another one.

    Args:
        parts: For each part `(rows, width)`; in bfloat16 if products are.
        sum: `(width,)` over all rows.
        times_hidden: `(width, hidden)`, product of its transpose with the input of the second linear layer.
        grad_features: `(points, width / 2)`, the gradient of the features through the residual of the first block.
    """

    parts: list[Tensor]
    sum: Tensor
    times_hidden: Tensor
    grad_features: Tensor

    def total(self) -> Tensor:
        """Return the sum over all rows, `(width,)`."""
        return self.sum

    def product(self, hidden: Iterable[Tensor]) -> Tensor:
        """Return the product of the transposed gradient `(width, rows)` with the block's hidden rows."""
        return self.times_hidden

    def add_product(self, out: Tensor, weight: Tensor, number: int) -> Tensor:
        """Add the product of a part with `weight` `(width, hidden)` to `out` `(rows, hidden)`."""
        rows = self.parts[number]
        return add_product(out, rows, weight, rows.dtype != weight.dtype)

    def add_to(self, out: Tensor, number: int) -> Tensor:
        """Add the gradient of a part to its rows `out` `(rows, width)`."""
        return out.add_(self.parts[number])

    def add_to_features(self, out: Tensor, neighborhoods: Neighborhoods) -> None:
        """Add the gradient of all rows to that of the features, `(points, width / 2)`."""
        out.add_(self.grad_features)


@operator("pooled_blocks_backward")
def pooled_blocks_backward(
    gradient: Tensor,
    features: Tensor,
    neighbors: Tensor,
    centers: Tensor,
    offsets: Tensor,
    frequencies: Tensor,
    weights: list[Tensor],
    eps: list[float],
    rounded: bool,
    results: list[Tensor],
) -> list[Tensor]:
    """Compute the gradients of `pooled_blocks`.

    Takes the gradient of the pooled features, the arguments and the results of the forward pass; returns the gradient
    of `features`, then those of `weights`.
    """
    neighborhoods = Neighborhoods(features, neighbors, centers, offsets, frequencies)
    blocks = Block.unpack(weights, eps)
    pooled, winners, *rest = results
    parts = neighborhoods.parts()
    saved = Saved.unpack(rest, len(blocks), len(parts))
    # Sums of few products: cheaper to compute again than to keep.
    saved[0].reduced = list(neighborhoods.reduced_rows(blocks[0].reduce))
    grad_output: _PooledGradient | _RowsGradient
    # Through the last ReLU, which was applied to the maximum.
    grad_output = _PooledGradient(gradient.where(pooled > 0, 0), winners, neighbors.shape[1], parts)
    gradients: list[Tensor] = []
    for number in reversed(range(len(blocks))):
        block, own = blocks[number], saved[number]
        grad_reduced, grad_norm, grad_expand = _through_expand(neighborhoods, block, own, grad_output, rounded)
        if number:
            inputs = (
                _second_inputs(neighborhoods, blocks[0], saved[0], rounded)
                if number == 1
                else zip(own.inputs, saved[number - 1].hidden(blocks[number - 1]), strict=True)
            )
            grad_output, grad_reduce = _to_rows(
                neighborhoods, block, inputs, grad_reduced, grad_output, rounded, first=number == 1
            )
        else:
            grad_features, grad_reduce = neighborhoods.reduced_gradient(block.reduce, grad_reduced.rows)
            grad_output.add_to_features(grad_features, neighborhoods)
        # The norm after a layer cancels its bias.
        grad_biases = torch.zeros_like(block.reduce_bias), torch.zeros_like(block.expand_bias)
        own_gradients = [grad_reduce, grad_biases[0], *grad_norm, grad_expand[0], grad_biases[1], *grad_expand[1:]]
        gradients = own_gradients + gradients
    return [grad_features, *gradients]


@dataclass
class _ReducedGradient:
    """Gradient of the output of a block's first linear layer, computed in parts from that of its norm's output.

    Args:
        grad_norm: For each part `(rows, hidden)`, the gradient of the norm's output.
        reduced: For each part `(rows, hidden)`, the output of the linear layer.
        gain: `(hidden,)`, factors of `grad_norm`.
        slope: `(hidden,)`, factors of `reduced`: in training the statistics depend on every row.
        constant: `(hidden,)`.
    """

    grad_norm: list[Tensor]
    reduced: list[Tensor]
    gain: Tensor
    slope: Tensor
    constant: Tensor

    def rows(self, numbers: slice) -> Tensor:
        """Compute the rows `(rows, hidden)` of several parts together."""
        grad_norm, reduced = self.grad_norm[numbers], self.reduced[numbers]
        sizes = [len(rows) for rows in grad_norm]
        together = self.gain.new_empty(sum(sizes), len(self.gain))
        for out, rows, entered in zip(together.split(sizes), grad_norm, reduced, strict=True):
            torch.addcmul(self.constant, rows, self.gain, out=out).addcmul_(entered, self.slope)
        return together


def _through_expand(
    neighborhoods: Neighborhoods,
    block: Block,
    saved: Saved,
    grad_output: _PooledGradient | _RowsGradient,
    rounded: bool,
) -> tuple[_ReducedGradient, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return gradients of the first layer's output, of its norm, and of the second layer with its norm."""
    product = grad_output.product(saved.hidden(block))  # (width, hidden)
    grad_shift = grad_output.total()
    deviation = (saved.expand_variance + block.expand_eps).rsqrt()
    gain = block.expand_gain * deviation
    # The output of the second layer is not saved. Its products with the gradient and with the hidden rows follow from
    # the layer's weight and the products of the hidden rows with the gradient and with themselves.
    grad_gain = deviation * ((block.expand * product).sum(dim=1) - saved.expand_mean * grad_shift)
    share = (gain * deviation * grad_gain).unsqueeze(1) * block.expand  # (width, hidden)
    grad_weight = gain.unsqueeze(1) * (product - grad_shift.outer(saved.hidden_mean)) - share @ saved.hidden_covariance
    weight = gain.unsqueeze(1) * block.expand
    spread = block.expand.T @ share / -neighborhoods.count  # (hidden, hidden)
    constant = saved.hidden_mean @ -spread - grad_shift @ weight / neighborhoods.count
    # In parts: small blocks of memory are reused, a large one would be allocated at every step.
    grad_hidden: list[Tensor] = []
    total, moment = torch.zeros_like(block.reduce_gain), torch.zeros_like(block.reduce_gain)
    for number, (hidden, reduced) in enumerate(zip(saved.hidden(block), saved.reduced, strict=True)):
        rows = multiply(hidden, spread, True).add_(constant) if rounded else torch.addmm(constant, hidden, spread)
        grad_hidden.append(rows)
        grad_output.add_product(rows, weight, number)
        torch.ops.aten.threshold_backward.grad_input(rows, hidden, 0, grad_input=rows)  # the ReLU
        total += rows.sum(dim=0)
        moment += torch.sub(reduced, saved.reduce_mean, out=hidden).mul_(rows).sum(dim=0)
    deviation = (saved.reduce_variance + block.reduce_eps).rsqrt()
    gain = block.reduce_gain * deviation
    slope = gain * deviation.square() * moment / -neighborhoods.count
    constant = -saved.reduce_mean * slope - gain * total / neighborhoods.count
    grad_reduced = _ReducedGradient(grad_hidden, saved.reduced, gain, slope, constant)
    return grad_reduced, (moment * deviation, total), (grad_weight, grad_gain, grad_shift)


def _to_rows(
    neighborhoods: Neighborhoods,
    block: Block,
    inputs: Iterable[tuple[Tensor, Tensor]],
    grad_reduced: _ReducedGradient,
    grad_output: _PooledGradient | _RowsGradient,
    rounded: bool,
    first: bool,
) -> tuple[_RowsGradient, Tensor]:
    """Return the gradients of the previous block's output before its ReLU, and of the first linear layer.

    `inputs` are, part by part, the input of the block and that of the previous block's second linear layer.
    """
    grad_weight = torch.zeros_like(block.reduce)
    width = block.reduce.shape[1]
    grad_features = torch.zeros_like(neighborhoods.features)
    gradient = _RowsGradient([], block.reduce.new_zeros(width), torch.zeros_like(block.expand), grad_features)
    for number, (part, (entered, hidden)) in enumerate(zip(neighborhoods.parts(), inputs, strict=True)):
        reduced = grad_reduced.rows(slice(number, number + 1))
        half = reduced.bfloat16() if rounded else reduced  # rounded once for both products
        add_product(grad_weight, half.T, entered, rounded)
        rows = grad_output.add_to(multiply(half, block.reduce, rounded), number)
        torch.ops.aten.threshold_backward.grad_input(rows, entered, 0, grad_input=rows)  # the ReLU
        # Sums over all rows that the previous block needs first.
        gradient.sum += rows.sum(dim=0)
        half = rows.bfloat16() if rounded else rows
        add_product(gradient.times_hidden, half.T, hidden, rounded)
        if first:
            neighborhoods.add_to_features(grad_features, part, rows)
        gradient.parts.append(half)
    return gradient, grad_weight


@torch.library.impl("hf_any3d::pooled_blocks_backward", "Meta")
def _gradient_shapes(gradient: torch.Tensor, features: torch.Tensor, *others: Any) -> list[torch.Tensor]:
    *_, weights, _, _, _ = others
    return [torch.empty_like(features), *map(torch.empty_like, weights)]


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    *tensors, weights, eps, rounded = inputs
    ctx.settings, ctx.counts = (eps, rounded), (len(tensors), len(weights))
    ctx.save_for_backward(*tensors, *weights, *output)
    ctx.mark_non_differentiable(*output[1:])
    # Otherwise torch would allocate zeros for the gradients of all unused outputs.
    ctx.set_materialize_grads(False)


@without_autocast
def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    tensors, weights = ctx.counts
    if gradients[0] is None:
        return *[None] * tensors, [None] * weights, None, None
    saved = list(ctx.saved_tensors)
    features, *grad_weights = pooled_blocks_backward(
        gradients[0], *saved[:tensors], saved[tensors : tensors + weights], *ctx.settings, saved[tensors + weights :]
    )
    return features, None, None, None, None, grad_weights, None, None


torch.library.register_autograd("hf_any3d::pooled_blocks", _backward, setup_context=_save)
