"""Sines and cosines of many numbers, read between the nodes of a table.

A neighbour's offset passes through hundreds of sines and cosines, far more than there are places that a table needs.
Reading six nodes takes a third of the time of computing the functions. And what is linear in them, such as the first
layer of a block, can be applied to the nodes instead of the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

# Six nodes, 0.28 radians of the fastest wave apart, are enough to be less than 1e-7 off. That is the rounding of
# float32, and less than what a phase in float32 would be off.
_TAPS, _RADIANS = 6, 0.28
# Numbers whose rows are read together.
_RUN = 128


def _coefficients() -> list[list[float]]:
    """Weights of the nodes as polynomials of the distance from their middle, `(powers, taps)`, constants first.

    Every wave is slow against the nodes. So the weights are exact for three slow waves, spread over all of them as
    Chebyshev's nodes are, and the error in between stays as small for the fastest wave as for the others. A polynomial
    through six nodes, exact for standing waves, would be thirty times as far off for the fastest one.
    """
    nodes = np.arange(_TAPS) - (_TAPS - 1) / 2
    waves = _TAPS // 2
    frequencies = _RADIANS * np.cos((2 * np.arange(waves) + 1) * np.pi / (4 * waves))
    away = np.cos((np.arange(64) + 0.5) * np.pi / 64) / 2

    def waves_at(places: np.ndarray) -> np.ndarray:
        phase = np.outer(frequencies, places)
        return np.concatenate([np.cos(phase), np.sin(phase)])

    weights = np.linalg.solve(waves_at(nodes), waves_at(away))  # (taps, places)
    return np.linalg.lstsq(np.vander(away, _TAPS, increasing=True), weights.T, rcond=None)[0].tolist()


_COEFFICIENTS = _coefficients()


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
        index = self.index.view(-1, 3, self.weights.shape[1]) + _axis_starts(self.first, table.shape[1]).unsqueeze(-1)
        weights = self.weights.reshape(len(index), -1)
        return nn.functional.embedding_bag(
            index.flatten(1), table.flatten(0, 1), mode="sum", per_sample_weights=weights
        )


@dataclass
class Places:
    """Where numbers lie among the nodes of a table.

    Args:
        first: `(rows,)` integers, the first of the nodes around each number.
        away: `(rows,)`, distance from the middle of those nodes in steps; None where every number is a node.
    """

    first: torch.Tensor
    away: torch.Tensor | None

    def __getitem__(self, rows: slice) -> Places:
        return Places(self.first[rows], None if self.away is None else self.away[rows])

    def taps(self, dtype: torch.dtype) -> Taps:
        """How to read a table there."""
        return Taps(self.first, _weights(self.first, self.away, dtype).T.contiguous())

    def add_to_axes(self, out: torch.Tensor, rows: torch.Tensor) -> None:
        """Add `rows` `(rows / 3, channels)` to tables `out` `(3, nodes, channels)`: the transpose of `read_axes`."""
        first = (self.first.view(-1, 3) + _axis_starts(self.first, out.shape[1])).flatten()
        first, order = first.sort()
        weights = _weights(first, None if self.away is None else self.away.index_select(0, order), out.dtype)
        taps = len(weights)
        # Runs of numbers, short enough that their rows stay in the cache while they are read once for every tap.
        unused = -len(order) % _RUN
        index = nn.functional.pad(order.div_(3, rounding_mode="floor"), (0, unused)).view(-1, 1, _RUN)
        weights = nn.functional.pad(weights, (0, unused)).view(taps, -1, _RUN).transpose(0, 1)  # (runs, taps, run)
        is_start = nn.functional.pad(first.diff() > 0, (1, 0), value=True)
        is_start[::_RUN] = True
        start = is_start.nonzero().squeeze(1)  # in every run, where the numbers of another node start
        tap = torch.arange(taps, device=out.device)
        bags, by_bag = ((start + start // _RUN * (taps - 1) * _RUN).unsqueeze(1) + tap * _RUN).flatten().sort()
        sums = nn.functional.embedding_bag(
            index.expand(-1, taps, -1).flatten(), rows, bags, mode="sum", per_sample_weights=weights.flatten()
        )
        nodes = first.index_select(0, start).unsqueeze(1) + tap
        out.flatten(0, 1).index_add_(0, nodes.flatten().index_select(0, by_bag), sums)


def _weights(first: torch.Tensor, away: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Weights of the nodes around numbers, `(taps, rows)`."""
    if away is None:
        return torch.ones(1, len(first), device=first.device, dtype=dtype)
    # By Horner's rule: faster than a product of matrices, and exact where TF32 is allowed for products.
    *others, weights = away.new_tensor(_COEFFICIENTS).unsqueeze(-1).unbind()  # each (taps, 1)
    weights = weights.repeat(1, len(away))
    for coefficients in reversed(others):
        torch.addcmul(coefficients, weights, away, out=weights)
    return weights


def _axis_starts(first: torch.Tensor, nodes: int) -> torch.Tensor:
    """Where the nodes of each axis start if the three tables are laid end to end."""
    return torch.arange(3, device=first.device, dtype=first.dtype) * nodes


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

    def places(self, numbers: torch.Tensor) -> Places:
        """Where `numbers` `(rows,)` lie; where the numbers are the nodes, these must be all of them."""
        if self.exact:
            return Places(torch.arange(len(numbers), device=numbers.device, dtype=torch.int32), None)
        # In double precision: a place is a large number, of which the fraction counts.
        place = (numbers.double() - self.first).div_(self.step).sub_(_TAPS / 2 - 1)
        base = place.nan_to_num(0, 0, 0).floor_().clamp_(0, len(self.waves) - _TAPS)
        return Places(base.int(), place.sub_(base).sub_(0.5).to(self.waves.dtype))
