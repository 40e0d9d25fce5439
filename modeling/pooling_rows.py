"""The maximum over the neighbours of every centre, and products with the few entries that its gradient has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn


def largest(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maximum over the neighbours of `(centers, k, width)` and the first neighbour that has it; `rows` is used up."""
    k = rows.shape[1]
    largest = rows.amax(dim=1)
    # Several times faster than a maximum with indices: what falls short falls behind all places.
    places = torch.arange(k, 0, -1, device=rows.device, dtype=rows.dtype).unsqueeze(-1)
    rows.sub_(largest.unsqueeze(1))
    first = torch.add(places, rows, alpha=1e30, out=rows).amax(dim=1)
    return largest, (k - first).long().clamp_(0, k - 1)  # undefined rows have no winner


@dataclass
class PooledGradient:
    """The gradient in front of the maximum: one value for each centre and channel, zero for all other neighbours.

    Args:
        values: `(centers, width)`.
        winners: `(centers, width)`, the neighbour that each value belongs to.
        k: Neighbours of a centre.
        parts: The parts of the centres.
    """

    values: torch.Tensor
    winners: torch.Tensor
    k: int
    parts: list[slice]

    def total(self) -> torch.Tensor:
        """Sum over all rows, `(width,)`."""
        return self.values.sum(dim=0)

    def product(self, hidden: Iterable[torch.Tensor]) -> torch.Tensor:
        """Product of the transposed gradient `(width, rows)` with other rows `(rows, hidden)`, given in parts."""
        return sum(self.transposed_times(rows, number) for number, rows in enumerate(hidden))

    def times(self, weight: torch.Tensor, number: int) -> torch.Tensor:
        """Product `(rows, hidden)` of a part with `weight` `(width, hidden)`."""
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
        """Add the gradient of a part to its rows `out` `(rows, width)`."""
        part = self.parts[number]
        out.view(-1, self.k, out.shape[1]).scatter_add_(
            1, self.winners[part].unsqueeze(1), self.values[part].unsqueeze(1)
        )
        return out

    def transposed_times(self, hidden: torch.Tensor, number: int) -> torch.Tensor:
        """Product of a part, transposed `(width, rows)`, with its other rows `(rows, hidden)`."""
        rows, values = self._rows(number), self.values[self.parts[number]]
        starts = torch.arange(rows.shape[1], device=rows.device) * len(rows)
        return nn.functional.embedding_bag(
            rows.T.flatten(), hidden, starts, mode="sum", per_sample_weights=values.T.flatten()
        )

    def _rows(self, number: int) -> torch.Tensor:
        """`(centers, width)`, the rows of the winners, counted from the first row of a part."""
        winners = self.winners[self.parts[number]]
        return winners + torch.arange(len(winners), device=winners.device).unsqueeze(1) * self.k

    @cached_property
    def _by_row(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Channels and values of all entries in the order of their rows, and where every row starts."""
        centers, width = self.winners.shape
        places = torch.arange(centers, device=self.winners.device).unsqueeze(1) * self.k
        rows = (self.winners + places).flatten().int()  # half as long to sort as long integers
        order = rows.argsort()
        count = torch.bincount(rows, minlength=centers * self.k)
        starts = count.cumsum(0) - count
        return order % width, self.values.flatten().index_select(0, order), starts
