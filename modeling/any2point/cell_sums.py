"""Sums over the tokens of cells and voxels.

Every token is in one cell of each view, so a matrix between tokens and cells is all zeros but one in each of its
columns. Products with it are sums of few rows, taken along the list of who is where. Compilers and exporters get the
products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.any2point.geometry import Links, Membership
from hf_any3d.modeling.point_ops import scatter_max


def as_table(rows: torch.Tensor) -> torch.Tensor:
    """Rows `(batch, views, rows, hidden)` laid end to end as `Links` numbers them."""
    return rows.transpose(0, 1).flatten(0, 2)


def from_table(table: torch.Tensor, members: Membership) -> torch.Tensor:
    """The inverse of `as_table`."""
    batch, views, rows, _ = members.pool.shape
    return table.view(views, batch, rows, -1).transpose(0, 1)


def pool_mean(tokens: torch.Tensor, members: Membership) -> torch.Tensor:
    """Mean of the tokens `(batch, tokens, hidden)` of each cell, `(batch, views, rows, hidden)`; zeros where empty."""
    if torch.compiler.is_compiling():
        mean = members.pool.to(tokens.dtype).flatten(1, 2) @ tokens
        return mean.view(*members.pool.shape[:3], -1)
    return from_table(sum_in_cells(tokens, members.links, members.links.shares), members)


def sum_in_cells(tokens: torch.Tensor, links: Links, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums over the tokens of each cell, all cells laid end to end, `(cells, hidden)`.

    Args:
        tokens: `(batch, tokens, hidden)`.
        links: Which token is in which cell.
        weights: `(tokens, views)`.
    """
    of_order = weights.to(tokens.dtype).flatten().index_select(0, links.order)
    return nn.functional.embedding_bag(
        links.order // weights.shape[1], tokens.flatten(0, 1), links.starts, mode="sum", per_sample_weights=of_order
    )


def sum_over_views(table: torch.Tensor, links: Links, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums over the cells of each token, `(tokens, hidden)`: the transpose of `sum_in_cells`."""
    return nn.functional.embedding_bag(links.rows, table, mode="sum", per_sample_weights=weights.to(table.dtype))


def spread(view_rows: torch.Tensor, weights: torch.Tensor, members: Membership, special: int) -> torch.Tensor:
    """Weighted sum over the views of each token's cell rows, `(batch, special + tokens, hidden)`, zeros in front.

    Args:
        view_rows: `(batch, views, rows, hidden)`.
        weights: `(batch, views, tokens)`.
        members: Cells of the tokens.
        special: Number of tokens in front that get nothing.
    """
    batch, views, rows, hidden_size = view_rows.shape
    column = members.row + torch.arange(views, device=weights.device)[:, None] * rows  # (batch, views, tokens)
    mix = weights.new_zeros(batch, weights.shape[-1], views * rows)
    mix = mix.scatter(2, column.transpose(1, 2), weights.transpose(1, 2))
    # Zeros for the special tokens are cheaper than to take the sequence apart and put it together again.
    return nn.functional.pad(mix, (0, 0, special, 0)) @ view_rows.reshape(batch, views * rows, hidden_size)


def pair_products(
    view_rows: torch.Tensor, voxel_rows: torch.Tensor, members: Membership, voxels: Membership
) -> torch.Tensor:
    """Inner product of the rows of each token's cell and voxel, `(batch, views, tokens)`.

    Args:
        view_rows: `(batch, views, rows, hidden)`.
        voxel_rows: `(batch, voxels, hidden)`.
        members: Cells of the tokens.
        voxels: Voxels of the tokens.
    """
    batch, views, _, _ = view_rows.shape
    product = view_rows.flatten(1, 2) @ voxel_rows.transpose(-1, -2)
    flat = members.row * voxel_rows.shape[1] + voxels.row  # (batch, views, tokens)
    return product.view(batch, views, -1).gather(2, flat)


def widened_mean(
    tokens: torch.Tensor, gathered: torch.Tensor, weight: torch.Tensor, members: Membership
) -> torch.Tensor:
    """Mean of the tokens of each cell plus a linear map of what was gathered there, `(batch, views, rows, hidden)`.

    Args:
        tokens: `(batch, tokens, hidden)`.
        gathered: `(batch, views, rows, width)`, means over the cells.
        weight: `(views, width + 1, hidden)`, transposed, with the bias as the last row.
        members: Cells of the tokens.
    """
    gathered = nn.functional.pad(gathered, (0, 1), value=1.0)
    if torch.compiler.is_compiling():
        return pool_mean(tokens, members) + gathered @ weight
    return _WidenedMean.apply(tokens, gathered.to(tokens.dtype), weight.to(tokens.dtype), members)


class _WidenedMean(torch.autograd.Function):
    """The same for the views one after the other; neither of the summands has rows of its own."""

    @staticmethod
    def forward(
        ctx: Any, tokens: torch.Tensor, gathered: torch.Tensor, weight: torch.Tensor, members: Membership
    ) -> torch.Tensor:
        narrow = gathered.transpose(0, 1).flatten(1, 2)  # (views, batch * rows, width + 1)
        table = sum_in_cells(tokens, members.links, members.links.shares)
        table.view(*narrow.shape[:2], -1).baddbmm_(narrow, weight)
        ctx.save_for_backward(narrow, weight)
        ctx.members = members
        return from_table(table, members)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        narrow, weight = ctx.saved_tensors
        links = ctx.members.links
        table = as_table(gradient)
        of_tokens = sum_over_views(table, links, links.shares)
        of_rows = table.view(*narrow.shape[:2], -1)
        # As a product of the transposed: with the few columns of `gathered` on the right it takes twice as long.
        of_narrow = (weight @ of_rows.transpose(1, 2)).transpose(1, 2)  # (views, batch * rows, width + 1)
        of_weight = narrow.transpose(1, 2) @ of_rows
        of_gathered = of_narrow.unflatten(1, (len(gradient), -1)).transpose(0, 1)
        return of_tokens.view(len(gradient), -1, table.shape[1]), of_gathered, of_weight, None


def pool_voxels(tokens: torch.Tensor, voxels: Membership) -> torch.Tensor:
    """Maximum plus mean of the tokens `(batch, tokens, hidden)` of each voxel, `(batch, 1, voxels, hidden)`.

    Centres that were sampled far apart are nearly all alone in their voxels, where maximum and mean are the token.
    """
    # Other devices would have to wait for the number of the others, and compilers know no sizes that depend on data.
    if torch.compiler.is_compiling() or tokens.device.type != "cpu":
        maximum = scatter_max(tokens, voxels.row.squeeze(1), voxels.pool.shape[2])
        return maximum.unsqueeze(1) + pool_mean(tokens, voxels)
    table = _SumWhereAlone.apply(tokens, voxels)
    crowd = voxels.crowd
    if len(crowd.tokens):
        several = tokens.flatten(0, 1).index_select(0, crowd.tokens)
        maximum = scatter_max(several.unsqueeze(0), crowd.cell.unsqueeze(0), len(crowd.rows))
        table = table.index_add(0, crowd.rows, maximum.squeeze(0))
    return from_table(table, voxels)


class _SumWhereAlone(torch.autograd.Function):
    """Mean of each voxel, and the token once more where it is alone: `(voxels, hidden)`, all clouds end to end."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, voxels: Membership) -> torch.Tensor:
        links = voxels.links
        ctx.links, ctx.shape = links, tokens.shape
        return sum_in_cells(tokens, links, links.shares + (links.shares == 1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        links = ctx.links
        return sum_over_views(gradient, links, links.shares + (links.shares == 1)).view(ctx.shape), None
