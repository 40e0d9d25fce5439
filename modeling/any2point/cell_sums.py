"""Sums over the tokens of cells and voxels.

Every token is in one cell of each view, so a matrix between tokens and cells is all zeros but one in each of its
columns. Products with it are sums of few rows, taken along the list of who is where. Compilers and exporters get the
products.
"""

from __future__ import annotations

import torch
from torch import nn

from hf_any3d.modeling.any2point.geometry import Links, Membership


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
