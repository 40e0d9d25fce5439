"""Convolution of the occupied cells of a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_any3d.modeling.kernels.dispatch import without_autocast

POSITIONS = 27
"""Of a 3³ kernel; tables of others know their own."""


class NeighborTable:
    """Pairs of occupied cells that touch, for the positions of a cubic kernel, x slowest; from a list or a table.

    Positions are numbered through: of a 3³ kernel there are 27, and the central one is 13. Each of the two is made
    from the other when it is first needed. A list is shorter, but its size depends on the data: an accelerator would
    wait for it.

    Args:
        pairs: For each kernel position before the central one the voxels that have a neighbor there, and that
            neighbor, `(pairs,)` each. Those after the central one are the same pairs the other way round.
        table: `(positions, voxels)` int32, the neighbor of each voxel, -1 if there is none.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]] | None = None, table: Tensor | None = None):
        self._pairs = pairs
        self._table = table

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The list."""
        if self._pairs is None:
            assert self._table is not None
            half = self._table[: self.center]
            # Voxels with a neighbor at each position of the first half; the second half holds the same pairs.
            voxels = [(row >= 0).nonzero()[:, 0] for row in half]
            self._pairs = [(own, row[own].long()) for own, row in zip(voxels, half, strict=True)]
        return self._pairs

    @property
    def center(self) -> int:
        """Number of the central kernel position."""
        if self._pairs is not None:
            return len(self._pairs)
        assert self._table is not None
        return len(self._table) // 2

    def dense(self, count: int) -> Tensor:
        """Return the table `(positions, voxels)` of so many voxels."""
        if self._table is None:
            assert self._pairs is not None
            device = self._pairs[0][0].device
            self._table = torch.full((2 * self.center + 1, count), -1, dtype=torch.int32, device=device)
            # -1 stays where a voxel has no neighbor; at the center, every voxel is its own.
            self._table[self.center] = torch.arange(count, device=device)
            for position in range(len(self._table)):
                if position != self.center:
                    voxels, neighbors = self.at(position)
                    self._table[position, voxels] = neighbors.int()
        return self._table

    def at(self, position: int) -> tuple[Tensor, Tensor]:
        """Return the voxels with a neighbor at a kernel position, except the central one, and the neighbors."""
        if position < self.center:
            return self.pairs[position]
        # Opposite positions have the same pairs: if b is right of a, a is left of b.
        voxels, neighbors = self.pairs[2 * self.center - position]
        return neighbors, voxels


def submanifold_convolution_plain(values: Tensor, weight: Tensor, bias: Tensor | None, table: NeighborTable) -> Tensor:
    """Convolve occupied cells with a cubic kernel, as a dense convolution of the zero-filled grid, read there.

    For each kernel position, the neighbors are gathered, multiplied and added to the rows of the output. Sums are in
    float32 for half precision.

    Args:
        values: `(voxels, in_channels)`.
        weight: `(out_channels, size, size, size, in_channels)`, of the size of the table; the kernel's axes are x, y
            and z, not flipped.
        bias: `(out_channels,)` or None.
        table: Neighbors of the voxels.

    Returns:
        `(voxels, out_channels)`.

    Source: Graham et al., 3D Semantic Segmentation with Submanifold Sparse Convolutional Networks (2018).
    """
    kernel = weight.flatten(1, 3)  # (out_channels, positions, in_channels)
    center = table.center
    # Every voxel is its own neighbor at the center, so nothing is gathered there.
    total = torch.nn.functional.linear(values, kernel[:, center], bias)
    # Up to 27 products are added to a row: in half precision, each sum would round.
    dtype = total.dtype
    total = total.to(_wide(total.dtype))
    for position in range(kernel.shape[1]):
        if position != center:
            voxels, neighbors = table.at(position)
            product = values[neighbors] @ kernel[:, position].T  # (pairs, out_channels)
            total.index_add_(0, voxels, product.to(total.dtype))
    return total.to(dtype)


def submanifold_convolution_fused(values: Tensor, weight: Tensor, bias: Tensor | None, table: NeighborTable) -> Tensor:
    """Compute `submanifold_convolution_plain`; saves only its inputs.

    The plain one saves the gathered neighbors of all kernel positions, about ten times its input.
    """
    if torch.is_grad_enabled():
        return _Convolution.apply(values, weight, bias, table)
    return submanifold_convolution_plain(values, weight, bias, table)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, table: NeighborTable) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.table = table
        return submanifold_convolution_plain(values, weight, bias, table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        # (out_channels, positions, in_channels)
        kernel = weight.flatten(1, 3)
        center = ctx.table.center
        needs_values, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # The center first, as in the forward pass: all rows in order, without an index.
        to_values = (gradient @ kernel[:, center]).to(_wide(values.dtype)) if needs_values else None
        to_weight = torch.empty_like(kernel) if needs_weight else None
        if to_weight is not None:
            to_weight[:, center] = gradient.T @ values
        for position in range(kernel.shape[1]):
            if position == center:
                continue
            voxels, neighbors = ctx.table.at(position)
            # Gathered once for both gradients, and again here rather than saved in the forward pass.
            own = gradient[voxels]  # (pairs, out_channels)
            if to_values is not None:
                # Each pair the other way round: the gradient of a voxel's output goes to its neighbor's input.
                to_values.index_add_(0, neighbors, (own @ kernel[:, position]).to(to_values.dtype))
            if to_weight is not None:
                to_weight[:, position] = own.T @ values[neighbors]
        return (
            None if to_values is None else to_values.to(values.dtype),
            None if to_weight is None else to_weight.view_as(weight),
            gradient.sum(dim=0) if needs_bias else None,
            None,
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
