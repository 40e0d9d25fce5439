"""Rows of a tokenizer stage, one for every neighbor of every center."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hf_any3d.modeling.kernels.wave_table import WaveTable

# Numbers per part: few enough for the caches.
_PART = 1 << 19
# Numbers added by index at a time: few enough for the last cache.
_ADDED = 1 << 22


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
        step = max(1, _PART // (k * self.width))
        return [slice(start, min(start + step, centers)) for start in range(0, centers, step)]

    @cached_property
    def table(self) -> WaveTable:
        """The encoding's sines and cosines of all coordinates, in the order of `offsets`."""
        return WaveTable(self.offsets.flatten(), self.frequencies, self.features.dtype)

    def _coordinates(self, part: slice) -> slice:
        """Return where the coordinates of a part are among those of all offsets."""
        axes = 3 * self.neighbors.shape[1]
        return slice(part.start * axes, part.stop * axes)

    def rows(self, part: slice) -> Tensor:
        """Compute the rows of a part, `(rows, width)`: features of neighbor and center plus the encoded offset."""
        rows = self.table.read(self._coordinates(part)).view(-1, self.width)
        # A row is [neighbor ; center] plus the encoding: each half takes one of the two.
        half = self.features.shape[1]
        rows[:, :half] += self.features.index_select(0, self.neighbors[part].flatten())
        centers = self.features.index_select(0, self.centers[part])
        rows.view(len(centers), -1, self.width)[:, :, half:] += centers.unsqueeze(1)
        return rows

    def reduced_rows(self, weight: Tensor) -> Iterator[Tensor]:
        """Multiply all rows by `weight` `(hidden, width)`, in parts `(rows, hidden)`.

        There are far fewer points, centers and nodes than rows; these are multiplied, and rows are sums of products.
        """
        half = self.features.shape[1]
        as_neighbor = self.features @ weight[:, :half].T  # (points, hidden)
        as_center = self.features.index_select(0, self.centers) @ weight[:, half:].T  # (centers, hidden)
        # All axes share the waves, but each has columns of its own in the weight.
        tables = self.table.waves @ weight.view(len(weight), 3, -1).permute(1, 2, 0)  # (3, nodes, hidden)
        for part in self.parts():
            rows = self.table.read_axes(tables, self._coordinates(part))
            rows += as_neighbor.index_select(0, self.neighbors[part].flatten())
            rows.view(part.stop - part.start, -1, len(weight)).add_(as_center[part].unsqueeze(1))
            yield rows

    def reduced_gradient(self, weight: Tensor, grad_rows: Callable[[slice], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the gradients of the features and of the weight of `reduced_rows`.

        Args:
            weight: `(hidden, width)`.
            grad_rows: Returns the gradient of the rows of consecutive parts, `(rows, hidden)`, by their numbers.
        """
        half = self.features.shape[1]
        as_neighbor = self.features.new_zeros(len(self.features), len(weight))
        as_center = torch.zeros_like(as_neighbor)
        tables = self.features.new_zeros(3, len(self.table.waves), len(weight))
        parts = self.parts()
        # Several parts together: every sum by index has a cost per bin.
        # All but the last part have as many centers as the first.
        some = max(1, _ADDED // (len(weight) * self.neighbors.shape[1] * parts[0].stop))
        for numbers in (slice(start, start + some) for start in range(0, len(parts), some)):
            together = parts[numbers]
            part = slice(together[0].start, together[-1].stop)
            rows = grad_rows(numbers)
            as_neighbor.index_add_(0, self.neighbors[part].flatten(), rows)
            as_center.index_add_(0, self.centers[part], rows.view(part.stop - part.start, -1, len(weight)).sum(dim=1))
            self.table.add_to_axes(tables, rows, self._coordinates(part))
        # (3, hidden, nodes) @ (nodes, width / 3), back in the weight's order: x, y and z side by side
        grad_weight = (tables.transpose(1, 2) @ self.table.waves).transpose(0, 1).reshape_as(weight)
        grad_weight[:, :half].addmm_(as_neighbor.T, self.features)
        grad_weight[:, half:].addmm_(as_center.T, self.features)
        return as_neighbor @ weight[:, :half] + as_center @ weight[:, half:], grad_weight

    def add_to_features(self, out: Tensor, part: slice, grad_rows: Tensor) -> None:
        """Add the gradient of a part's rows to that of the features, `(points, width / 2)`."""
        half = out.shape[1]
        neighbors = self.neighbors[part]
        out.index_add_(0, neighbors.flatten(), grad_rows[:, :half])
        out.index_add_(0, self.centers[part], grad_rows.view(*neighbors.shape, 2 * half)[:, :, half:].sum(dim=1))
