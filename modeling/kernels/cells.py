"""Tokens that share a cell, as matrices and as index lists, and sums over the tokens of each cell.

Every token is in one cell of each view, so a matrix between tokens and cells has a single entry in each of its
columns. Products with it are sums of few rows, computed along the list of tokens by cell.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.pooling import segment_maximum, segment_mean


@dataclass
class Links:
    """Cells of the tokens as a list; tokens of all clouds are concatenated, and so are cells of all views and clouds.

    Cells are ordered by view, so that an operation on one view reads adjacent rows.

    Args:
        rows: `(tokens, views)`, the row of a token's cell among the rows of all views and clouds.
        order: `(tokens * views,)`, the entries of `rows` sorted by row.
        starts: `(rows,)`, the start of each row's entries in `order`.
        lengths: `(rows,)`, the number of them.
    """

    rows: Tensor
    order: Tensor
    starts: Tensor
    lengths: Tensor


@dataclass
class Pairs:
    """All pairs of tokens that share a cell, including each token with itself; all clouds and views concatenated.

    Args:
        query: `(pairs,)`, the first token of each pair, ascending.
        key: `(pairs,)`, the second one.
        swapped: `(pairs,)`, the number of the pair with both tokens swapped.
        starts: `(tokens,)`, the start of the pairs of each first token.
        partners: `(tokens,)`, their number.
    """

    query: Tensor
    key: Tensor
    swapped: Tensor
    starts: Tensor
    partners: Tensor

    def sum(self, rows: Tensor, over_queries: bool = False) -> Tensor:
        """Sum rows `(pairs, channels)` for each first token, or for each second one: `(tokens, channels)`."""
        # Bags are runs of pairs with the same first token. The swapped pairs of such a run have it as their second
        # one.
        index = self.swapped if over_queries else torch.arange(len(rows), device=rows.device)
        return nn.functional.embedding_bag(index, rows, self.starts, mode="sum")


class Visited:
    """Remembers which norms have counted the cells of a batch."""

    _visitors: set[int]

    def first_visit(self, visitor: object) -> bool:
        """Return False from the second call on: a pass recomputed by gradient checkpointing must not count twice."""
        known = id(visitor) in self._visitors
        self._visitors.add(id(visitor))
        return not known


@dataclass
class Membership(Visited):
    """Tokens that share a cell, in every view.

    Rows are cells. In views with more cells than tokens, the row of a cell is the number of its first token, so that
    shapes never depend on the data.

    Args:
        row: `(batch, views, tokens)`, the row of each token's cell.
        pool: `(batch, views, rows, tokens)`, averages the tokens of a cell; rows of empty cells are zero.
        occupied: `(batch, views, rows)`, True for cells that contain a token.
        apart: `(batch, views, 1, tokens, tokens)`, added to scores of attention: -inf for tokens of different cells,
            else 0.
        cells: Number of cells of a view, empty ones included.
    """

    row: Tensor
    pool: Tensor
    occupied: Tensor
    apart: Tensor
    cells: int
    _visitors: set[int] = field(default_factory=set, repr=False)

    @cached_property
    def links(self) -> Links:
        """The cells as a list."""
        batch, views, count, _ = self.pool.shape
        # Number the rows of all views and clouds through, view by view: (batch, views, 1) first numbers.
        first = torch.arange(batch * views, device=self.row.device).view(views, batch, 1).transpose(0, 1) * count
        rows = (self.row + first).transpose(1, 2).flatten(0, 1).contiguous()  # (batch * tokens, views)
        ordered, order = rows.flatten().sort()
        # Bounds of all rows, empty ones included, without asking the device how many are occupied.
        bounds = torch.searchsorted(ordered, torch.arange(batch * views * count + 1, device=rows.device))
        return Links(rows, order, bounds[:-1], bounds.diff())


@dataclass
class FlatCells(Visited):
    """Tokens that share a cell, in every view, for tokens of all clouds in one list; without matrices of all pairs.

    Args:
        row: `(views, tokens)`, the number of each token's cell in its view, from 0 without gaps.
    """

    row: Tensor
    _visitors: set[int] = field(default_factory=set, repr=False)

    @property
    def cells(self) -> int:
        """Number of cells that a view would have if no two tokens shared one."""
        return self.row.shape[1]

    @cached_property
    def counts(self) -> Tensor:
        """Tokens of each cell, `(views, rows)`; 0 in views with fewer cells than another."""
        counts = self.row.new_zeros(len(self.row), int(self.row.max()) + 1)
        return counts.scatter_add_(1, self.row, torch.ones_like(self.row))

    @cached_property
    def in_one_list(self) -> Tensor:
        """`(views, tokens)`, the number of each token's cell among the cells of all views."""
        views, rows = self.counts.shape
        return self.row + torch.arange(views, device=self.row.device)[:, None] * rows

    @cached_property
    def occupied(self) -> Tensor:
        """`(1, views, rows)`, True for cells that contain a token."""
        return self.counts[None] > 0

    @cached_property
    def pairs(self) -> list[Pairs]:
        """The pairs of tokens in a cell as a list, for each view."""
        views = []
        for row, counts in zip(self.row, self.counts, strict=True):  # (tokens,), (cells,)
            tokens = torch.arange(len(row), device=row.device)
            # Tokens by cell, in their own order within one.
            order = row.argsort(stable=True)
            first = counts.cumsum(0) - counts
            # Of a token within its cell
            place = torch.empty_like(order).scatter_(0, order, tokens - first[row[order]])
            partners = counts[row]
            starts = partners.cumsum(0) - partners
            # Repeat each token once for each partner; the n-th repetition gets the n-th token of the cell as key.
            query = tokens.repeat_interleave(partners)
            key = order[first[row][query] + torch.arange(len(query), device=row.device) - starts[query]]
            views.append(Pairs(query, key, starts[key] + place[query], starts, partners))
        return views


