"""The residual blocks of a tokenizer stage and the maximum behind them, in training, as one operation.

A stage has one row for every neighbour of every centre, far more rows than there are points or tokens, and batch norms
that need all rows before the first can go on. Written layer by layer, each layer, norm and sum reads and writes all
rows through main memory and keeps them for the backward pass. Here

- what enters the first linear layer is a sum of few different summands, which are multiplied before they are added;
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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from hf_any3d.modeling.any2point.neighborhoods import Neighborhoods
from hf_any3d.modeling.pooling_rows import largest


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
    """What a block keeps for its backward pass, rows in parts, and its statistics.

    Args:
        reduce_mean: `(hidden,)` behind the first linear layer.
        reduce_variance: `(hidden,)`.
        hidden_mean: `(hidden,)` of the rows that enter the second linear layer.
        hidden_covariance: `(hidden, hidden)` of those.
        expand_mean: `(width,)` behind the second linear layer.
        expand_variance: `(width,)`.
        reduced: For each part the rows `(rows, hidden)` behind the first linear layer.
        inputs: For each part the rows `(rows, width)` that enter the block; nothing for the first block, whose rows
            are made anew.
    """

    reduce_mean: torch.Tensor
    reduce_variance: torch.Tensor
    hidden_mean: torch.Tensor
    hidden_covariance: torch.Tensor
    expand_mean: torch.Tensor
    expand_variance: torch.Tensor
    reduced: list[torch.Tensor]
    inputs: list[torch.Tensor]

    def hidden(self, block: Block) -> Iterator[torch.Tensor]:
        """For each part the rows `(rows, hidden)` that enter the second linear layer, each in place of the last."""
        gain = block.reduce_gain * (self.reduce_variance + block.reduce_eps).rsqrt()
        shift = block.reduce_shift - self.reduce_mean * gain
        buffer = torch.empty_like(self.reduced[0])
        return (torch.addcmul(shift, rows, gain, out=buffer[: len(rows)]).relu_() for rows in self.reduced)

    def pack(self) -> list[torch.Tensor]:
        """All tensors in order."""
        *statistics, reduced, inputs = vars(self).values()
        return [*statistics, *reduced, *inputs]

    @staticmethod
    def unpack(tensors: list[torch.Tensor], blocks: int, parts: int) -> list[Kept]:
        """What the blocks keep, from the packed tensors of all of them."""
        tensors = iter(tensors)
        return [
            Kept(*islice(tensors, 6), list(islice(tensors, parts)), list(islice(tensors, parts if block else 0)))
            for block in range(blocks)
        ]


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
        what `Kept.unpack` reads.
    """
    hoods = Neighborhoods(features, neighbors, centers, offsets, frequencies)
    parts = hoods.parts()
    first, *others = Block.unpack(weights, eps)
    kept = [_first_half(hoods, first, hoods.reduced_rows(first.reduce), [])]
    # The first block's rows are made only here, one part at a time, and used up.
    sums, shift = _second_half(first, kept[0], map(hoods.rows, parts))
    for block in others:
        inputs: list[torch.Tensor] = []
        kept.append(_first_half(hoods, block, _next_rows(block, sums, shift, inputs), inputs))
        sums, shift = _second_half(block, kept[-1], map(torch.clone, inputs))
    pooled = features.new_empty(len(neighbors), hoods.width)
    winners = neighbors.new_empty(pooled.shape)
    for part, rows in zip(parts, sums, strict=True):
        pooled[part], winners[part] = largest(rows.view(-1, neighbors.shape[1], hoods.width))
    # What is the same for all neighbours, and the ReLU, can wait until after the maximum.
    return [pooled.add_(shift).relu_(), winners, *(tensor for one in kept for tensor in one.pack())]


def _next_rows(
    block: Block, sums: Iterable[torch.Tensor], shift: torch.Tensor, inputs: list[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Finish the block before and apply the first linear layer of this one, in parts; `inputs` gets what enters."""
    for rows in sums:
        inputs.append(rows.add_(shift).relu_())
        yield rows @ block.reduce.T


def _first_half(hoods: Neighborhoods, block: Block, parts: Iterable[torch.Tensor], inputs: list[torch.Tensor]) -> Kept:
    """Find the statistics of both norms from the rows behind the first linear layer."""
    reduced, means, variances = [], [], []
    for rows in parts:
        reduced.append(rows)
        mean, variance = torch.batch_norm_update_stats(rows, None, None, momentum=0.0)
        means.append(mean)
        variances.append(variance)
    dtype = block.reduce.dtype
    shares = torch.tensor([len(rows) / hoods.count for rows in reduced], dtype=torch.float64, device=mean.device)
    by_part = torch.stack(means).double()  # (parts, hidden)
    mean = shares @ by_part
    # Spread within the parts and between them: no small number beside a large one.
    variance = shares @ (torch.stack(variances) + (by_part - mean).square())
    kept = Kept(mean.to(dtype), variance.to(dtype), *[mean] * 4, reduced, inputs)
    total = torch.zeros_like(mean)
    products = total.new_zeros(len(total), len(total))
    half = len(total) // 2
    for hidden in kept.hidden(block):
        total += hidden.sum(dim=0)
        # The lower left quarter follows from the upper right one.
        products[:half] += hidden[:, :half].T @ hidden
        products[half:, half:] += hidden[:, half:].T @ hidden[:, half:]
    products[half:, :half] = products[:half, half:].T
    mean = total / hoods.count
    covariance = products / hoods.count - mean.outer(mean)
    expand = block.expand.double()
    variance = ((expand @ covariance) * expand).sum(dim=1).clamp_min_(0)
    kept.hidden_mean, kept.hidden_covariance = mean.to(dtype), covariance.to(dtype)
    kept.expand_mean, kept.expand_variance = (expand @ mean).to(dtype), variance.to(dtype)
    return kept


def _second_half(
    block: Block, kept: Kept, entering: Iterable[torch.Tensor]
) -> tuple[Iterator[torch.Tensor], torch.Tensor]:
    """Run the second linear layer, its norm and the residual sum, up to a summand of each channel: parts, summand.

    The rows that entered the block, in parts, are used up.
    """
    gain = block.expand_gain * (kept.expand_variance + block.expand_eps).rsqrt()
    weight = (block.expand * gain.unsqueeze(1)).T
    pairs = zip(entering, kept.hidden(block), strict=True)
    return (rows.addmm_(hidden, weight) for rows, hidden in pairs), block.expand_shift - kept.expand_mean * gain


@pooled_blocks.register_fake
def _result_shapes(features, neighbors, centers, offsets, frequencies, weights, eps):
    hoods = Neighborhoods(features, neighbors, centers, offsets, frequencies)
    pooled = features.new_empty(len(neighbors), hoods.width)
    sizes = [(part.stop - part.start) * neighbors.shape[1] for part in hoods.parts()]
    results = [pooled, neighbors.new_empty(pooled.shape)]
    for number, block in enumerate(Block.unpack(weights, eps)):
        width, hidden = block.expand.shape
        shapes = [(hidden,), (hidden,), (hidden,), (hidden, hidden), (width,), (width,)]
        shapes += [(size, hidden) for size in sizes] + [(size, width) for size in sizes if number]
        results += [features.new_empty(shape) for shape in shapes]
    return results
