"""The rows that a stage of the point tokenizer works on, one for every neighbour of every centre, made in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from hf_any3d.modeling.any2point.wave_table import Places, Taps, WaveTable

# Values of a part: on CPU few enough for the caches, elsewhere enough to keep the device busy.
_PART_CPU, _PART = 1 << 19, 1 << 24
# Values that are summed by index at a time: few enough for the last cache.
_MANY = 1 << 22


def offset_frequencies(width: int, alpha: float, beta: float, device: torch.device | None = None) -> torch.Tensor:
    """Frequencies `(width / 6,)` of the offsets' sinusoid (Point-NN, Eq. 3)."""
    count = width // 6
    return beta / alpha ** (torch.arange(count, device=device, dtype=torch.float32) / count)


def encode_offsets(offsets: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Sinusoid of offsets `(..., 3)` in `(..., width)`: x sines, x cosines, then y, then z (Point-NN, Eq. 3)."""
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
    phase = offsets.unsqueeze(-1) * frequencies  # (..., 3, width / 6)
    return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2)


@dataclass
class Neighborhoods:
    """Neighbourhoods of all clouds of a batch laid end to end.

    Args:
        features: `(points, width / 2)`.
        neighbors: `(centers, k)`, rows of `features`.
        centers: `(centers,)`, rows of `features`.
        offsets: `(centers, k, 3)`, normalised places of the neighbours around their centres.
        frequencies: `(width / 6,)` of the offsets' sinusoid.
    """

    features: torch.Tensor
    neighbors: torch.Tensor
    centers: torch.Tensor
    offsets: torch.Tensor
    frequencies: torch.Tensor

    @property
    def width(self) -> int:
        """Channels of a row."""
        return 2 * self.features.shape[1]

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.neighbors.numel()

    def parts(self) -> list[slice]:
        """Cut the centres into parts."""
        centers, k = self.neighbors.shape
        values = _PART_CPU if self.features.device.type == "cpu" else _PART
        step = max(1, values // (k * self.width))
        return [slice(start, min(start + step, centers)) for start in range(0, centers, step)]

    def rows_of(self, part: slice) -> slice:
        """The rows of a part among all rows."""
        k = self.neighbors.shape[1]
        return slice(part.start * k, part.stop * k)

    @cached_property
    def table(self) -> WaveTable:
        """The waves of the offsets' sinusoid at the nodes of a table."""
        return WaveTable(self.offsets, self.frequencies, self.features.dtype)

    @cached_property
    def places(self) -> Places:
        """Where the offsets lie in the table, `(centers * k * 3,)`."""
        return self.table.places(self.offsets.flatten())

    @cached_property
    def taps(self) -> Taps:
        """How to read the encoded offsets: `(centers * k * 3, taps)`."""
        return self.places.taps(self.features.dtype)

    def offsets_of(self, part: slice) -> slice:
        """The coordinates of a part among those of all offsets."""
        axes = 3 * self.neighbors.shape[1]
        return slice(part.start * axes, part.stop * axes)

    def rows(self, part: slice) -> torch.Tensor:
        """Rows `(centers of the part * k, width)`: neighbour's and centre's features plus the encoded offset."""
        rows = self.taps[self.offsets_of(part)].read(self.table.waves).view(-1, self.width)
        half = self.features.shape[1]
        rows[:, :half] += self.features.index_select(0, self.neighbors[part].flatten())
        of_center = self.features.index_select(0, self.centers[part])
        rows.view(len(of_center), -1, self.width)[:, :, half:] += of_center.unsqueeze(1)
        return rows

    def reduced_rows(self, weight: torch.Tensor) -> Iterator[torch.Tensor]:
        """Products of all rows with `weight` `(hidden, width)`, in parts `(centers of the part * k, hidden)`.

        Points, centres and nodes of the table are far fewer than rows: they are multiplied and rows add them up.
        """
        half = self.features.shape[1]
        as_neighbor = self.features @ weight[:, :half].T  # (points, hidden)
        as_center = self.features.index_select(0, self.centers) @ weight[:, half:].T  # (centers, hidden)
        table = self.table.waves @ weight.view(len(weight), 3, -1).permute(1, 2, 0)  # (3, nodes, hidden)
        for part in self.parts():
            rows = self.taps[self.offsets_of(part)].read_axes(table)
            rows += as_neighbor.index_select(0, self.neighbors[part].flatten())
            rows.view(part.stop - part.start, -1, len(weight)).add_(as_center[part].unsqueeze(1))
            yield rows

    def reduced_gradient(
        self, weight: torch.Tensor, of_rows: Callable[[slice], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of the features and of the weight from those of `reduced_rows`: its transpose.

        Args:
            weight: `(hidden, width)`.
            of_rows: Gives the gradients of some of the parts that `parts` cuts, `(centers of the parts * k, hidden)`.
        """
        half = self.features.shape[1]
        as_neighbor = self.features.new_zeros(len(self.features), len(weight))
        as_center = torch.zeros_like(as_neighbor)
        table = self.features.new_zeros(3, len(self.table.waves), len(weight))
        parts = self.parts()
        # Many parts together: every sum by index has a price for each of its bins.
        some = max(1, _MANY // (len(weight) * self.neighbors.shape[1] * parts[0].stop))
        for numbers in (slice(start, start + some) for start in range(0, len(parts), some)):
            together = parts[numbers]
            part = slice(together[0].start, together[-1].stop)
            rows = of_rows(numbers)
            as_neighbor.index_add_(0, self.neighbors[part].flatten(), rows)
            as_center.index_add_(0, self.centers[part], rows.view(part.stop - part.start, -1, len(weight)).sum(dim=1))
            self.places[self.offsets_of(part)].add_to_axes(table, rows)
        of_weight = (table.transpose(1, 2) @ self.table.waves).transpose(0, 1).reshape_as(weight)
        of_weight[:, :half].addmm_(as_neighbor.T, self.features)
        of_weight[:, half:].addmm_(as_center.T, self.features)
        return as_neighbor @ weight[:, :half] + as_center @ weight[:, half:], of_weight

    def add_to_features(self, out: torch.Tensor, part: slice, of_rows: torch.Tensor) -> None:
        """Add the gradient of a part's rows to the features `(points, width / 2)` they were gathered from."""
        half = out.shape[1]
        neighbors = self.neighbors[part]
        out.index_add_(0, neighbors.flatten(), of_rows[:, :half])
        out.index_add_(0, self.centers[part], of_rows.view(*neighbors.shape, 2 * half)[:, :, half:].sum(dim=1))

    def all_rows(self) -> torch.Tensor:
        """All rows at once, differentiable in features and offsets."""
        of_neighbors = self.features.index_select(0, self.neighbors.flatten())  # (centers * k, width / 2)
        of_centers = self.features.index_select(0, self.centers).repeat_interleave(self.neighbors.shape[1], dim=0)
        phase = encode_offsets(self.offsets, self.frequencies).flatten(0, 1)
        return torch.cat([of_neighbors, of_centers], dim=-1).add_(phase)  # (centers * k, width)
