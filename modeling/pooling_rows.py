"""Maximum over the neighbours of every centre, and products with its sparse gradient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn


def largest(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the maximum over the neighbours of `(centers, k, width)` and its first index; overwrites `rows`."""
    k = rows.shape[1]
    largest = rows.amax(dim=1)
    # Several times faster than a maximum with indices: all but the maxima become hugely negative.
    places = torch.arange(k, 0, -1, device=rows.device, dtype=rows.dtype).unsqueeze(-1)
    rows.sub_(largest.unsqueeze(1))
    first = torch.add(places, rows, alpha=1e30, out=rows).amax(dim=1)
    return largest, (k - first).long().clamp_(0, k - 1)  # rows of NaN have no winner


@dataclass
class PooledGradient:
    """Gradient with respect to the input of the maximum: one value per centre and channel, zero elsewhere.

    Args:
        values: `(centers, width)`.
        winners: `(centers, width)`, the neighbour that each value belongs to.
        k: Neighbours per centre.
        parts: Chunks of the centres.
    """

    values: torch.Tensor
    winners: torch.Tensor
    k: int
    parts: list[slice]

    def total(self) -> torch.Tensor:
        """Sum over all rows: `(width,)`."""
        return self.values.sum(dim=0)

    def product(self, hidden: Iterable[torch.Tensor]) -> torch.Tensor:
        """Multiply the transposed gradient `(width, rows)` by other rows `(rows, hidden)`, given in chunks."""
        return sum(self.transposed_times(rows, number) for number, rows in enumerate(hidden))

    def times(self, weight: torch.Tensor, number: int) -> torch.Tensor:
        """Multiply a chunk by `weight` `(width, hidden)`: `(rows, hidden)`."""
        channels, values, starts = self._by_row
        part, width = self.parts[number], self.values.shape[1]
        entries = slice(part.start * width, part.stop * width)
        return nn.functional.embedding_bag(
            channels[entries],
            weight,
            starts[part.start * self.k : part.stop * self.k] - entries.start,
            mode="sum",
            per_sample_weights=values[entries],
        )

    def add_to(self, out: torch.Tensor, number: int) -> torch.Tensor:
        """Add the gradient of a chunk to its rows `out` `(rows, width)`."""
        part = self.parts[number]
        out.view(-1, self.k, out.shape[1]).scatter_add_(
            1, self.winners[part].unsqueeze(1), self.values[part].unsqueeze(1)
        )
        return out

    def transposed_times(self, hidden: torch.Tensor, number: int) -> torch.Tensor:
        """Multiply a chunk, transposed `(width, rows)`, by other rows `(rows, hidden)`."""
        rows, values = self._rows(number), self.values[self.parts[number]]
        starts = torch.arange(rows.shape[1], device=rows.device) * len(rows)
        return nn.functional.embedding_bag(
            rows.T.flatten(), hidden, starts, mode="sum", per_sample_weights=values.T.flatten()
        )

    def _rows(self, number: int) -> torch.Tensor:
        """Rows of the winners, `(centers, width)`, counted from the first row of a chunk."""
        winners = self.winners[self.parts[number]]
        return winners + torch.arange(len(winners), device=winners.device).unsqueeze(1) * self.k

    @cached_property
    def _by_row(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Channels and values of all entries, sorted by row, and the start of every row."""
        centers, width = self.winners.shape
        places = torch.arange(centers, device=self.winners.device).unsqueeze(1) * self.k
        rows = (self.winners + places).flatten().int()  # int32 sorts in half the time of int64
        order = rows.argsort()
        count = torch.bincount(rows, minlength=centers * self.k)
        starts = count.cumsum(0) - count
        return order % width, self.values.flatten().index_select(0, order), starts
