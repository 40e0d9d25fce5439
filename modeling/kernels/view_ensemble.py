"""Weighted sum of the rows of a token's cells, by their agreement with its voxel."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.cells import Membership, as_table, from_table
from hf_any3d.modeling.kernels.dispatch import without_autocast

_SHORTEST = 1e-8
# Numbers gathered at a time: on the CPU as many as fit into the core's cache, elsewhere 64 MiB.
_PART_CPU, _PART = 1 << 18, 1 << 24


def view_ensemble_plain(
    view_rows: Tensor, voxel_rows: Tensor, members: Membership, voxels: Membership, scale: float, special: int
) -> Tensor:
    """Sum the rows of each token's cells over the views, weighted by their cosine with the row of its voxel.

    Args:
        view_rows: `(batch, views, rows, hidden)`.
        voxel_rows: `(batch, voxels, hidden)`.
        members: Cells of the tokens.
        voxels: Voxels of the tokens.
        scale: Factor of the sum.
        special: Number of leading tokens that get zeros.

    Returns:
        `(batch, special + tokens, hidden)`.

    Source: Any2Point, Eq. 8 and 9.
    """
    batch, views, rows, hidden_size = view_rows.shape
    agreement = (1 + view_voxel_cosine(view_rows, voxel_rows, members, voxels)) / 2  # (batch, views, tokens)
    weights = agreement / agreement.sum(dim=1, keepdim=True) * scale
    # As a matrix between tokens and cells, the sum is one product, and no row is gathered.
    column = members.row + torch.arange(views, device=weights.device)[:, None] * rows  # (batch, views, tokens)
    mix = weights.new_zeros(batch, weights.shape[-1], views * rows)
    mix = mix.scatter(2, column.transpose(1, 2), weights.transpose(1, 2))
    # Rows of zeros for the special tokens are cheaper than splitting and concatenating the sequence.
    return nn.functional.pad(mix, (0, 0, special, 0)) @ view_rows.reshape(batch, views * rows, hidden_size)


def view_voxel_cosine(view_rows: Tensor, voxel_rows: Tensor, members: Membership, voxels: Membership) -> Tensor:
    """Compute the cosine between the rows of a token's cell and voxel, `(batch, views, tokens)` (Any2Point, Eq. 8)."""
    product = (view_rows.flatten(1, 2) @ voxel_rows.transpose(-1, -2)).view(*view_rows.shape[:2], -1)
    product = product.gather(2, members.row * voxel_rows.shape[1] + voxels.row)  # (batch, views, tokens)
    # There are fewer cells and voxels than tokens, so their lengths are computed first.
    view_length = view_rows.norm(dim=-1).gather(2, members.row)  # (batch, views, tokens)
    voxel_length = voxel_rows.norm(dim=-1).unsqueeze(1).gather(2, voxels.row)  # (batch, 1, tokens)
    return product / (view_length * voxel_length).clamp_min(_SHORTEST)


class _ViewEnsemble(torch.autograd.Function):
    """Compute `view_ensemble_plain` along the list of tokens by cell.

    A cell's row is read for the sum, for the cosine and for its length; here its gradient is a single sum.
    """

    @staticmethod
    def forward(
        ctx: Any,
        view_rows: Tensor,
        voxel_rows: Tensor,
        members: Membership,
        voxels: Membership,
        scale: float,
        special: int,
    ) -> Tensor:
        tables = as_table(view_rows), voxel_rows.flatten(0, 1)
        added, agreement = ensemble(*tables, members, voxels, scale, special)
        ctx.save_for_backward(view_rows, voxel_rows, *agreement)
        ctx.members, ctx.voxels, ctx.scale, ctx.special = members, voxels, scale, special
        return added

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        view_rows, voxel_rows, *agreement = ctx.saved_tensors
        tables = as_table(view_rows), voxel_rows.flatten(0, 1)
        grads = ensemble_gradients(gradient, *tables, *agreement, ctx.members, ctx.voxels, ctx.scale, ctx.special)
        return from_table(grads[0], ctx.members), grads[1].view_as(voxel_rows), None, None, None, None


view_ensemble_fused = _ViewEnsemble.apply