def membership(cell: Tensor, cells: int) -> Membership:
    """Return the membership of tokens in cells `(batch, views, tokens)`, numbered from 0 to `cells` - 1."""
    same = cell.unsqueeze(-1) == cell.unsqueeze(-2)  # (batch, views, tokens, tokens)
    tokens = cell.shape[-1]
    # With more cells than tokens, a cell is named after its first token, so that there are as many rows as tokens.
    rows, row = (cells, cell) if cells <= tokens else (tokens, same.to(torch.uint8).argmax(dim=-1))
    # (batch, views, rows, tokens), 1 where a token is in the row's cell
    member = (row.unsqueeze(-2) == torch.arange(rows, device=cell.device).unsqueeze(-1)).float()
    count = member.sum(dim=-1, keepdim=True)  # (batch, views, rows, 1)
    apart = torch.zeros(same.shape, device=cell.device).masked_fill_(~same, -torch.inf)
    return Membership(row, member / count.clamp_min(1), count.squeeze(-1) > 0, apart.unsqueeze(2), cells)


def mean_in_cells(tokens: Tensor, members: Membership) -> Tensor:
    """Average the tokens `(batch, tokens, hidden)` of each cell: `(batch, views, rows, hidden)`, zeros if empty."""
    mean = members.pool.to(tokens.dtype).flatten(1, 2) @ tokens
    return mean.view(*members.pool.shape[:3], -1)


def max_in_cells(values: Tensor, members: Membership) -> Tensor:
    """Take the maximum over the tokens of each cell, zeros if empty; equal maxima share the gradient.

    Maps `(batch, views, tokens, hidden)` to `(batch, views, rows, hidden)`.
    """
    batch, views, tokens, hidden_size = values.shape
    if torch.compiler.is_compiling():  # compilers and exported formats do not support segments
        index = members.row.unsqueeze(-1).expand_as(values)
        largest = torch.full_like(members.pool[..., :1], -torch.inf).expand(-1, -1, -1, hidden_size).to(values.dtype)
        largest = largest.scatter_reduce(2, index, values, "amax")
    else:
        # Rows sorted by cell are reduced in consecutive runs.
        rows = values.transpose(1, 2).reshape(-1, hidden_size).index_select(0, members.links.order)
        lengths = members.links.lengths
        largest = torch.segment_reduce(rows, "max", lengths=lengths, axis=0, unsafe=True)
        largest = largest.view(views, batch, -1, hidden_size).transpose(0, 1)
    return largest.masked_fill(~members.occupied.unsqueeze(-1), 0)


def mean_in_flat_cells(values: Tensor, cells: FlatCells) -> Tensor:
    """Average over the tokens of each cell: `(views, tokens, hidden)` to `(views, rows, hidden)`, zeros if empty."""
    views, rows = cells.counts.shape
    return segment_mean(values.flatten(0, 1), cells.in_one_list.flatten(), views * rows).view(views, rows, -1)


def max_in_flat_cells(values: Tensor, cells: FlatCells) -> Tensor:
    """Take the maximum over the tokens of each cell, as `mean_in_flat_cells`; equal maxima share the gradient."""
    views, rows = cells.counts.shape
    largest = segment_maximum(values.flatten(0, 1), cells.in_one_list.flatten(), views * rows)
    return largest.view(views, rows, -1)
