"""Sums over the tokens of cells and voxels, along the list of who is where.

Every token is in one cell of each view, so a matrix between tokens and cells is all zeros but one in each of its
columns. Products with it are sums of few rows. Compilers and exporters get the products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.any2point.geometry import Membership


def pool_mean(tokens: torch.Tensor, members: Membership) -> torch.Tensor:
    """Mean of the tokens `(batch, tokens, hidden)` of each cell, `(batch, views, rows, hidden)`; zeros where empty."""
    batch, views, rows, _ = members.pool.shape
    if torch.compiler.is_compiling():
        mean = members.pool.to(tokens.dtype).flatten(1, 2) @ tokens
    else:
        links = members.links
        mean = nn.functional.embedding_bag(
            links.order // views,
            tokens.flatten(0, 1),
            links.starts,
            mode="sum",
            per_sample_weights=links.shares.to(tokens.dtype),
        )
    return mean.view(batch, views, rows, -1)


def spread(view_rows: torch.Tensor, weights: torch.Tensor, members: Membership, special: int) -> torch.Tensor:
    """Weighted sum over the views of each token's cell rows, `(batch, special + tokens, hidden)`, zeros in front.

    Args:
        view_rows: `(batch, views, rows, hidden)`.
        weights: `(batch, views, tokens)`.
        members: Cells of the tokens.
        special: Number of tokens in front that get nothing.
    """
    batch, views, rows, hidden_size = view_rows.shape
    # Zeros for the special tokens are cheaper than to take the sequence apart and put it together again.
    in_front = (0, 0, special, 0)
    if torch.compiler.is_compiling():
        column = members.row + torch.arange(views, device=weights.device)[:, None] * rows  # (batch, views, tokens)
        mix = weights.new_zeros(batch, weights.shape[-1], views * rows)
        mix = mix.scatter(2, column.transpose(1, 2), weights.transpose(1, 2))
        return nn.functional.pad(mix, in_front) @ view_rows.reshape(batch, views * rows, hidden_size)
    table = view_rows.flatten(0, 2)
    index = nn.functional.pad(members.links.rows.view(batch, -1, views), in_front)
    weights = nn.functional.pad(weights.transpose(1, 2), in_front).to(table.dtype)
    added = nn.functional.embedding_bag(
        index.flatten(0, 1), table, mode="sum", per_sample_weights=weights.flatten(0, 1)
    )
    return added.view(batch, -1, hidden_size)


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
    batch, views, rows, _ = view_rows.shape
    if torch.compiler.is_compiling():
        product = view_rows.flatten(1, 2) @ voxel_rows.transpose(-1, -2)
        flat = members.row * voxel_rows.shape[1] + voxels.row  # (batch, views, tokens)
        return product.view(batch, views, -1).gather(2, flat)
    products = _PairProducts.apply(view_rows.flatten(0, 2), voxel_rows.flatten(0, 1), members, voxels)
    return products.view(batch, -1, views).transpose(1, 2)


class _PairProducts(torch.autograd.Function):
    """Inner products `(tokens, views)` of rows `(rows, hidden)` with rows `(voxels, hidden)` of all clouds."""

    @staticmethod
    def forward(
        ctx: Any, view_rows: torch.Tensor, voxel_rows: torch.Tensor, members: Membership, voxels: Membership
    ) -> torch.Tensor:
        rows = members.links.rows
        voxel = voxels.links.rows.expand_as(rows).flatten()
        ctx.save_for_backward(view_rows, voxel_rows)
        ctx.links = members.links, voxels.links
        # As the gradient of the weights of a sum of rows, which it is.
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            view_rows, voxel_rows, voxel, voxel, rows.flatten(), 0
        )
        return products.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        view_rows, voxel_rows = ctx.saved_tensors
        cells, voxels = ctx.links
        voxel = voxels.rows.expand_as(cells.rows).flatten()
        of_view_rows = nn.functional.embedding_bag(
            voxel.index_select(0, cells.order),
            voxel_rows,
            cells.starts,
            mode="sum",
            per_sample_weights=gradient.flatten().index_select(0, cells.order),
        )
        of_voxel_rows = nn.functional.embedding_bag(
            cells.rows.index_select(0, voxels.order).flatten(),
            view_rows,
            voxels.starts * cells.rows.shape[1],
            mode="sum",
            per_sample_weights=gradient.index_select(0, voxels.order).flatten(),
        )
        return of_view_rows, of_voxel_rows, None, None
