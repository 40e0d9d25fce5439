"""What the guided adapters of a forward pass know about the tokens' places: cells, voxels, who shares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from hf_any3d.modeling.point_ops import line_cell_count, line_cells, plane_cell_count, plane_cells, voxel_cells


@dataclass
class Links:
    """Which token is in which cell, the tokens of all clouds laid end to end, the cells of all views and clouds too.

    Cells go view by view: what is done to one view after the other finds its rows beside each other.

    Args:
        rows: `(tokens, views)`, the row of a token's cell among the rows of all views and clouds.
        order: `(tokens * views,)`, the entries of `rows` in the order of their rows.
        starts: `(rows,)`, where each row's entries start in `order`.
        shares: `(tokens, views)`, one over the number of tokens in a token's cell.
    """

    rows: torch.Tensor
    order: torch.Tensor
    starts: torch.Tensor
    shares: torch.Tensor


@dataclass
class Crowd:
    """The cells that hold more than one token.

    Args:
        tokens: `(crowded,)`, the entries of `Links.rows`, laid end to end, of the tokens in such cells.
        cell: `(crowded,)`, number of each one's cell in `rows`.
        rows: `(cells,)`, the rows of these cells as `Links` numbers them.
    """

    tokens: torch.Tensor
    cell: torch.Tensor
    rows: torch.Tensor


@dataclass
class Pairs:
    """All pairs of tokens that share a cell, each token with itself too; tokens of all clouds and views end to end.

    Args:
        query: `(pairs,)`, the first token of each pair, ascending.
        key: `(pairs,)`, the second one.
        swapped: `(pairs,)`, the number of the pair with both tokens in the other order.
        starts: `(tokens,)`, where the pairs of each first token start.
        partners: `(tokens,)`, how many there are.
    """

    query: torch.Tensor
    key: torch.Tensor
    swapped: torch.Tensor
    starts: torch.Tensor
    partners: torch.Tensor

    def sum(self, of_pairs: torch.Tensor, over_queries: bool = False) -> torch.Tensor:
        """Sums `(tokens, channels)` of `(pairs, channels)` for each first token, or for each second one."""
        index = self.swapped if over_queries else torch.arange(len(of_pairs), device=of_pairs.device)
        return nn.functional.embedding_bag(index, of_pairs, self.starts, mode="sum")


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
    _visitors: set[int] = field(default_factory=set, repr=False)

    @cached_property
    def links(self) -> Links:
        """Cells as a list."""
        batch, views, count, _ = self.pool.shape
        first = torch.arange(batch * views, device=self.row.device).view(views, batch, 1).transpose(0, 1) * count
        rows = (self.row + first).transpose(1, 2).flatten(0, 1).contiguous()  # (batch * tokens, views)
        ordered, order = rows.flatten().sort()
        starts = torch.searchsorted(ordered, torch.arange(batch * views * count, device=rows.device))
        shares = self.pool.amax(dim=-1).transpose(0, 1).flatten()[rows]
        return Links(rows, order, starts, shares)

    @cached_property
    def crowd(self) -> Crowd:
        """Cells of more than one token as a list."""
        tokens = (self.links.shares.flatten() < 1).nonzero().squeeze(1)
        rows, cell = self.links.rows.flatten().index_select(0, tokens).unique(return_inverse=True)
        return Crowd(tokens, cell, rows)

    @cached_property
    def pairs(self) -> Pairs:
        """Who shares a cell, as a list."""
        tokens = self.same.shape[-1]
        row, key = self.same.reshape(-1, tokens).nonzero().T.contiguous()
        key = key + row - row % tokens
        partners = torch.zeros(self.same.numel() // tokens, dtype=row.dtype, device=row.device)
        partners.index_add_(0, row, torch.ones_like(row))
        return Pairs(row, key, key.argsort(stable=True), partners.cumsum(0) - partners, partners)

    def first_visit(self, visitor: object) -> bool:
        """False from the second time on: a pass recomputed by gradient checkpointing must not count twice."""
        known = id(visitor) in self._visitors
        self._visitors.add(id(visitor))
        return not known


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
            if len(self.extent) == 2:
                cell = plane_cells(self.view_positions, size, *self.extent)
                self._derived[key] = membership(cell, plane_cell_count(size, *self.extent))
            else:
                cell = line_cells(self.view_positions.squeeze(-1), size, *self.extent)
                self._derived[key] = membership(cell, line_cell_count(size, *self.extent))
        return self._derived[key]

    def voxels(self, edge: float) -> Membership:
        """Who shares a voxel of `edge`, counted from each cloud's smallest corner; one "view"."""
        key = ("voxel", edge)
        if key not in self._derived:
            first = voxel_cells(self.centers, edge).unsqueeze(1)  # (batch, 1, tokens)
            self._derived[key] = membership(first, first.shape[-1])
        return self._derived[key]