def ensemble(
    table: Tensor, voxel_table: Tensor, members: Membership, voxels: Membership, scale: float, special: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the sum `(batch, special + tokens, hidden)` of the rows of each token's cells, and what is saved.

    Args:
        table: `(cells, hidden)`, the rows of all views and clouds as numbered by `Links`.
        voxel_table: `(voxels, hidden)`, the same of the voxels.
        members: Cells of the tokens.
        voxels: Voxels of the tokens.
        scale: Factor of the sum.
        special: Number of leading tokens that get zeros.
    """
    batch, tokens = len(members.row), members.row.shape[-1]
    row, voxel = members.links.rows, voxels.links.rows  # (tokens, views), (tokens, 1)
    length, voxel_length = torch.linalg.vector_norm(table, dim=1), torch.linalg.vector_norm(voxel_table, dim=1)
    lengths = (length[row] * voxel_length[voxel]).clamp_min_(_SHORTEST)  # (tokens, views)
    cosine = _products(voxel_table.index_select(0, voxel.squeeze(1)), table, row) / lengths
    agreement = (1 + cosine).div_(2)
    total = agreement.sum(dim=1, keepdim=True)
    weights = agreement.div_(total / scale)
    # The special tokens are empty sums.
    places = torch.arange(-special, tokens, device=row.device).clamp_min_(0)
    starts = places + torch.arange(batch, device=row.device).unsqueeze(1) * tokens  # (batch, special + tokens)
    added = nn.functional.embedding_bag(
        row.flatten(), table, starts.flatten() * row.shape[1], mode="sum", per_sample_weights=weights.flatten()
    )
    return added.view(batch, special + tokens, -1), (length, voxel_length, lengths, cosine, weights, total)


def ensemble_gradients(
    gradient: Tensor,
    table: Tensor,
    voxel_table: Tensor,
    length: Tensor,
    voxel_length: Tensor,
    lengths: Tensor,
    cosine: Tensor,
    weights: Tensor,
    total: Tensor,
    members: Membership,
    voxels: Membership,
    scale: float,
    special: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of both tables of `ensemble`, given that of the sum and what it returned."""
    cells, own = members.links, voxels.links
    tokens, views = cells.rows.shape
    # The tokens' gradient, then the voxels' rows: the gradient of a cell is a sum of rows of both.
    both = table.new_empty(tokens + len(voxel_length), table.shape[1])
    grad_tokens = both[:tokens]
    grad_tokens.view(len(gradient), -1, table.shape[1]).copy_(gradient[:, special:])
    both[tokens:].copy_(voxel_table)

    grad_weights = _products(grad_tokens, table, cells.rows)  # (tokens, views)
    # The weights of a token sum to a constant, so the part common to all of them is subtracted.
    common = (grad_weights * weights).sum(dim=1, keepdim=True)
    grad_cosine = (grad_weights * scale).sub_(common).div_(2 * total)
    grad_product = grad_cosine / lengths
    # Where the clamp held, the cosine does not depend on the lengths.
    grad_lengths = (grad_product * cosine).mul_(lengths > _SHORTEST).neg_()

    token = cells.order // views
    # Each token in a cell adds two rows of `both`: its gradient times its weight, and its voxel's row times the
    # gradient of their product.
    index = torch.stack([token, own.rows.flatten().index_select(0, token) + tokens], dim=1)
    factors = torch.stack([weights.flatten(), grad_product.flatten()], dim=1).index_select(0, cells.order)
    grad_table = nn.functional.embedding_bag(
        index.flatten(), both, cells.starts * 2, mode="sum", per_sample_weights=factors.flatten()
    )
    _add_through_length(grad_table, table, length, cells.rows, grad_lengths * voxel_length[own.rows])
    index, factors = cells.rows.index_select(0, own.order), grad_product.index_select(0, own.order)
    grad_voxels = nn.functional.embedding_bag(
        index.flatten(), table, own.starts * views, mode="sum", per_sample_weights=factors.flatten()
    )
    grad_voxel_length = (grad_lengths * length[cells.rows]).sum(dim=1)
    _add_through_length(grad_voxels, voxel_table, voxel_length, own.rows, grad_voxel_length)
    return grad_table, grad_voxels


def _products(one: Tensor, table: Tensor, row: Tensor) -> Tensor:
    """Compute inner products `(tokens, views)` of `one` `(tokens, hidden)` with the rows `(tokens, views)` of a table.

    In parts, because the gathered rows would be as many as tokens times views.
    """
    step = max(1, (_PART_CPU if table.device.type == "cpu" else _PART) // (row.shape[1] * table.shape[1]))
    products = []
    for own, rows in zip(one.split(step), row.split(step), strict=True):
        gathered = table.index_select(0, rows.flatten()).view(*rows.shape, -1)
        products.append(gathered.mul_(own.unsqueeze(1)).sum(dim=-1))
    return torch.cat(products)


def _add_through_length(out: Tensor, table: Tensor, length: Tensor, row: Tensor, grad_length: Tensor) -> None:
    """Add the gradient of rows `(rows, hidden)` through their lengths.

    Args:
        out: `(rows, hidden)`.
        table: The rows.
        length: `(rows,)`, their lengths.
        row: The rows whose lengths were read, of any shape.
        grad_length: Gradient of the lengths that were read.
    """
    total = torch.zeros_like(length).index_add_(0, row.flatten(), grad_length.flatten())
    out.addcmul_(table, (total / length).where(length > 0, 0).unsqueeze(1))
