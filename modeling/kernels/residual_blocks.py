"""Weights of the residual blocks of `pooled_blocks`, what is saved for the backward pass, and products of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor


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


@dataclass
class Saved:
    """Statistics of a block, and the rows that it saves for the backward pass, in parts.

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
        """Return the tensors to save of the block with this number in order."""
        # What the first blocks read is computed again from the neighborhoods in the backward pass, to save memory.
        *statistics, reduced, inputs = vars(self).values()
        return [*statistics, *(reduced if number > 0 else []), *(inputs if number > 1 else [])]

    @staticmethod
    def unpack(tensors: list[Tensor], blocks: int, parts: int) -> list[Saved]:
        """Invert `pack` for the tensors of all blocks."""
        tensors = iter(tensors)
        return [
            Saved(
                *islice(tensors, 6), *(list(islice(tensors, parts if number > skipped else 0)) for skipped in (0, 1))
            )
            for number in range(blocks)
        ]


def multiply(rows: Tensor, weight: Tensor, rounded: bool) -> Tensor:
    """Multiply rows by a weight, in bfloat16 if `rounded`."""
    return (rows.bfloat16() @ weight.bfloat16()).to(weight.dtype) if rounded else rows @ weight


def add_product(out: Tensor, rows: Tensor, weight: Tensor, rounded: bool) -> Tensor:
    """Add the product of rows and a weight, in bfloat16 if `rounded`, to `out`."""
    return out.add_(rows.bfloat16() @ weight.bfloat16()) if rounded else out.addmm_(rows, weight)
