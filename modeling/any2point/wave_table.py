"""Sines and cosines of many numbers, read between the nodes of a table.

A neighbour's offset passes through hundreds of sines and cosines, far more than there are places that a table needs.
Reading eight nodes takes a third of the time of computing the functions. And what is linear in them, such as the first
layer of a block, can be applied to the nodes instead of the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

# Lagrange's polynomial through eight nodes, 0.3 radians of the fastest wave apart, is less than 1e-7 off. That is the
# rounding of float32, and less than what a phase in float32 would be off.
_TAPS, _RADIANS = 8, 0.3


def _lagrange_coefficients() -> list[list[float]]:
    """Weights of the nodes as polynomials of the distance from their middle, `(powers, taps)`, constants first."""
    nodes = np.arange(_TAPS) - (_TAPS - 1) / 2
    others = [np.delete(nodes, tap) for tap in range(_TAPS)]
    return np.stack(
        [np.poly(rest)[::-1] / np.prod(node - rest) for node, rest in zip(nodes, others, strict=True)], axis=1
    ).tolist()


_COEFFICIENTS = _lagrange_coefficients()


@dataclass
class Taps:
    """Which rows of a table to sum, with which weights.

    Args:
        first: `(rows,)` integers, the first of the nodes that are summed; the others follow it.
        weights: `(rows, taps)`.
    """

    first: torch.Tensor
    weights: torch.Tensor

    def __getitem__(self, rows: slice) -> Taps:
        return Taps(self.first[rows], self.weights[rows])

    @property
    def index(self) -> torch.Tensor:
        """All nodes that are summed, `(rows, taps)`."""
        steps = torch.arange(self.weights.shape[1], device=self.first.device, dtype=self.first.dtype)
        return self.first.unsqueeze(-1) + steps

    def read(self, table: torch.Tensor) -> torch.Tensor:
        """Weighted sums `(rows, channels)` of rows of a table."""
        return nn.functional.embedding_bag(self.index, table, mode="sum", per_sample_weights=self.weights)

    def read_axes(self, table: torch.Tensor) -> torch.Tensor:
        """Weighted sums `(rows / 3, channels)` where rows are the three axes in turns, each with a table of its own.

        Args:
            table: `(3, nodes, channels)`.
        """
        index = self.index.view(-1, 3, self.weights.shape[1]) + self._starts(table.shape[1]).unsqueeze(-1)
        weights = self.weights.reshape(len(index), -1)
        return nn.functional.embedding_bag(
            index.flatten(1), table.flatten(0, 1), mode="sum", per_sample_weights=weights
        )

    def add_to_axes(self, out: torch.Tensor, rows: torch.Tensor) -> None:
        """Add `rows` `(rows / 3, channels)` to tables `out` `(3, nodes, channels)`: the transpose of `read_axes`."""
        taps = self.weights.shape[1]
        first = (self.first.view(-1, 3) + self._starts(out.shape[1])).flatten()
        first, order = first.sort()
        starts = torch.searchsorted(first, torch.arange(3 * out.shape[1], device=out.device, dtype=first.dtype))
        weights = self.weights.index_select(0, order).T.flatten()  # tap by tap
        each = torch.arange(taps, device=out.device).unsqueeze(-1)
        sums = nn.functional.embedding_bag(
            order.div_(3, rounding_mode="floor").repeat(taps),
            rows,
            (starts + each * len(order)).flatten(),
            mode="sum",
            per_sample_weights=weights,
        ).view(taps, *out.shape)
        for tap in range(taps):
            out[:, tap:] += sums[tap, :, : out.shape[1] - tap]

    def _starts(self, nodes: int) -> torch.Tensor:
        return torch.arange(3, device=self.first.device, dtype=self.first.dtype) * nodes


class WaveTable:
    """A table of `sin(f x)` and `cos(f x)` that holds all of the given numbers.

    Args:
        numbers: The numbers x, of any shape. If they are fewer than the table would have nodes, they are the nodes.
        frequencies: `(count,)`, the frequencies f, the highest one first.
        dtype: Of the waves; float32 or float64.

    Attributes:
        waves: `(nodes, 2 * count)`, sines then cosines.
    """

    def __init__(self, numbers: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype):
        self.step = _RADIANS / float(frequencies[0])
        # Undefined numbers, such as offsets of a flat neighbourhood over its height, stay undefined but need a place.
        reach = float(numbers.nan_to_num(0, 0, 0).abs().amax())
        self.first = -reach - (_TAPS // 2 - 1) * self.step
        nodes = math.ceil(2 * reach / self.step) + _TAPS
        self.exact = nodes > numbers.numel()
        if self.exact:
            places = numbers.flatten().double()
        else:
            places = torch.arange(nodes, device=numbers.device, dtype=torch.float64) * self.step + self.first
        phase = places.unsqueeze(-1) * frequencies
        self.waves = torch.cat([phase.sin(), phase.cos()], dim=-1).to(dtype)

    def taps(self, numbers: torch.Tensor) -> Taps:
        """How to read the waves at `numbers` `(rows,)`; where the numbers are the nodes, all of them."""
        if self.exact:
            first = torch.arange(len(numbers), device=numbers.device, dtype=torch.int32)
            return Taps(first, self.waves.new_ones(len(numbers), 1))
        # In double precision: a place is a large number, of which the fraction counts.
        place = (numbers.double() - self.first).div_(self.step).sub_(_TAPS / 2 - 1)
        base = place.nan_to_num(0, 0, 0).floor_().clamp_(0, len(self.waves) - _TAPS)
        away = place.sub_(base).sub_(0.5).to(self.waves.dtype)  # from the middle of the taps
        powers = torch.ones(_TAPS, len(away), device=away.device, dtype=away.dtype)
        for power in range(1, _TAPS):
            torch.mul(powers[power - 1], away, out=powers[power])
        return Taps(base.int(), powers.T @ away.new_tensor(_COEFFICIENTS))
