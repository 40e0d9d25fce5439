"""The rows that a stage of the point tokenizer works on, one for every neighbour of every centre, made in parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Values of a part: on CPU few enough for the second-level cache, elsewhere enough to keep the device busy.
_PART_CPU, _PART = 1 << 18, 1 << 24


def offset_frequencies(width: int, alpha: float, beta: float, device: torch.device | None = None) -> torch.Tensor:
    """Frequencies `(width / 6,)` of the offsets' sinusoid (Point-NN, Eq. 3)."""
    count = width // 6
    return beta / alpha ** (torch.arange(count, device=device, dtype=torch.float32) / count)


def encode_offsets(offsets: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Sinusoid of offsets `(..., 3)` in `(..., width)`: x sines, x cosines, then y, then z (Point-NN, Eq. 3)."""
    phase = offsets.float().unsqueeze(-1) * frequencies  # (..., 3, width / 6)
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

    def rows(self, part: slice) -> torch.Tensor:
        """Rows `(centers of the part * k, width)`: neighbour's and centre's features plus the encoded offset."""
        neighbors = self.neighbors[part].flatten()
        half = self.features.shape[1]
        rows = self.features.new_empty(len(neighbors), self.width)
        phase = self.offsets[part].float().reshape(-1, 3, 1) * self.frequencies  # (rows, 3, width / 6)
        waves = rows.view(-1, 3, 2, phase.shape[-1])
        torch.sin(phase, out=waves[:, :, 0])
        torch.cos(phase, out=waves[:, :, 1])
        rows[:, :half] += self.features.index_select(0, neighbors)
        of_center = self.features.index_select(0, self.centers[part])
        rows.view(len(of_center), -1, self.width)[:, :, half:] += of_center.unsqueeze(1)
        return rows

    def all_rows(self) -> torch.Tensor:
        """All rows at once, differentiable in features and offsets."""
        of_neighbors = self.features.index_select(0, self.neighbors.flatten())  # (centers * k, width / 2)
        of_centers = self.features.index_select(0, self.centers).repeat_interleave(self.neighbors.shape[1], dim=0)
        phase = encode_offsets(self.offsets, self.frequencies).flatten(0, 1)
        return torch.cat([of_neighbors, of_centers], dim=-1).add_(phase)  # (centers * k, width)
