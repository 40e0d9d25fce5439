"""What the guided adapters of a forward pass know about the tokens' places: cells, voxels, who shares them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Membership:
    """Which tokens share a cell, in every view.

    Rows are cells. Where a view has more cells than tokens, a cell's row is the number of its first token, so that
    shapes never depend on the data.

    Args:
        row: `(batch, views, tokens)`, the row of each token's cell.
        pool: `(batch, views, rows, tokens)`, averages the tokens of a cell; rows of empty cells are zero.
        occupied: `(batch, views, rows)`, True where a cell holds a token.
        same: `(batch, views, 1, tokens, tokens)`, True where two tokens share a cell.
        cells: Number of cells of a view, occupied or not.
    """

    row: torch.Tensor
    pool: torch.Tensor
    occupied: torch.Tensor
    same: torch.Tensor
    cells: int


def membership(cell: torch.Tensor, cells: int) -> Membership:
    """Membership of tokens in cells numbered `(batch, views, tokens)` in [0, cells)."""
    same = cell.unsqueeze(-1) == cell.unsqueeze(-2)  # (batch, views, tokens, tokens)
    tokens = cell.shape[-1]
    rows, row = (cells, cell) if cells <= tokens else (tokens, same.to(torch.uint8).argmax(dim=-1))
    member = (row.unsqueeze(-2) == torch.arange(rows, device=cell.device).unsqueeze(-1)).float()
    count = member.sum(dim=-1, keepdim=True)  # (batch, views, rows, 1)
    return Membership(row, member / count.clamp_min(1), count.squeeze(-1) > 0, same.unsqueeze(2), cells)


@dataclass
class Geometry:
    """Places of the tokens of one forward pass; what it derives is computed once and shared by all layers.

    Args:
        centers: `(batch, tokens, 3)`.
        view_positions: `(batch, views, tokens, 1 or 2)` of `Projection`.
        extent: Length of the line, or (width, height) of the image.
        cell_size: Default edge of a cell, in the units of `view_positions`.
        special_tokens: Tokens in front of the point tokens (the class token), which guidance passes unchanged.
        batch_second: Whether hidden states come as `(tokens, batch, hidden)`.
    """

    centers: torch.Tensor
    view_positions: torch.Tensor
    extent: tuple[float, ...]
    cell_size: float
    special_tokens: int = 1
    batch_second: bool = False
    _derived: dict = field(default_factory=dict, repr=False)

    def view_cells(self, cell_size: float | None = None) -> Membership:
        """Who shares a cell of edge `cell_size` in each view; cell = column + row * columns on a plane."""
        size = cell_size or self.cell_size
        key = ("view", size)
        if key not in self._derived:
            counts = [int(-(-side // size)) for side in self.extent]
            place = (self.view_positions / size).floor().long()
            cell = place[..., 0].clamp(max=counts[0] - 1)
            if len(counts) == 2:
                cell = cell + place[..., 1].clamp(max=counts[1] - 1) * counts[0]
                self._derived[key] = membership(cell, counts[0] * counts[1])
            else:
                self._derived[key] = membership(cell, counts[0])
        return self._derived[key]

    def voxels(self, edge: float) -> Membership:
        """Who shares a voxel of `edge`, counted from each cloud's smallest corner; one "view"."""
        key = ("voxel", edge)
        if key not in self._derived:
            low = self.centers.amin(dim=1, keepdim=True)
            place = ((self.centers - low) / edge).long()  # (batch, tokens, 3)
            same = (place.unsqueeze(2) == place.unsqueeze(1)).all(dim=-1)
            first = same.to(torch.uint8).argmax(dim=-1).unsqueeze(1)  # (batch, 1, tokens)
            self._derived[key] = membership(first, place.shape[1])
        return self._derived[key]
