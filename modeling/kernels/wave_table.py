"""Sines and cosines of many numbers, and linear functions of them, by interpolation in a table.

A neighbor's offset is encoded by hundreds of waves, far more values than a table of them needs nodes. Interpolating
between six nodes takes a third of the time of computing the functions, and linear functions of them, such as the
first layer of a block, are applied to the nodes instead of the rows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

# Six nodes, 0.28 radians of the fastest wave apart, give an error below 1e-7: the rounding of float32, and less than
# the error of a phase in float32.
_TAPS, _RADIANS = 6, 0.28
# Numbers whose rows are read together.
_RUN = 128


class WaveTable:
    """A table of `sin(f x)` and `cos(f x)` that covers numbers x, and the places of the numbers in it.

    Args:
        numbers: `(numbers,)`, on the CPU. If the table would have more nodes, they are the nodes.
        frequencies: `(count,)`, the frequencies f, the highest one first.
        dtype: Of the waves; float32 or float64.

    Attributes:
        waves: `(nodes, 2 * count)`, sines then cosines.
        first: `(numbers,)` integers, the first of the nodes around each number.
        weights: `(numbers, taps)` of these nodes.
    """

    def __init__(self, numbers: Tensor, frequencies: Tensor, dtype: torch.dtype):
        step = _RADIANS / float(frequencies[0])
        # NaN, as of offsets in a flat neighborhood divided by its height, stays NaN but needs a place.
        reach = float(numbers.nan_to_num(0, 0, 0).abs().amax())
        # Two more nodes at both ends, so that every number lies in the middle of six.
        start = -reach - (_TAPS // 2 - 1) * step
        nodes = math.ceil(2 * reach / step) + _TAPS
        if nodes > len(numbers):
            places = numbers.double()
            self.first = torch.arange(len(numbers), dtype=torch.int32)
            self.weights = torch.ones(len(numbers), 1, dtype=dtype)
        else:
            places = torch.arange(nodes, dtype=torch.float64) * step + start
            # In double precision: a place is a large number whose fraction matters.
            place = (numbers.double() - start).div_(step).sub_(_TAPS / 2 - 1)
            base = place.nan_to_num(0, 0, 0).floor_().clamp_(0, nodes - _TAPS)
            self.first = base.int()
            away = place.sub_(base).sub_(0.5).to(dtype)
            # Horner's rule, along the numbers.
            *others, weights = away.new_tensor(_COEFFICIENTS).unsqueeze(-1).unbind()  # each (taps, 1)
            weights = weights.repeat(1, len(away))
            for coefficients in reversed(others):
                torch.addcmul(coefficients, weights, away, out=weights)
            self.weights = weights.T.contiguous()
        phase = places.unsqueeze(-1) * frequencies
        self.waves = torch.cat([phase.sin(), phase.cos()], dim=-1).to(dtype)

    def read(self, numbers: slice) -> Tensor:
        """Return the waves of some numbers, `(numbers, 2 * count)`."""
        return nn.functional.embedding_bag(
            self._nodes(numbers), self.waves, mode="sum", per_sample_weights=self.weights[numbers]
        )

    def read_axes(self, tables: Tensor, numbers: slice) -> Tensor:
        """Interpolate three tables `(3, nodes, channels)` at every third number each; sum: `(numbers / 3, channels)`.

        The numbers are coordinates x, y, z, x, …; the tables are functions of the waves, one for each axis.
        """
        index = self._nodes(numbers).view(-1, 3, self.weights.shape[1]) + self._axes.unsqueeze(-1)
        weights = self.weights[numbers].reshape(len(index), -1)
        return nn.functional.embedding_bag(
            index.flatten(1), tables.flatten(0, 1), mode="sum", per_sample_weights=weights
        )

    def add_to_axes(self, out: Tensor, rows: Tensor, numbers: slice) -> None:
        """Add `rows` `(numbers / 3, channels)` to tables `out` `(3, nodes, channels)`: `read_axes` transposed."""
        # Sorted by node, so that the rows that are added to one node form a run, summed before it is added.
        first, order = (self.first[numbers].view(-1, 3) + self._axes).flatten().sort()
        weights = self.weights[numbers].index_select(0, order).T  # (taps, numbers)
        taps = len(weights)
        # Runs of numbers, short enough that their rows stay in the cache while they are read once for every tap.
        unused = -len(order) % _RUN
        index = nn.functional.pad(order.div_(3, rounding_mode="floor"), (0, unused)).view(-1, 1, _RUN)
        weights = nn.functional.pad(weights, (0, unused)).view(taps, -1, _RUN).transpose(0, 1)  # (runs, taps, run)
        is_start = nn.functional.pad(first.diff() > 0, (1, 0), value=True)
        # Runs end every `_RUN` numbers, within those of a node too.
        is_start[::_RUN] = True
        start = is_start.nonzero().squeeze(1)  # in every run, where the numbers of another node start
        tap = torch.arange(taps)
        # A bag is a stretch of one node in a run, once for each tap. Weights are laid out as (runs, taps, run), so a
        # run's taps lie `_RUN` apart and all runs before it take `taps - 1` more of those; bags must ascend.
        bags, by_bag = ((start + start // _RUN * (taps - 1) * _RUN).unsqueeze(1) + tap * _RUN).flatten().sort()
        sums = nn.functional.embedding_bag(
            index.expand(-1, taps, -1).flatten(), rows, bags, mode="sum", per_sample_weights=weights.flatten()
        )
        nodes = first.index_select(0, start).unsqueeze(1) + tap
        out.flatten(0, 1).index_add_(0, nodes.flatten().index_select(0, by_bag), sums)

    @property
    def _axes(self) -> Tensor:
        """Starts of the nodes of each axis if three tables are concatenated."""
        return torch.arange(3, dtype=torch.int32) * len(self.waves)

    def _nodes(self, numbers: slice) -> Tensor:
        return self.first[numbers].unsqueeze(-1) + torch.arange(self.weights.shape[1], dtype=torch.int32)


def _node_coefficients() -> list[list[float]]:
    """Return the weights of the nodes as polynomials of the distance from their middle, `(powers, taps)`.

    All waves are slow compared to the nodes. The weights are exact for three waves at Chebyshev nodes of the
    frequencies, which keeps the error as small for the fastest wave as for the others. A polynomial through six
    nodes, exact for constants, would have thirty times the error for the fastest one.
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


_COEFFICIENTS = _node_coefficients()
