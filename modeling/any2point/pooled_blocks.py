"""The residual blocks of a tokenizer stage and the maximum behind them, in training, as one operation.

A stage has one row for every neighbour of every centre, far more rows than there are points or tokens, and batch norms
that need all rows before the first can go on. Written layer by layer, each layer, norm and sum reads and writes all
rows through main memory and keeps them for the backward pass. Here

- rows are worked on in parts that stay in the cache, between the points where a norm needs them all;
- the statistics behind a linear layer follow from the mean and the covariance of what enters it, so that its norm
  becomes part of its weights and the sum with the residual part of its product;
- only the narrow rows between the two layers of a block are kept, with the input of blocks behind the first;
- the maximum passes a gradient to one neighbour for each centre and channel, so the products with that gradient are
  sums of few rows; what the norm spreads over the others is a linear function of them.

Numbers and gradients are those of the plain modules up to rounding. Both directions are custom operators, which
`torch.compile` takes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_any3d.modeling.any2point.neighborhoods import Neighborhoods


@dataclass
class Block:
    """Weights of a residual block.

    The biases of linear layers are never read: the norm behind them takes them out again.

    Args:
        reduce: `(hidden, width)`.
        reduce_bias: `(hidden,)`.
        reduce_gain: `(hidden,)` of the norm behind it.
        reduce_shift: `(hidden,)`.
        expand: `(width, hidden)`.
        expand_bias: `(width,)`.
        expand_gain: `(width,)` of the norm behind it.
        expand_shift: `(width,)`.
        reduce_eps: Added to the variance in the first norm.
        expand_eps: Added to the variance in the second.
    """

    reduce: torch.Tensor
    reduce_bias: torch.Tensor
    reduce_gain: torch.Tensor
    reduce_shift: torch.Tensor
    expand: torch.Tensor
    expand_bias: torch.Tensor
    expand_gain: torch.Tensor
    expand_shift: torch.Tensor
    reduce_eps: float
    expand_eps: float

    @staticmethod
    def unpack(weights: list[torch.Tensor], eps: list[float]) -> list[Block]:
        """Blocks from the flat lists that operators take: eight tensors and two epsilons a block."""
        return [Block(*weights[8 * i : 8 * i + 8], *eps[2 * i : 2 * i + 2]) for i in range(len(eps) // 2)]


@dataclass
class Kept:
    """What a block keeps for its backward pass, and its statistics.

    Args:
        reduced: `(rows, hidden)` behind the first linear layer.
        reduce_mean: `(hidden,)` of those.
        reduce_variance: `(hidden,)`.
        hidden_mean: `(hidden,)` of the rows that enter the second linear layer.
        hidden_covariance: `(hidden, hidden)` of those.
        expand_mean: `(width,)` behind the second linear layer.
        expand_variance: `(width,)`.
    """

    reduced: torch.Tensor
    reduce_mean: torch.Tensor
    reduce_variance: torch.Tensor
    hidden_mean: torch.Tensor
    hidden_covariance: torch.Tensor
    expand_mean: torch.Tensor
    expand_variance: torch.Tensor

    FIELDS = 7

    def hidden(self, block: Block, part: slice) -> torch.Tensor:
        """The rows of a part that enter the second linear layer."""
        gain = block.reduce_gain * (self.reduce_variance + block.reduce_eps).rsqrt()
        return torch.addcmul(block.reduce_shift - self.reduce_mean * gain, self.reduced[part], gain).relu_()


@torch.library.custom_op("hf_any3d::pooled_blocks", mutates_args=())
def pooled_blocks(
    features: torch.Tensor,
    neighbors: torch.Tensor,
    centers: torch.Tensor,
    offsets: torch.Tensor,
    frequencies: torch.Tensor,
    weights: list[torch.Tensor],
    eps: list[float],
) -> list[torch.Tensor]:
    """Residual blocks on the rows of all neighbourhoods with batch statistics, then the maximum of each neighbourhood.

    Args:
        features: See `Neighborhoods`, as the next four.
        neighbors: Neighbours of the centres.
        centers: The centres.
        offsets: Normalised offsets.
        frequencies: Of the sinusoid.
        weights: Eight tensors for each block, in the order of `Block`.
        eps: Two numbers for each block, in the order of `Block`.

    Returns:
        The pooled features `(centers, width)`, the winning neighbours `(centers, width)` as numbers in [0, k), then
        for each block the tensors of `Kept` in order, then the input of each block behind the first.
    """
    hoods = Neighborhoods(features, neighbors, centers, offsets, frequencies)
    blocks = Block.unpack(weights, eps)
    shape = (neighbors.numel(), hoods.width)
    inputs, kept = [features.new_empty(shape)], []
    for number, block in enumerate(blocks):
        kept.append(_first_half(hoods, block, inputs[-1], fill=number == 0))
        if number < len(blocks) - 1:
            inputs.append(features.new_empty(shape))
            for _, part in hoods.parts():
                torch.relu_(_second_half(block, kept[-1], inputs[-2], part, out=inputs[-1][part]))
    pooled = features.new_empty(len(neighbors), hoods.width)
    winners = neighbors.new_empty(pooled.shape)
    for group, part in hoods.parts():
        rows = _second_half(blocks[-1], kept[-1], inputs[-1], part)
        # The maximum before the ReLU: the same numbers from fewer.
        rows = rows.view(-1, neighbors.shape[1], hoods.width)
        torch.max(rows, dim=1, out=(pooled[group], winners[group]))
    flat = [tensor for one in kept for tensor in vars(one).values()]
    return [pooled.relu_(), winners, *flat, *inputs[1:]]


def _first_half(hoods: Neighborhoods, block: Block, inputs: torch.Tensor, fill: bool) -> Kept:
    """Run the first linear layer on all rows, and find the statistics of both norms."""
    count = len(inputs)
    reduced = inputs.new_empty(count, len(block.reduce))
    total = torch.zeros(reduced.shape[1], dtype=torch.float64, device=inputs.device)
    squares = torch.zeros_like(total)
    for group, part in hoods.parts():
        if fill:
            inputs[part] = hoods.rows(group)
        rows = torch.mm(inputs[part], block.reduce.T, out=reduced[part])
        if part.start == 0:
            # Squares are summed around a guess of the mean, lest a small spread drown beside a large mean.
            guess = rows.mean(dim=0)
        rows = rows - guess
        total += rows.sum(dim=0)
        squares += rows.square_().sum(dim=0)
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min_(0)
    kept = Kept(reduced, (guess + mean).to(inputs.dtype), variance.to(inputs.dtype), *[reduced] * 4)
    products = total.new_zeros(len(total), len(total))
    total.zero_()
    for _, part in hoods.parts():
        hidden = kept.hidden(block, part)
        total += hidden.sum(dim=0)
        products += hidden.T @ hidden
    mean = total / count
    covariance = products / count - mean.outer(mean)
    expand = block.expand.double()
    variance = ((expand @ covariance) * expand).sum(dim=1).clamp_min_(0)
    kept.hidden_mean, kept.hidden_covariance = mean.to(inputs.dtype), covariance.to(inputs.dtype)
    kept.expand_mean, kept.expand_variance = (expand @ mean).to(inputs.dtype), variance.to(inputs.dtype)
    return kept


def _second_half(
    block: Block, kept: Kept, inputs: torch.Tensor, part: slice, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Second linear layer, norm and residual sum of a part; the ReLU is left to the caller."""
    gain = block.expand_gain * (kept.expand_variance + block.expand_eps).rsqrt()
    shift = block.expand_shift - kept.expand_mean * gain
    rows = torch.addmm(shift, kept.hidden(block, part), (block.expand * gain.unsqueeze(1)).T, out=out)
    return rows.add_(inputs[part])


@pooled_blocks.register_fake
def _result_shapes(features, neighbors, centers, offsets, frequencies, weights, eps):
    pooled = features.new_empty(len(neighbors), 2 * features.shape[1])
    flat = []
    for block in Block.unpack(weights, eps):
        hidden, width = block.reduce.shape
        shapes = (neighbors.numel(), hidden), (hidden,), (hidden,), (hidden,), (hidden, hidden), (width,), (width,)
        flat += [features.new_empty(shape) for shape in shapes]
    inputs = [features.new_empty(neighbors.numel(), pooled.shape[1]) for _ in eps[2::2]]
    return [pooled, neighbors.new_empty(pooled.shape), *flat, *inputs]
