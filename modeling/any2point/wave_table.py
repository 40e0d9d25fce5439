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
        index: `(rows, taps)` integers.
        weights: `(rows, taps)`.
    """

    index: torch.Tensor
    weights: torch.Tensor

    def read(self, table: torch.Tensor) -> torch.Tensor:
        """Weighted sums `(rows, channels)` of rows of a table."""
        return nn.functional.embedding_bag(self.index, table, mode="sum", per_sample_weights=self.weights)


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

    def taps(self, numbers: torch.Tensor, start: int) -> Taps:
        """How to read the waves at `numbers` `(rows,)`, those from place `start` on of all numbers."""
        if self.exact:
            index = torch.arange(start, start + len(numbers), device=numbers.device).unsqueeze(-1)
            return Taps(index.int(), torch.ones_like(index, dtype=self.waves.dtype))
        # In double precision: a place is a large number, of which the fraction counts.
        place = (numbers.double() - self.first) / self.step - (_TAPS / 2 - 1)
        base = place.nan_to_num(0, 0, 0).floor().clamp_(0, len(self.waves) - _TAPS)
        away = (place - base - 0.5).to(self.waves.dtype).unsqueeze(-1)  # (rows, 1), from the middle of the taps
        *rest, weights = away.new_tensor(_COEFFICIENTS)
        for coefficients in reversed(rest):
            weights = torch.addcmul(coefficients, weights, away)
        steps = torch.arange(_TAPS, device=numbers.device, dtype=torch.int32)
        return Taps(base.int().unsqueeze(-1) + steps, weights)
