"""Residual blocks of a tokenizer stage and the maximum over neighbors.

A stage has one row for every neighbor of every center, far more rows than points or tokens, and its batch norms need
all rows before they return the first. Run layer by layer, each layer, norm and sum reads and writes all rows through
main memory and saves them for the backward pass. The fused implementation, for CPUs,

- multiplies the summands of the first linear layer's input, of which there are few, before they are added;
- works on parts of the rows that stay in the cache, wherever a norm does not need all of them;
- computes the statistics after a linear layer from the mean and the covariance of its input, so that the norm becomes
  part of the weights, and the residual sum part of the product;
- saves only the narrow rows between the two layers of a block, and its input; those of the first block, sums of few
  rows of tables, and the input of the second are computed again by the backward pass;
- multiplies the sparse gradient of the maximum, one neighbor per center and channel, as sums of few rows; the norm's
  contribution to the others is a linear function of them.

Results and gradients equal those of the modules up to rounding. With features in bfloat16, as under autocast, rows are
multiplied in bfloat16; rows themselves, statistics of the norms and gradients stay in float32. In evaluation, where
norms become part of the weights, a part of the rows stays in the cache from its first layer to the maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hf_any3d.modeling.kernels.dispatch import statistics_dtype, without_autocast
from hf_any3d.modeling.kernels.neighborhoods import Neighborhoods
from hf_any3d.modeling.kernels.pooling import (
    PooledGradient,
    folded,
    has_folded_norms,
    is_plain_training,
    largest,
    pool_statistics,
    update_running_statistics,
)


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

    In training, the norms update their running statistics. Returns `(centers, width)`.
    """
    rows = neighborhoods.all_rows()
    for block in blocks:
        rows = block(rows)
    return rows.view(*neighborhoods.neighbors.shape, -1).amax(dim=1)


