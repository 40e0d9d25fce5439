"""Rows of a tokenizer stage, one for every neighbor of every center, computed in parts.

A neighbor's offset is encoded by hundreds of sines and cosines, far more values than a table of them needs nodes.
Interpolating between six nodes takes a third of the time of computing the functions, and linear functions of them,
such as the first layer of a block, can be applied to the nodes instead of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

# Numbers per part: on the CPU few enough for the caches, elsewhere enough to keep the device busy.
_PART_CPU, _PART = 1 << 19, 1 << 24
# Numbers added by index at a time: few enough for the last cache.
_ADDED = 1 << 22
# Six nodes, 0.28 radians of the fastest wave apart, give an error below 1e-7: the rounding of float32, and less than
# the error of a phase in float32.
_TAPS, _RADIANS = 6, 0.28
# Numbers whose rows are read together.
_RUN = 128


def offset_frequencies(width: int, alpha: float, beta: float, device: torch.device | None = None) -> Tensor:
    """Return the frequencies `(width / 6,)` of the sinusoidal encoding of offsets (Point-NN, Eq. 3)."""
    count = width // 6
    return beta / alpha ** (torch.arange(count, device=device, dtype=torch.float32) / count)


def encode_offsets(offsets: Tensor, frequencies: Tensor) -> Tensor:
    """Encode offsets `(..., 3)` as `(..., width)`: x sines, x cosines, then y, then z (Point-NN, Eq. 3)."""
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
    phase = offsets.unsqueeze(-1) * frequencies  # (..., 3, width / 6)
    return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2)


@dataclass
class Neighborhoods:
    """Neighborhoods of all clouds of a batch, concatenated.

    Args:
        features: `(points, width / 2)`.
        neighbors: `(centers, k)`, rows of `features`.
        centers: `(centers,)`, rows of `features`.
        offsets: `(centers, k, 3)`, normalized positions of the neighbors relative to their centers.
        frequencies: `(width / 6,)` of the encoding of the offsets.
    """

    features: Tensor
    neighbors: Tensor
    centers: Tensor
    offsets: Tensor
    frequencies: Tensor

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.features.device

    @property
    def width(self) -> int:
        """Channels of a row."""
        return 2 * self.features.shape[1]

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.neighbors.numel()

    def all_rows(self) -> Tensor:
        """Compute all rows at once, `(centers * k, width)`, differentiable in features and offsets."""
        neighbors = self.features.index_select(0, self.neighbors.flatten())  # (centers * k, width / 2)
        centers = self.features.index_select(0, self.centers).repeat_interleave(self.neighbors.shape[1], dim=0)
        encoded = encode_offsets(self.offsets, self.frequencies).flatten(0, 1)
        return torch.cat([neighbors, centers], dim=-1).add_(encoded)

    def parts(self) -> list[slice]:
        """Split the centers into parts."""
        centers, k = self.neighbors.shape
        # Compilers infer shapes on "meta", with tensors that know their own device.
        device = getattr(self.features, "fake_device", self.features.device)
        values = _PART_CPU if device.type == "cpu" else _PART
        step = max(1, values // (k * self.width))
        return [slice(start, min(start + step, centers)) for start in range(0, centers, step)]

    @property
    def uses_table(self) -> bool:
        """True if the encoding is read from a table.

        An accelerator computes the functions as fast, and would wait for the size of the table.
        """
        return self.device.type == "cpu"

    @cached_property
    def table(self) -> WaveTable:
        """The encoding's sines and cosines at the nodes of a table."""
        return WaveTable(self.offsets, self.frequencies, self.features.dtype)

    @cached_property
    def places(self) -> Places:
        """Positions of the offsets in the table, `(centers * k * 3,)`."""
        return self.table.places(self.offsets.flatten())

    @cached_property
    def taps(self) -> Taps:
        """Interpolation of the encoded offsets, `(centers * k * 3, taps)`."""
        return self.places.taps(self.features.dtype)

    def _coordinates(self, part: slice) -> slice:
        """Return where the coordinates of a part are among those of all offsets."""
        axes = 3 * self.neighbors.shape[1]
        return slice(part.start * axes, part.stop * axes)

    def rows(self, part: slice) -> Tensor:
        """Compute the rows of a part, `(rows, width)`: features of neighbor and center plus the encoded offset."""
        if self.uses_table:
            rows = self.taps[self._coordinates(part)].read(self.table.waves).view(-1, self.width)
        else:
            rows = encode_offsets(self.offsets[part], self.frequencies).flatten(0, 1).to(self.features.dtype)
        half = self.features.shape[1]
        rows[:, :half] += self.features.index_select(0, self.neighbors[part].flatten())
        centers = self.features.index_select(0, self.centers[part])
        rows.view(len(centers), -1, self.width)[:, :, half:] += centers.unsqueeze(1)
        return rows

    def reduced_rows(self, weight: Tensor) -> Iterator[Tensor]:
        """Multiply all rows by `weight` `(hidden, width)`, in parts `(rows, hidden)`.

        There are far fewer points, centers and nodes than rows; these are multiplied, and rows are sums of products.
        """
        if not self.uses_table:
            yield from (self.rows(part) @ weight.T for part in self.parts())
            return
        half = self.features.shape[1]
        as_neighbor = self.features @ weight[:, :half].T  # (points, hidden)
        as_center = self.features.index_select(0, self.centers) @ weight[:, half:].T  # (centers, hidden)
        # All axes share the waves, but each has columns of its own in the weight.
        table = self.table.waves @ weight.view(len(weight), 3, -1).permute(1, 2, 0)  # (3, nodes, hidden)
        for part in self.parts():
            rows = self.taps[self._coordinates(part)].read_axes(table)
            rows += as_neighbor.index_select(0, self.neighbors[part].flatten())
            rows.view(part.stop - part.start, -1, len(weight)).add_(as_center[part].unsqueeze(1))
            yield rows

    def reduced_gradient(self, weight: Tensor, grad_rows: Callable[[slice], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the gradients of the features and of the weight of `reduced_rows`.

        Args:
            weight: `(hidden, width)`.
            grad_rows: Returns the gradient of the rows of consecutive parts, `(rows, hidden)`.
        """
        if not self.uses_table:
            return self._gradient_of_rows(weight, grad_rows)
        half = self.features.shape[1]
        as_neighbor = self.features.new_zeros(len(self.features), len(weight))
        as_center = torch.zeros_like(as_neighbor)
        table = self.features.new_zeros(3, len(self.table.waves), len(weight))
        parts = self.parts()
        # Several parts together: every sum by index has a cost per bin.
        some = max(1, _ADDED // (len(weight) * self.neighbors.shape[1] * parts[0].stop))
        for numbers in (slice(start, start + some) for start in range(0, len(parts), some)):
            together = parts[numbers]
            part = slice(together[0].start, together[-1].stop)
            rows = grad_rows(numbers)
            as_neighbor.index_add_(0, self.neighbors[part].flatten(), rows)
            as_center.index_add_(0, self.centers[part], rows.view(part.stop - part.start, -1, len(weight)).sum(dim=1))
            self.places[self._coordinates(part)].add_to_axes(table, rows)
        grad_weight = (table.transpose(1, 2) @ self.table.waves).transpose(0, 1).reshape_as(weight)
        grad_weight[:, :half].addmm_(as_neighbor.T, self.features)
        grad_weight[:, half:].addmm_(as_center.T, self.features)
        return as_neighbor @ weight[:, :half] + as_center @ weight[:, half:], grad_weight

    def _gradient_of_rows(self, weight: Tensor, grad_rows: Callable[[slice], Tensor]) -> tuple[Tensor, Tensor]:
        grad_features, grad_weight = torch.zeros_like(self.features), torch.zeros_like(weight)
        for number, part in enumerate(self.parts()):
            rows = grad_rows(slice(number, number + 1))  # (rows, hidden)
            grad_weight.addmm_(rows.T, self.rows(part))
            self.add_to_features(grad_features, part, rows @ weight)
        return grad_features, grad_weight

    def add_to_features(self, out: Tensor, part: slice, grad_rows: Tensor) -> None:
        """Add the gradient of a part's rows to that of the features, `(points, width / 2)`."""
        half = out.shape[1]
        neighbors = self.neighbors[part]
        out.index_add_(0, neighbors.flatten(), grad_rows[:, :half])
        out.index_add_(0, self.centers[part], grad_rows.view(*neighbors.shape, 2 * half)[:, :, half:].sum(dim=1))


class WaveTable:
    """A table of `sin(f x)` and `cos(f x)` that covers all of the given numbers.

    Args:
        numbers: The numbers x, of any shape. If the table would have more nodes than numbers, they are the nodes.
        frequencies: `(count,)`, the frequencies f, the highest one first.
        dtype: Of the waves; float32 or float64.

    Attributes:
        waves: `(nodes, 2 * count)`, sines then cosines.
    """

    def __init__(self, numbers: Tensor, frequencies: Tensor, dtype: torch.dtype):
        self.step = _RADIANS / float(frequencies[0])
        # NaN, as of offsets in a flat neighborhood divided by its height, stays NaN but needs a place.
        reach = float(numbers.nan_to_num(0, 0, 0).abs().amax())
        # Two more nodes at both ends, so that every number lies in the middle of six.
        self.first = -reach - (_TAPS // 2 - 1) * self.step
        nodes = math.ceil(2 * reach / self.step) + _TAPS
        self.exact = nodes > numbers.numel()
        if self.exact:
            places = numbers.flatten().double()
        else:
            places = torch.arange(nodes, device=numbers.device, dtype=torch.float64) * self.step + self.first
        phase = places.unsqueeze(-1) * frequencies
        self.waves = torch.cat([phase.sin(), phase.cos()], dim=-1).to(dtype)

    def places(self, numbers: Tensor) -> Places:
        """Find `numbers` `(rows,)` in the table; if the numbers are the nodes, these must be all of them."""
        if self.exact:
            return Places(torch.arange(len(numbers), device=numbers.device, dtype=torch.int32), None)
        # In double precision: a place is a large number whose fraction matters.
        place = (numbers.double() - self.first).div_(self.step).sub_(_TAPS / 2 - 1)
        base = place.nan_to_num(0, 0, 0).floor_().clamp_(0, len(self.waves) - _TAPS)
        return Places(base.int(), place.sub_(base).sub_(0.5).to(self.waves.dtype))


@dataclass
class Places:
    """Positions of numbers among the nodes of a table.

    Args:
        first: `(rows,)` integers, the first of the nodes around each number.
        away: `(rows,)`, distance from the middle of those nodes in steps; None if every number is a node.
    """

    first: Tensor
    away: Tensor | None

    def __getitem__(self, rows: slice) -> Places:
        return Places(self.first[rows], None if self.away is None else self.away[rows])

    def taps(self, dtype: torch.dtype) -> Taps:
        """Return the weights that interpolate a table at these places."""
        return Taps(self.first, _node_weights(self.first, self.away, dtype).T.contiguous())

    def add_to_axes(self, out: Tensor, rows: Tensor) -> None:
        """Add `rows` `(rows / 3, channels)` to tables `out` `(3, nodes, channels)`: the transpose of `read_axes`."""
        # Sorted by node, so that the rows that are added to one node form a run, summed before it is added.
        first = (self.first.view(-1, 3) + _axis_starts(self.first, out.shape[1])).flatten()
        first, order = first.sort()
        weights = _node_weights(first, None if self.away is None else self.away.index_select(0, order), out.dtype)
        taps = len(weights)
        # Runs of numbers, short enough that their rows stay in the cache while they are read once for every tap.
        unused = -len(order) % _RUN
        index = nn.functional.pad(order.div_(3, rounding_mode="floor"), (0, unused)).view(-1, 1, _RUN)
        weights = nn.functional.pad(weights, (0, unused)).view(taps, -1, _RUN).transpose(0, 1)  # (runs, taps, run)
        is_start = nn.functional.pad(first.diff() > 0, (1, 0), value=True)
        # Runs end every `_RUN` numbers, within those of a node too.
        is_start[::_RUN] = True
        start = is_start.nonzero().squeeze(1)  # in every run, where the numbers of another node start
        tap = torch.arange(taps, device=out.device)
        # A bag is a stretch of one node in a run, once for each tap. Weights are laid out as (runs, taps, run), so a
        # run's taps lie `_RUN` apart and all runs before it take `taps - 1` more of those; bags must ascend.
        bags, by_bag = ((start + start // _RUN * (taps - 1) * _RUN).unsqueeze(1) + tap * _RUN).flatten().sort()
        sums = nn.functional.embedding_bag(
            index.expand(-1, taps, -1).flatten(), rows, bags, mode="sum", per_sample_weights=weights.flatten()
        )
        nodes = first.index_select(0, start).unsqueeze(1) + tap
        out.flatten(0, 1).index_add_(0, nodes.flatten().index_select(0, by_bag), sums)


@dataclass
class Taps:
    """Rows of a table to sum, and their weights.

    Args:
        first: `(rows,)` integers, the first of the consecutive nodes to sum.
        weights: `(rows, taps)`.
    """

    first: Tensor
    weights: Tensor

    def __getitem__(self, rows: slice) -> Taps:
        return Taps(self.first[rows], self.weights[rows])

    @property
    def index(self) -> Tensor:
        """All nodes to sum, `(rows, taps)`."""
        steps = torch.arange(self.weights.shape[1], device=self.first.device, dtype=self.first.dtype)
        return self.first.unsqueeze(-1) + steps

    def read(self, table: Tensor) -> Tensor:
        """Compute weighted sums `(rows, channels)` of rows of a table."""
        return nn.functional.embedding_bag(self.index, table, mode="sum", per_sample_weights=self.weights)

    def read_axes(self, table: Tensor) -> Tensor:
        """Compute weighted sums `(rows / 3, channels)` over three axes in turns, each with its own table.

        Args:
            table: `(3, nodes, channels)`.
        """
        index = self.index.view(-1, 3, self.weights.shape[1]) + _axis_starts(self.first, table.shape[1]).unsqueeze(-1)
        weights = self.weights.reshape(len(index), -1)
        return nn.functional.embedding_bag(
            index.flatten(1), table.flatten(0, 1), mode="sum", per_sample_weights=weights
        )


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


def _node_weights(first: Tensor, away: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the weights of the nodes around numbers, `(taps, rows)`."""
    if away is None:
        return torch.ones(1, len(first), device=first.device, dtype=dtype)
    # Horner's rule: faster than a matrix product, and not rounded by TF32.
    *others, weights = away.new_tensor(_COEFFICIENTS).unsqueeze(-1).unbind()  # each (taps, 1)
    weights = weights.repeat(1, len(away))
    for coefficients in reversed(others):
        torch.addcmul(coefficients, weights, away, out=weights)
    return weights


def _axis_starts(first: Tensor, nodes: int) -> Tensor:
    """Return where the nodes of each axis start if the three tables are concatenated."""
    return torch.arange(3, device=first.device, dtype=first.dtype) * nodes
