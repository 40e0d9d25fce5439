"""Residual blocks of a tokenizer stage and the maximum over neighbors.

A stage has one row for every neighbor of every center, far more rows than points or tokens, and its batch norms need
all rows before they return the first. Run layer by layer, each layer, norm and sum reads and writes all rows through
main memory and saves them for the backward pass. The fused implementation

- multiplies the summands of the first linear layer's input, of which there are few, before they are added;
- works on parts of the rows that stay in the cache, wherever a norm does not need all of them;
- computes the statistics after a block's second linear layer from the mean and the covariance of its input, so that
  the norm becomes part of the weights, and the residual sum part of the product;
- saves no rows: the backward pass computes them again, with the known statistics;
- multiplies the sparse gradient of the maximum, one neighbor per center and channel, as sums of few rows; the norm's
  contribution to the others is a linear function of them.

Results and gradients equal those of the modules up to rounding. With features in bfloat16, as under autocast, rows are
multiplied in bfloat16; rows themselves, statistics of the norms and gradients stay in float32. Both passes are custom
operators, which `torch.compile` supports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.dispatch import operator, statistics_dtype, without_autocast
from hf_any3d.modeling.kernels.neighborhoods import Neighborhoods
from hf_any3d.modeling.kernels.pooled_patches import folded
from hf_any3d.modeling.kernels.pooling import (
    PooledGradient,
    is_plain_training,
    largest,
    pool_statistics,
    update_running_statistics,
)
from hf_any3d.modeling.layers.forward_contract import is_unmodified


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


def can_be_fused(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> bool:
    """Return whether blocks are unchanged, and in training in full precision or in evaluation without gradients."""
    pairs = [pair for block in blocks for pair in _layers(block)]
    if not pairs or any(norm.training for _, norm in pairs):
        plain = all(is_plain_training(*pair) for pair in pairs)
        return bool(pairs) and plain and not neighborhoods.offsets.requires_grad
    layers = [layer for pair in pairs for layer in pair]
    inputs = (neighborhoods.features, neighborhoods.offsets, *(one for layer in layers for one in layer.parameters()))
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(one.requires_grad for one in inputs)):
        return False  # no compiler unrolls the parts of an evaluation
    # Other devices than the CPU compute all of it in half precision.
    precise = (torch.float32, torch.float64, *([torch.bfloat16] if neighborhoods.device.type == "cpu" else []))
    # Norms without running statistics use those of the batch in evaluation, too.
    has_statistics = all(norm.track_running_stats for _, norm in pairs)
    return is_unmodified(*layers) and has_statistics and all(linear.weight.dtype in precise for linear, _ in pairs)


def _layers(block: ResidualBlock) -> tuple[tuple[nn.Linear, nn.BatchNorm1d], ...]:
    return (block.reduce, block.reduce_norm), (block.expand, block.expand_norm)


def pooled_blocks_fused(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> Tensor:
    """Compute `pooled_blocks_plain`, in training or in evaluation; see the module."""
    if not blocks[0].reduce_norm.training:
        return _with_running_statistics(neighborhoods, blocks)
    pairs = [pair for block in blocks for pair in _layers(block)]
    weights = [weight for linear, norm in pairs for weight in (linear.weight, linear.bias, norm.weight, norm.bias)]
    pooled, _, *rest = pooled_blocks(
        neighborhoods.features.to(weights[0].dtype),
        neighborhoods.neighbors,
        neighborhoods.centers,
        neighborhoods.offsets,
        neighborhoods.frequencies,
        weights,
        [norm.eps for _, norm in pairs],
        neighborhoods.features.dtype == torch.bfloat16,  # half precision under autocast
    )
    for block, own in zip(blocks, Statistics.unpack(rest), strict=True):
        moments = (own.reduce_mean, own.reduce_variance), (own.expand_mean, own.expand_variance)
        for (linear, norm), (mean, variance) in zip(_layers(block), moments, strict=True):
            update_running_statistics(norm, linear.bias, mean, variance, neighborhoods.count)
    return pooled


@torch.no_grad()
def _with_running_statistics(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> Tensor:
    """Compute `pooled_blocks_plain` in evaluation: the norms become part of the weights."""
    dtype = torch.promote_types(blocks[0].reduce.weight.dtype, torch.float32)
    rounded = neighborhoods.features.dtype == torch.bfloat16  # half precision under autocast
    neighborhoods = replace(neighborhoods, features=neighborhoods.features.to(dtype))
    weights = [(*folded(one.reduce, one.reduce_norm), *folded(one.expand, one.expand_norm)) for one in blocks]
    centers, k = neighborhoods.neighbors.shape
    pooled = neighborhoods.features.new_empty(centers, neighborhoods.width)
    for part, hidden in zip(neighborhoods.parts(), neighborhoods.reduced_rows(weights[0][0]), strict=True):
        rows = neighborhoods.rows(part)  # (centers * k, width)
        for number, (reduce, reduce_bias, expand, _) in enumerate(weights):
            if number:
                hidden = multiply(rows.add_(weights[number - 1][3]).relu_(), reduce.T, rounded)
            add_product(rows, hidden.add_(reduce_bias).relu_(), expand.T, rounded)
        # The last shift is the same for all neighbors and the ReLU monotonic: both are applied after the maximum.
        pooled[part] = rows.view(-1, k, neighborhoods.width).amax(dim=1).add_(weights[-1][3]).relu_()
    return pooled.to(blocks[0].reduce.weight.dtype)


@dataclass
class Block:
    """Weights of a residual block.

    The biases of the linear layers are not read: the norms cancel them.

    Args:
        reduce: `(hidden, width)`.
        reduce_bias: `(hidden,)`.
        reduce_gain: `(hidden,)` of the following norm.
        reduce_shift: `(hidden,)`.
        expand: `(width, hidden)`.
        expand_bias: `(width,)`.
        expand_gain: `(width,)` of the following norm.
        expand_shift: `(width,)`.
        reduce_eps: Added to the variance in the first norm.
        expand_eps: Added to the variance in the second.
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

    @staticmethod
    def unpack(weights: list[Tensor], eps: list[float]) -> list[Block]:
        """Build blocks from the operators' lists: eight tensors and two epsilons per block."""
        return [Block(*weights[8 * i : 8 * i + 8], *eps[2 * i : 2 * i + 2]) for i in range(len(eps) // 2)]


class Statistics(NamedTuple):
    """Statistics of a block over all rows.

    Args:
        reduce_mean: `(hidden,)` of the output of the first linear layer.
        reduce_variance: `(hidden,)`.
        hidden_mean: `(hidden,)` of the input of the second linear layer.
        hidden_covariance: `(hidden, hidden)` of the same.
        expand_mean: `(width,)` of the output of the second linear layer.
        expand_variance: `(width,)`.
    """

    reduce_mean: Tensor
    reduce_variance: Tensor
    hidden_mean: Tensor
    hidden_covariance: Tensor
    expand_mean: Tensor
    expand_variance: Tensor

    @staticmethod
    def unpack(tensors: list[Tensor]) -> list[Statistics]:
        """Group the tensors that the operator returns: six per block."""
        return [Statistics(*tensors[start : start + 6]) for start in range(0, len(tensors), 6)]


def multiply(rows: Tensor, weight: Tensor, rounded: bool) -> Tensor:
    """Multiply rows by a weight, in bfloat16 if `rounded`."""
    return (rows.bfloat16() @ weight.bfloat16()).to(weight.dtype) if rounded else rows @ weight


def add_product(out: Tensor, rows: Tensor, weight: Tensor, rounded: bool) -> Tensor:
    """Add the product of rows and a weight, in bfloat16 if `rounded`, to `out`."""
    return out.add_(rows.bfloat16() @ weight.bfloat16()) if rounded else out.addmm_(rows, weight)


def _reduce(block: Block, sums: Iterable[Tensor], shift: Tensor, rounded: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Finish the block before and apply the first linear layer of this one; returns its input and output in parts."""
    inputs, reduced = [], []
    for rows in sums:
        inputs.append(rows.add_(shift).relu_())
        reduced.append(multiply(rows, block.reduce.T, rounded))
    return inputs, reduced


def _hidden(block: Block, own: Statistics, reduced: Iterable[Tensor]) -> Iterator[Tensor]:
    """Compute the input `(rows, hidden)` of the second linear layer, part by part."""
    # The first norm as gain and shift of each channel, so that a part needs a single pass.
    gain = block.reduce_gain * (own.reduce_variance + block.reduce_eps).rsqrt()
    shift = block.reduce_shift - own.reduce_mean * gain
    return (torch.addcmul(shift, rows, gain).relu_() for rows in reduced)


def _expand(
    block: Block, own: Statistics, inputs: Iterable[Tensor], reduced: Iterable[Tensor], rounded: bool
) -> tuple[Iterator[Tensor], Tensor]:
    """Apply the second linear layer, its norm and the residual sum, except for the shift `(width,)` and the ReLU.

    Overwrites the block's input, given in parts; returns the sums in parts, and the shift.
    """
    # The second norm becomes part of the linear layer before it, which then needs no pass of its own.
    gain = block.expand_gain * (own.expand_variance + block.expand_eps).rsqrt()
    weight, shift = (block.expand * gain.unsqueeze(1)).T, block.expand_shift - own.expand_mean * gain
    pairs = zip(inputs, _hidden(block, own, reduced), strict=True)
    return (add_product(rows, hidden, weight, rounded) for rows, hidden in pairs), shift


def _measure(block: Block, reduced: list[Tensor], count: int) -> Statistics:
    """Compute the statistics of both norms from the output of the first linear layer."""
    dtype, wide = block.reduce.dtype, statistics_dtype(block.reduce)
    moments = [torch.batch_norm_update_stats(rows, None, None, momentum=0.0) for rows in reduced]
    mean, variance = pool_statistics(moments, [len(rows) / count for rows in reduced], wide)
    # The other four follow from the hidden rows, which need the first two.
    own = Statistics(mean.to(dtype), variance.to(dtype), *[mean] * 4)
    total, products = torch.zeros_like(mean), mean.new_zeros(len(mean), len(mean))
    for hidden in _hidden(block, own, reduced):
        total += hidden.sum(dim=0)
        products += hidden.T @ hidden
    mean = total / count
    covariance = products / count - mean.outer(mean)
    expand = block.expand.to(wide)
    # The diagonal of `expand @ covariance @ expand.T`, which rounding may leave below 0.
    variance = ((expand @ covariance) * expand).sum(dim=1).clamp_min_(0)
    return Statistics(*own[:2], *(one.to(dtype) for one in (mean, covariance, expand @ mean, variance)))


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
        [0, k), then the `Statistics` of every block.
    """
    neighborhoods = Neighborhoods(features, neighbors, centers, offsets, frequencies)
    parts = neighborhoods.parts()
    statistics: list[Tensor] = []
    first, *others = Block.unpack(weights, eps)
    reduced = list(neighborhoods.reduced_rows(first.reduce))
    statistics += (own := _measure(first, reduced, neighborhoods.count))
    # The input of the first block is computed only here, one part at a time, and overwritten.
    sums, shift = _expand(first, own, map(neighborhoods.rows, parts), reduced, rounded)
    for block in others:
        inputs, reduced = _reduce(block, sums, shift, rounded)
        statistics += (own := _measure(block, reduced, neighborhoods.count))
        sums, shift = _expand(block, own, inputs, reduced, rounded)
    pooled = features.new_empty(len(neighbors), neighborhoods.width)
    winners = neighbors.new_empty(pooled.shape)
    for part, rows in zip(parts, sums, strict=True):
        pooled[part], winners[part] = largest(rows.view(-1, neighbors.shape[1], neighborhoods.width))
    # The shift is the same for all neighbors and the ReLU monotonic: both are applied after the maximum.
    return [pooled.add_(shift).relu_(), winners, *statistics]


@torch.library.impl("hf_any3d::pooled_blocks", "Meta")
def _result_shapes(features: Tensor, neighbors: Tensor, *others: Any) -> list[Tensor]:
    *_, weights, eps, _ = others
    pooled = features.new_empty(len(neighbors), 2 * features.shape[1])
    results = [pooled, neighbors.new_empty(pooled.shape)]
    for block in Block.unpack(weights, eps):
        width, hidden = block.expand.shape
        shapes = [(hidden,), (hidden,), (hidden,), (hidden, hidden), (width,), (width,)]
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
    """Gradient of the output of a block before another one, in parts `(rows, width)`."""

    parts: list[Tensor]
    rounded: bool

    def total(self) -> Tensor:
        """Return the sum over all rows, `(width,)`."""
        return sum(rows.sum(dim=0) for rows in self.parts)

    def product(self, hidden: Iterable[Tensor]) -> Tensor:
        """Return the product of the transposed gradient `(width, rows)` with other rows `(rows, hidden)`."""
        return sum(multiply(rows.T, other, self.rounded) for rows, other in zip(self.parts, hidden, strict=True))

    def add_product(self, out: Tensor, weight: Tensor, number: int) -> Tensor:
        """Add the product of a part with `weight` `(width, hidden)` to `out` `(rows, hidden)`."""
        return add_product(out, self.parts[number], weight, self.rounded)

    def add_to(self, out: Tensor, number: int) -> Tensor:
        """Add the gradient of a part to its rows `out` `(rows, width)`."""
        return out.add_(self.parts[number])

    def add_to_features(self, out: Tensor, neighborhoods: Neighborhoods) -> None:
        """Add the gradient of all rows to that of the features, `(points, width / 2)`."""
        for part, rows in zip(neighborhoods.parts(), self.parts, strict=True):
            neighborhoods.add_to_features(out, part, rows)


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
    blocks, parts = Block.unpack(weights, eps), neighborhoods.parts()
    pooled, winners, *rest = results
    statistics = Statistics.unpack(rest)
    inputs: list[list[Tensor]] = [[]]  # those of the first block are computed where they are read
    reduced = [list(neighborhoods.reduced_rows(blocks[0].reduce))]
    for number in range(1, len(blocks)):
        before = number - 1
        entered = map(torch.clone, inputs[before]) if before else map(neighborhoods.rows, parts)
        sums, shift = _expand(blocks[before], statistics[before], entered, reduced[before], rounded)
        rows, products = _reduce(blocks[number], sums, shift, rounded)
        inputs.append(rows)
        reduced.append(products)
    # Through the last ReLU, which was applied to the maximum.
    grad_output = _PooledGradient(gradient.where(pooled > 0, 0), winners, neighbors.shape[1], parts)
    gradients: list[Tensor] = []
    for number in reversed(range(len(blocks))):
        block = blocks[number]
        grad_reduced, grad_norm, grad_expand = _through_expand(
            block, statistics[number], reduced.pop(), grad_output, neighborhoods.count, rounded
        )
        if number:
            grad_output, grad_reduce = _through_reduce(block, inputs.pop(), grad_reduced, grad_output, rounded)
        else:
            grad_features, grad_reduce = neighborhoods.reduced_gradient(block.reduce, grad_reduced)
            grad_output.add_to_features(grad_features, neighborhoods)
        # The norm after a layer cancels its bias.
        biases = torch.zeros_like(block.reduce_bias), torch.zeros_like(block.expand_bias)
        gradients = [grad_reduce, biases[0], *grad_norm, grad_expand[0], biases[1], *grad_expand[1:], *gradients]
    return [grad_features, *gradients]


def _through_reduce(
    block: Block,
    inputs: list[Tensor],
    grad_reduced: list[Tensor],
    grad_output: _PooledGradient | _RowsGradient,
    rounded: bool,
) -> tuple[_RowsGradient, Tensor]:
    """Return the gradients of the previous block's output before its ReLU, and of the first linear layer."""
    grad_reduce = torch.zeros_like(block.reduce)
    for number, (rows, grad_rows) in enumerate(zip(inputs, grad_reduced, strict=True)):
        half = grad_rows.bfloat16() if rounded else grad_rows  # rounded once for both products
        add_product(grad_reduce, half.T, rows, rounded)
        grad_inputs = grad_output.add_to(multiply(half, block.reduce, rounded), number)
        # Through the ReLU, into the memory of its output, which is not read again.
        torch.ops.aten.threshold_backward.grad_input(grad_inputs, rows, 0, grad_input=rows)
    return _RowsGradient(inputs, rounded), grad_reduce


def _through_expand(
    block: Block,
    own: Statistics,
    reduced: list[Tensor],
    grad_output: _PooledGradient | _RowsGradient,
    count: int,
    rounded: bool,
) -> tuple[list[Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return gradients of the first layer's output, of its norm, and of the second layer with its norm."""
    product = grad_output.product(_hidden(block, own, reduced))  # (width, hidden)
    grad_shift = grad_output.total()
    deviation = (own.expand_variance + block.expand_eps).rsqrt()
    gain = block.expand_gain * deviation
    # The output of the second layer was never computed. Its products with the gradient and with the hidden rows follow
    # from the layer's weight and the products of the hidden rows with the gradient and with themselves.
    grad_gain = deviation * ((block.expand * product).sum(dim=1) - own.expand_mean * grad_shift)
    share = (gain * deviation * grad_gain).unsqueeze(1) * block.expand  # (width, hidden)
    grad_weight = gain.unsqueeze(1) * (product - grad_shift.outer(own.hidden_mean)) - share @ own.hidden_covariance
    weight = gain.unsqueeze(1) * block.expand
    spread = block.expand.T @ share / -count  # (hidden, hidden)
    constant = own.hidden_mean @ -spread - grad_shift @ weight / count
    grad_normed: list[Tensor] = []
    total, moment = torch.zeros_like(block.reduce_gain), torch.zeros_like(block.reduce_gain)
    for number, (hidden, entered) in enumerate(zip(_hidden(block, own, reduced), reduced, strict=True)):
        rows = multiply(hidden, spread, True).add_(constant) if rounded else torch.addmm(constant, hidden, spread)
        grad_output.add_product(rows, weight, number)
        torch.ops.aten.threshold_backward.grad_input(rows, hidden, 0, grad_input=rows)  # the ReLU
        total += rows.sum(dim=0)
        moment += torch.sub(entered, own.reduce_mean, out=hidden).mul_(rows).sum(dim=0)
        grad_normed.append(rows)
    deviation = (own.reduce_variance + block.reduce_eps).rsqrt()
    gain = block.reduce_gain * deviation
    # In training the statistics depend on every row.
    slope = gain * deviation.square() * moment / -count
    constant = -own.reduce_mean * slope - gain * total / count
    for rows, entered in zip(grad_normed, reduced, strict=True):
        torch.addcmul(constant, rows, gain, out=rows).addcmul_(entered, slope)
    return grad_normed, (moment * deviation, total), (grad_weight, grad_gain, grad_shift)


@torch.library.impl("hf_any3d::pooled_blocks_backward", "Meta")
def _gradient_shapes(gradient: Tensor, features: Tensor, *others: Any) -> list[Tensor]:
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