def blocks_are_plain(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> bool:
    """Return whether blocks can be fused: unchanged, in training in full precision or in evaluation without gradients.

    Offsets may not need a gradient.
    """
    pairs = [pair for block in blocks for pair in _layers(block)]
    # Norms of one tokenizer train or evaluate together; a mixture fails the check of training and runs plainly.
    if any(norm.training for _, norm in pairs):
        return not neighborhoods.offsets.requires_grad and all(is_plain_training(*pair) for pair in pairs)
    inputs = neighborhoods.features, neighborhoods.offsets
    needs_gradient = torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
    if not pairs or needs_gradient or not has_folded_norms(*pairs):
        return False
    return all(linear.weight.dtype != torch.float16 for linear, _ in pairs)


def _layers(block: ResidualBlock) -> tuple[tuple[nn.Linear, nn.BatchNorm1d], ...]:
    return (block.reduce, block.reduce_norm), (block.expand, block.expand_norm)


def pooled_blocks_fused(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> Tensor:
    """Compute `pooled_blocks_plain`; see the module."""
    if not blocks[0].reduce_norm.training:
        return _with_running_statistics(neighborhoods, blocks)
    pairs = [pair for block in blocks for pair in _layers(block)]
    # Autograd sees only tensors that are arguments: weights are passed one by one, in the order of `Block`.
    weights = [weight for pair in pairs for layer in pair for weight in (layer.weight, layer.bias)]
    return _PooledBlocks.apply(neighborhoods.features.to(weights[0].dtype), neighborhoods, pairs, *weights)


@torch.no_grad()
def _with_running_statistics(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> Tensor:
    dtype = torch.promote_types(blocks[0].reduce.weight.dtype, torch.float32)
    rounded = neighborhoods.features.dtype == torch.bfloat16  # half precision under autocast
    neighborhoods = replace(neighborhoods, features=neighborhoods.features.to(dtype))
    # Four tensors a block: weight and bias of either linear layer, with its norm.
    weights = [tuple(weight for pair in _layers(block) for weight in folded(*pair)) for block in blocks]
    count, k = neighborhoods.neighbors.shape
    # (centers, width)
    pooled = neighborhoods.features.new_empty(count, neighborhoods.width)
    last = len(blocks) - 1
    for part, reduced in zip(neighborhoods.parts(), neighborhoods.reduced_rows(weights[0][0]), strict=True):
        rows = neighborhoods.rows(part)  # (centers * k, width)
        for number, (reduce, reduce_bias, expand, expand_bias) in enumerate(weights):
            # The first product comes with the part, as a sum of products of few rows.
            hidden = (multiply(rows, reduce.T, rounded) if number else reduced).add_(reduce_bias)
            add_product(rows, hidden.relu_(), expand.T, rounded)
            if number < last:
                rows.add_(expand_bias).relu_()
        # The last shift is the same for all neighbors and the ReLU monotonic: both are applied after the maximum.
        pooled[part] = rows.view(-1, k, neighborhoods.width).amax(dim=1).add_(weights[last][3]).relu_()
    return pooled.to(blocks[0].reduce.weight.dtype)


class Block(NamedTuple):
    """Weights of a residual block, `(hidden, width)`, `(width, hidden)` and one for each channel, and norms' epsilons.

    The biases of the linear layers are not read: the norms cancel them.
    """

    reduce: Tensor
    reduce_bias: Tensor
    reduce_gain: Tensor
    reduce_shift: Tensor
    expand: Tensor
    expand_bias: Tensor
    expand_gain: Tensor
    expand_shift: Tensor
    reduce_eps: float
    expand_eps: float


@dataclass
class Saved:
    """Statistics of a block, and rows that it saves for the backward pass, in parts.

    Args:
        reduce_mean: `(hidden,)` of the output of the first linear layer.
        reduce_variance: `(hidden,)`.
        hidden_mean: `(hidden,)` of the input of the second linear layer.
        hidden_covariance: `(hidden, hidden)` of the same.
        expand_mean: `(width,)` of the output of the second linear layer.
        expand_variance: `(width,)`.
        reduced: For each part the output `(rows, hidden)` of the first linear layer; not saved for the first block.
        inputs: For each part the input `(rows, width)` of the block; not saved for the first two blocks.
    """

    reduce_mean: Tensor
    reduce_variance: Tensor
    hidden_mean: Tensor
    hidden_covariance: Tensor
    expand_mean: Tensor
    expand_variance: Tensor
    reduced: list[Tensor]
    inputs: list[Tensor]

    def hidden(self, block: Block) -> Iterator[Tensor]:
        """Compute the input `(rows, hidden)` of the second linear layer part by part, each overwriting the last."""
        # The first norm as gain and shift of each channel, so that a part needs a single pass.
        gain = block.reduce_gain * (self.reduce_variance + block.reduce_eps).rsqrt()
        shift = block.reduce_shift - self.reduce_mean * gain
        buffer = torch.empty_like(self.reduced[0])
        return (torch.addcmul(shift, rows, gain, out=buffer[: len(rows)]).relu_() for rows in self.reduced)

    def expansion(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the second linear layer with its norm: weight `(hidden, width)` and shift `(width,)`."""
        # The second norm becomes part of the linear layer before it, which then needs no pass of its own.
        gain = block.expand_gain * (self.expand_variance + block.expand_eps).rsqrt()
        return (block.expand * gain.unsqueeze(1)).T, block.expand_shift - self.expand_mean * gain

    def pack(self, number: int) -> list[Tensor]:
        """Return the tensors to save of the block with this number."""
        # What the first blocks read is computed again from the neighborhoods in the backward pass, to save memory.
        *statistics, reduced, inputs = vars(self).values()
        return [*statistics, *(reduced if number > 0 else []), *(inputs if number > 1 else [])]

    @staticmethod
    def unpack(tensors: Iterable[Tensor], blocks: int, parts: int) -> list[Saved]:
        """Invert `pack` for the tensors of all blocks."""
        saved = []
        tensors = iter(tensors)
        for number in range(blocks):
            # Six statistics, then the parts of rows that `pack` saved: none for the first block, or the first two.
            lists = [list(islice(tensors, 6)), *(list(islice(tensors, parts * (number > skip))) for skip in (0, 1))]
            saved.append(Saved(*lists[0], *lists[1:]))
        return saved


def multiply(rows: Tensor, weight: Tensor, rounded: bool) -> Tensor:
    """Multiply rows by a weight, in bfloat16 if `rounded`."""
    # The accumulated product is widened, so that sums of rows stay in float32.
    return (rows.bfloat16() @ weight.bfloat16()).to(weight.dtype) if rounded else rows @ weight


def add_product(out: Tensor, rows: Tensor, weight: Tensor, rounded: bool) -> Tensor:
    """Add the product of rows and a weight, in bfloat16 if `rounded`, to `out`."""
    return out.add_(rows.bfloat16() @ weight.bfloat16()) if rounded else out.addmm_(rows, weight)


class _PooledBlocks(torch.autograd.Function):
    """The blocks with batch statistics; `pairs` are their linear layers and norms, `weights` those of `Block`."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        neighborhoods: Neighborhoods,
        pairs: list[tuple[nn.Linear, nn.BatchNorm1d]],
        *weights: Tensor,
    ) -> Tensor:
        ctx.rounded = rounded = neighborhoods.features.dtype == torch.bfloat16
        ctx.eps = [norm.eps for _, norm in pairs]
        own = replace(neighborhoods, features=features)
        first, *others = _blocks(weights, ctx.eps)
        saved = [_first_half(own, first, own.reduced_rows(first.reduce), [])]
        # The input of the first block is computed only here, one part at a time, and overwritten.
        sums, shift = _second_half(first, saved[0], map(own.rows, own.parts()), rounded)
        # Generators run when the next block reads them: a part passes between blocks while it is in the cache.
        for number, block in enumerate(others, start=1):
            inputs: list[Tensor] = []
            saved.append(_first_half(own, block, _next_rows(block, sums, shift, inputs, rounded), inputs))
            # The input is overwritten; from the third block on, the backward pass needs it (see `Saved.pack`).
            sums, shift = _second_half(block, saved[-1], map(torch.clone, inputs) if number > 1 else inputs, rounded)
        pooled = features.new_empty(len(own.neighbors), own.width)
        # (centers, width), the neighbor that has the maximum
        winners = own.neighbors.new_empty(pooled.shape)
        for part, rows in zip(own.parts(), sums, strict=True):
            pooled[part], winners[part] = largest(rows.view(-1, own.neighbors.shape[1], own.width))
        # The shift is the same for all neighbors and the ReLU monotonic: both are applied after the maximum.
        pooled.add_(shift).relu_()
        statistics = [
            pair
            for block in saved
            for pair in ((block.reduce_mean, block.reduce_variance), (block.expand_mean, block.expand_variance))
        ]
        for (linear, norm), (mean, variance) in zip(pairs, statistics, strict=True):
            update_running_statistics(norm, linear.bias, mean, variance, own.count)
        tensors = [tensor for number, block in enumerate(saved) for tensor in block.pack(number)]
        indices = own.neighbors, own.centers, own.offsets, own.frequencies
        ctx.save_for_backward(features, *indices, *weights, pooled, winners, *tensors)
        return pooled

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        rounded = ctx.rounded
        # In the order of `save_for_backward`: neighborhoods, eight weights a block, maxima, what blocks saved.
        neighborhoods = Neighborhoods(*islice(saved, 5))
        blocks = _blocks(list(islice(saved, 4 * len(ctx.eps))), ctx.eps)
        pooled, winners = islice(saved, 2)
        parts = neighborhoods.parts()
        halves = Saved.unpack(saved, len(blocks), len(parts))
        # Sums of few products: cheaper to compute again than to keep.
        halves[0].reduced = list(neighborhoods.reduced_rows(blocks[0].reduce))
        grad_output: _PooledGradient | _RowsGradient
        # Through the last ReLU, which was applied to the maximum.
        grad_output = _PooledGradient(gradient.where(pooled > 0, 0), winners, neighborhoods.neighbors.shape[1], parts)
        gradients: list[Tensor | None] = []
        for number in reversed(range(len(blocks))):
            block = blocks[number]
            own = halves[number]
            grad_reduced, grad_norm, grad_expand = _through_expand(neighborhoods, block, own, grad_output, rounded)
            # Rows of the first block are sums of few rows of tables: its gradient goes there without rows of its own.
            if number:
                inputs = (
                    _second_inputs(neighborhoods, blocks[0], halves[0], rounded)
                    if number == 1
                    else zip(own.inputs, halves[number - 1].hidden(blocks[number - 1]), strict=True)
                )
                grad_output, grad_reduce = _to_rows(
                    neighborhoods, block, inputs, grad_reduced, grad_output, rounded, first=number == 1
                )
            else:
                grad_features, grad_reduce = neighborhoods.reduced_gradient(block.reduce, grad_reduced.rows)
                grad_output.add_to_features(grad_features, neighborhoods)
            # The norm after a layer cancels its bias.
            biases = torch.zeros_like(block.reduce_bias), torch.zeros_like(block.expand_bias)
            # In front of those of later blocks, as the arguments of `forward` were.
            gradients[:0] = [grad_reduce, biases[0], *grad_norm, grad_expand[0], biases[1], *grad_expand[1:]]
        return grad_features, None, None, *gradients


def _blocks(weights: Sequence[Tensor], eps: Sequence[float]) -> list[Block]:
    return [Block(*weights[8 * i : 8 * i + 8], *eps[2 * i : 2 * i + 2]) for i in range(len(eps) // 2)]


def _next_rows(
    block: Block, sums: Iterable[Tensor], shift: Tensor, inputs: list[Tensor], rounded: bool
) -> Iterator[Tensor]:
    """Finish the previous block and apply this block's first linear layer, in parts; appends its input to `inputs`."""
    # The rows are kept after the ReLU: the next block adds its residual to them.
    for rows in sums:
        inputs.append(rows.add_(shift).relu_())
        yield multiply(rows, block.reduce.T, rounded)


def _first_half(neighborhoods: Neighborhoods, block: Block, parts: Iterable[Tensor], inputs: list[Tensor]) -> Saved:
    """Compute the statistics of both norms from the output of the first linear layer, given in parts."""
    # Mean and variance of each part while it is in the cache; they are pooled once all parts are known.
    reduced = []
    statistics = []
    for rows in parts:
        reduced.append(rows)
        statistics.append(torch.batch_norm_update_stats(rows, None, None, momentum=0.0))
    dtype = block.reduce.dtype
    wide = statistics_dtype(block.reduce)
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
    # The second norm's statistics follow from these: its layer is linear, so its rows need not exist for them.
    covariance = products / neighborhoods.count - mean.outer(mean)
    expand = block.expand.to(wide)
    # The diagonal of `expand @ covariance @ expand.T`, which rounding may leave below 0.
    variance = ((expand @ covariance) * expand).sum(dim=1).clamp_min_(0)
    saved.hidden_mean = mean.to(dtype)
    saved.hidden_covariance = covariance.to(dtype)
    saved.expand_mean = (expand @ mean).to(dtype)
    saved.expand_variance = variance.to(dtype)
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


class _PooledGradient(PooledGradient):
    """Gradient of the last block's output: that of the maximum."""

    def add_product(self, out: Tensor, weight: Tensor, number: int) -> Tensor:
        """Add the product of a part with `weight` `(width, hidden)` to `out` `(rows, hidden)`."""
        return out.add_(self.times(weight, number))

    def add_to_features(self, out: Tensor, neighborhoods: Neighborhoods) -> None:
        """Add the gradient of all rows to that of the features, `(points, width / 2)`."""
        half = out.shape[1]
        # The first half of a row's channels is the neighbor's features, the second half the center's.
        out.scatter_add_(0, neighborhoods.neighbors.gather(1, self.winners[:, :half]), self.values[:, :half])
        out.index_add_(0, neighborhoods.centers, self.values[:, half:])


@dataclass
class _RowsGradient:
    """Gradient of the output of a block before another one; its methods are those of `_PooledGradient`.

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
        return self.sum

    def product(self, hidden: Iterable[Tensor]) -> Tensor:
        return self.times_hidden

    def add_product(self, out: Tensor, weight: Tensor, number: int) -> Tensor:
        rows = self.parts[number]
        return add_product(out, rows, weight, rows.dtype != weight.dtype)

    def add_to(self, out: Tensor, number: int) -> Tensor:
        return out.add_(self.parts[number])

    def add_to_features(self, out: Tensor, neighborhoods: Neighborhoods) -> None:
        out.add_(self.grad_features)


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
        grad_norm = self.grad_norm[numbers]
        reduced = self.reduced[numbers]
        sizes = [len(rows) for rows in grad_norm]
        # (rows of the parts, hidden), written part by part without another copy
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
    # The norm as factors of the layer's output: its gain over the deviation of each channel.
    gain = block.expand_gain * deviation
    # The output of the second layer is not saved. Its products with the gradient and with the hidden rows follow from
    # the layer's weight and the products of the hidden rows with the gradient and with themselves.
    grad_gain = deviation * ((block.expand * product).sum(dim=1) - saved.expand_mean * grad_shift)
    # In training, the statistics depend on every row: through the variance, and through the mean (`constant` below).
    share = (gain * deviation * grad_gain).unsqueeze(1) * block.expand  # (width, hidden)
    grad_weight = gain.unsqueeze(1) * (product - grad_shift.outer(saved.hidden_mean)) - share @ saved.hidden_covariance
    weight = gain.unsqueeze(1) * block.expand
    spread = block.expand.T @ share / -neighborhoods.count  # (hidden, hidden)
    constant = saved.hidden_mean @ -spread - grad_shift @ weight / neighborhoods.count
    # In parts: small blocks of memory are reused, a large one would be allocated at every step.
    grad_hidden: list[Tensor] = []
    total = torch.zeros_like(block.reduce_gain)
    moment = torch.zeros_like(block.reduce_gain)
    for number, (hidden, reduced) in enumerate(zip(saved.hidden(block), saved.reduced, strict=True)):
        rows = multiply(hidden, spread, True).add_(constant) if rounded else torch.addmm(constant, hidden, spread)
        grad_hidden.append(rows)
        grad_output.add_product(rows, weight, number)
        torch.ops.aten.threshold_backward.grad_input(rows, hidden, 0, grad_input=rows)  # the ReLU
        total += rows.sum(dim=0)
        moment += torch.sub(reduced, saved.reduce_mean, out=hidden).mul_(rows).sum(dim=0)
    # The first norm in the same way: of its input, two sums are enough (see `_ReducedGradient`).
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
