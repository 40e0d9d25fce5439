"""The ensemble over the views: what a token's cells say, weighted by their agreement with its voxel."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.any2point.cell_sums import as_table, from_table, pair_products, spread
from hf_any3d.modeling.any2point.geometry import Membership

_SHORTEST = 1e-8


def view_ensemble(
    view_rows: torch.Tensor,
    voxel_rows: torch.Tensor,
    members: Membership,
    voxels: Membership,
    scale: float,
    special: int,
) -> torch.Tensor:
    """What is added to the tokens, `(batch, special + tokens, hidden)`, zeros in front (Any2Point, Eq. 8 and 9).

    Args:
        view_rows: `(batch, views, rows, hidden)`.
        voxel_rows: `(batch, voxels, hidden)`.
        members: Cells of the tokens.
        voxels: Voxels of the tokens.
        scale: Factor of the sum.
        special: Number of tokens in front that get nothing.
    """
    if not torch.compiler.is_compiling():
        return _Ensemble.apply(view_rows, voxel_rows, members, voxels, scale, special)
    agreement = (1 + view_voxel_cosine(view_rows, voxel_rows, members, voxels)) / 2  # (batch, views, tokens)
    agreement = agreement / agreement.sum(dim=1, keepdim=True)
    return spread(view_rows, agreement * scale, members, special)


def view_voxel_cosine(
    view_rows: torch.Tensor, voxel_rows: torch.Tensor, members: Membership, voxels: Membership
) -> torch.Tensor:
    """Cosine between what a token's cell and its voxel say, `(batch, views, tokens)` (Any2Point, Eq. 8)."""
    product = pair_products(view_rows, voxel_rows, members, voxels)  # (batch, views, tokens)
    # Lengths belong to cells and voxels, which are fewer than tokens.
    view_length = view_rows.norm(dim=-1).gather(2, members.row)  # (batch, views, tokens)
    voxel_length = voxel_rows.norm(dim=-1).unsqueeze(1).gather(2, voxels.row)  # (batch, 1, tokens)
    return product / (view_length * voxel_length).clamp_min(_SHORTEST)


class _Ensemble(torch.autograd.Function):
    """The same along the list of who is where.

    A cell's row is read three times: for the sum, for the product and for its length. Its gradient is one sum here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        view_rows: torch.Tensor,
        voxel_rows: torch.Tensor,
        members: Membership,
        voxels: Membership,
        scale: float,
        special: int,
    ) -> torch.Tensor:
        batch, tokens = len(view_rows), members.row.shape[-1]
        row, voxel = members.links.rows, voxels.links.rows  # (tokens, views), (tokens, 1)
        table, voxel_table = as_table(view_rows), voxel_rows.flatten(0, 1)
        length, voxel_length = torch.linalg.vector_norm(table, dim=1), torch.linalg.vector_norm(voxel_table, dim=1)
        lengths = (length[row] * voxel_length[voxel]).clamp_min_(_SHORTEST)  # (tokens, views)
        cosine = _products(voxel_table, voxel, table, row) / lengths
        agreement = (1 + cosine).div_(2)
        total = agreement.sum(dim=1, keepdim=True)
        weights = agreement.div_(total / scale)
        # The tokens in front are sums of nothing.
        places = torch.arange(-special, tokens, device=row.device).clamp_min_(0)
        starts = places + torch.arange(batch, device=row.device).unsqueeze(1) * tokens  # (batch, special + tokens)
        added = nn.functional.embedding_bag(
            row.flatten(), table, starts.flatten() * row.shape[1], mode="sum", per_sample_weights=weights.flatten()
        )
        ctx.save_for_backward(view_rows, voxel_rows, length, voxel_length, lengths, cosine, weights, total)
        ctx.members, ctx.voxels, ctx.scale, ctx.special = members, voxels, scale, special
        return added.view(batch, special + tokens, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        view_rows, voxel_rows, length, voxel_length, lengths, cosine, weights, total = ctx.saved_tensors
        cells, voxels = ctx.members.links, ctx.voxels.links
        (tokens, views), table = cells.rows.shape, as_table(view_rows)
        # What reaches the tokens, and below it the rows of the voxels: a cell's gradient is a sum of rows of both.
        both = table.new_empty(tokens + len(voxel_length), table.shape[1])
        of_tokens, voxel_table = both[:tokens], both[tokens:]
        of_tokens.view(len(gradient), -1, table.shape[1]).copy_(gradient[:, ctx.special :])
        voxel_table.view_as(voxel_rows).copy_(voxel_rows)

        token = torch.arange(tokens, device=table.device).unsqueeze(1)
        of_weights = _products(of_tokens, token, table, cells.rows)  # (tokens, views)
        # Weights sum to a constant: what those of a token have in common is taken off.
        common = (of_weights * weights).sum(dim=1, keepdim=True)
        of_cosine = (of_weights * ctx.scale).sub_(common).div_(2 * total)
        of_product = of_cosine / lengths
        of_lengths = (of_product * cosine).mul_(lengths > _SHORTEST).neg_()

        token = cells.order // views
        index = torch.stack([token, voxels.rows.flatten().index_select(0, token) + tokens], dim=1)
        factors = torch.stack([weights.flatten(), of_product.flatten()], dim=1).index_select(0, cells.order)
        of_table = nn.functional.embedding_bag(
            index.flatten(), both, cells.starts * 2, mode="sum", per_sample_weights=factors.flatten()
        )
        _add_through_length(of_table, table, length, cells.rows, of_lengths * voxel_length[voxels.rows])
        index, factors = cells.rows.index_select(0, voxels.order), of_product.index_select(0, voxels.order)
        of_voxels = nn.functional.embedding_bag(
            index.flatten(), table, voxels.starts * views, mode="sum", per_sample_weights=factors.flatten()
        )
        of_voxel_length = (of_lengths * length[cells.rows]).sum(dim=1)
        _add_through_length(of_voxels, voxel_table, voxel_length, voxels.rows, of_voxel_length)
        return from_table(of_table, ctx.members), of_voxels.view_as(voxel_rows), None, None, None, None


def _products(one: torch.Tensor, one_row: torch.Tensor, other: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Inner products `(tokens, views)` of rows of two tables, `one_row` `(tokens, 1)` and `row` `(tokens, views)`."""
    one_row = one_row.expand_as(row).flatten().contiguous()  # of a single token flatten gives a view without strides
    # As the gradient of the weights of a sum of rows, which it is.
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        other, one, one_row, one_row, row.flatten(), 0
    )
    return products.view(row.shape)


def _add_through_length(
    out: torch.Tensor, table: torch.Tensor, length: torch.Tensor, row: torch.Tensor, of_length: torch.Tensor
) -> None:
    """Add the gradient of rows `(rows, hidden)` that reaches them by way of their lengths `(rows,)`.

    Args:
        out: `(rows, hidden)`.
        table: The rows.
        length: Their lengths.
        row: The rows whose lengths were read, of any shape.
        of_length: The gradient of what was read.
    """
    total = torch.zeros_like(length).index_add_(0, row.flatten(), of_length.flatten())
    out.addcmul_(table, (total / length).where(length > 0, 0).unsqueeze(1))
