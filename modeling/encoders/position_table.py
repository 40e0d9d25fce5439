"""Learned positions of a pretrained encoder, read at continuous places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class PositionTable:
    """The positions that an encoder learned, on a line (words) or on a plane (patches).

    Args:
        kind: "line" or "plane".
        weight: `(length, hidden)` on a line, `(rows * columns, hidden)`, row by row, on a plane; None where nothing is
            added to tokens, because positions act in the attention (relative, rotary) or depend on neighbours.
        rows: Rows of the plane; 1 on a line.
        columns: Columns of the plane; the length of a line, None where any length will do.
    """

    kind: Literal["line", "plane"]
    weight: torch.Tensor | None
    rows: int
    columns: int | None

    def __post_init__(self):
        if self.weight is None:
            return
        if self.weight.ndim != 2 or self.weight.shape[0] != self.rows * self.columns:
            raise ValueError(
                f"position table has shape {tuple(self.weight.shape)}; expected ({self.rows} * {self.columns}, hidden)"
            )

    def lookup(self, position: torch.Tensor) -> torch.Tensor:
        """Interpolate the table linearly at continuous places; places outside are moved to the border.

        Args:
            position: `(..., 1)` entries of the line in [0, length - 1], or `(..., 2)` (column, row) of the plane.

        Returns:
            `(..., hidden)` in the table's dtype.
        """
        column, row = position[..., 0], position[..., 1] if self.kind == "plane" else None
        left, right, along = _neighbors(column, self.columns)
        if row is None:
            return _lerp(self.weight[left], self.weight[right], along)
        top, bottom, down = _neighbors(row, self.rows)
        upper = _lerp(self.weight[top * self.columns + left], self.weight[top * self.columns + right], along)
        lower = _lerp(self.weight[bottom * self.columns + left], self.weight[bottom * self.columns + right], along)
        return _lerp(upper, lower, down)


def _neighbors(place: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    place = place.clamp(0, size - 1)
    low = place.floor().clamp(max=max(size - 2, 0))
    return low.long(), (low.long() + 1).clamp(max=size - 1), place - low


def _lerp(low: torch.Tensor, high: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.lerp(low, high, weight.unsqueeze(-1).to(low.dtype))
