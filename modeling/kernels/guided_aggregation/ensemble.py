"""Batch norm and GELU of the cells of each view and of the voxels, then the sum over a token's cells.

A norm saves the rows before it, and the sum those after it; fused, only the former are saved, and a cell's row, which
is read for the sum, for the cosine and for its length, gets its gradient as a single sum.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hf_any3d.modeling.kernels.cells import Membership
from hf_any3d.modeling.kernels.dispatch import Kernel, without_autocast

_SHORTEST = 1e-8
# Numbers gathered at a time: as many as fit into the core's cache.
_PART = 1 << 18


class BatchNorm(NamedTuple):
    """A norm over the occupied cells of each view in training.

    Args:
        occupied: `(batch, views, rows)`, 1 for rows that count, else 0.
        weight: `(views, hidden)`, the norm's gain.
        bias: `(views, hidden)`, the norm's shift.
        count: `(views, 1)`, number of occupied rows.
        total: `(views, 1)`, divisor of the statistics; larger than `count` if rows of zeros count too.
        eps: Added to the variance.
    """

    occupied: Tensor
    weight: Tensor
    bias: Tensor
    count: Tensor
    total: Tensor
    eps: float


def cell_norm(rows: Tensor, norm: BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize the occupied rows of each view by their batch statistics, with GELU.

    Returns rows like `rows` `(batch, views, rows, hidden)`, float32 or float64, undefined where not occupied; then
    mean and variance `(views, hidden)` without gradients.
    """
    inside = norm.occupied.unsqueeze(-1)
    mean = (rows * inside).sum(dim=(0, 2)) / norm.total  # (views, hidden)
    centered = rows - mean.unsqueeze(1)
    # Empty cells that count in `total` are rows of zeros, at the distance of the mean from it.
    squares = (centered.square() * inside).sum(dim=(0, 2)) + (norm.total - norm.count) * mean.square()
    variance = squares / norm.total
    normed = norm.bias.unsqueeze(1) + centered * (norm.weight * (variance + norm.eps).rsqrt()).unsqueeze(1)
    return nn.functional.gelu(normed), mean.detach(), variance.detach()


def view_ensemble(
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
    cosine = view_voxel_cosine(view_rows, voxel_rows, members, voxels)  # (batch, views, tokens)
    weights = view_weights(cosine, scale)
    # As a matrix between tokens and cells, the sum is one product, and no row is gathered.
    column = members.row + torch.arange(views, device=weights.device)[:, None] * rows  # (batch, views, tokens)
    mix = weights.new_zeros(batch, weights.shape[-1], views * rows)
    mix = mix.scatter(2, column.transpose(1, 2), weights.transpose(1, 2))
    # Rows of zeros for the special tokens are cheaper than splitting and concatenating the sequence.
    return nn.functional.pad(mix, (0, 0, special, 0)) @ view_rows.reshape(batch, views * rows, hidden_size)


def view_weights(cosine: Tensor, scale: float) -> Tensor:
    """Weigh the views `(…, views, tokens)` of each token by cosines, for a sum of `scale` (Any2Point, Eq. 9)."""
    # Views whose cell resembles the token's voxel count more.
    agreement = (1 + cosine) / 2
    return agreement / agreement.sum(dim=-2, keepdim=True) * scale


def view_voxel_cosine(view_rows: Tensor, voxel_rows: Tensor, members: Membership, voxels: Membership) -> Tensor:
    """Compute the cosine between the rows of a token's cell and voxel, `(batch, views, tokens)` (Any2Point, Eq. 8)."""
    product = (view_rows.flatten(1, 2) @ voxel_rows.transpose(-1, -2)).view(*view_rows.shape[:2], -1)
    product = product.gather(2, members.row * voxel_rows.shape[1] + voxels.row)  # (batch, views, tokens)
    # There are fewer cells and voxels than tokens, so their lengths are computed first.
    view_length = view_rows.norm(dim=-1).gather(2, members.row)  # (batch, views, tokens)
    voxel_length = voxel_rows.norm(dim=-1).unsqueeze(1).gather(2, voxels.row)  # (batch, 1, tokens)
    return product / (view_length * voxel_length).clamp_min(_SHORTEST)


def normed_ensemble_plain(
    view_rows: Tensor,
    voxel_rows: Tensor,
    view_norm: BatchNorm,
    voxel_norm: BatchNorm,
    members: Membership,
    voxels: Membership,
    scale: float,
    special: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Normalize cells and voxels by their batch statistics, apply GELU, and sum each token's cells over the views.

    Args:
        view_rows: `(batch, views, rows, hidden)`, float32 or float64.
        voxel_rows: `(batch, 1, voxels, hidden)`.
        view_norm: Norm of the cells.
        voxel_norm: Norm of the voxels, which have one view.
        members: Cells of the tokens.
        voxels: Voxels of the tokens.
        scale: Factor of the sum.
        special: Number of leading tokens that get zeros.

    Returns:
        The sum `(batch, special + tokens, hidden)`; then mean and variance of the cells `(views, hidden)`, and of the
        voxels `(1, hidden)`, without gradients.
    """
    view_rows, *view_statistics = cell_norm(view_rows, view_norm)
    voxel_rows, *voxel_statistics = cell_norm(voxel_rows, voxel_norm)
    added = view_ensemble(view_rows, voxel_rows.squeeze(1), members, voxels, scale, special)
    return added, *view_statistics, *voxel_statistics


def normed_ensemble_fused(
    view_rows: Tensor,
    voxel_rows: Tensor,
    view_norm: BatchNorm,
    voxel_norm: BatchNorm,
    members: Membership,
    voxels: Membership,
    scale: float,
    special: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute `normed_ensemble_plain`; the backward pass computes the normed rows again."""
    return _NormedEnsemble.apply(view_rows, voxel_rows, *view_norm, *voxel_norm, members, voxels, scale, special)


class _NormedEnsemble(torch.autograd.Function):
    """Rows of all views and clouds are tables `(views, batch * rows, hidden)`, numbered as in `Links`."""

    @staticmethod
    def forward(ctx: Any, view_rows: Tensor, voxel_rows: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        norms = BatchNorm(*arguments[:6]), BatchNorm(*arguments[6:12])
        ctx.members, ctx.voxels, ctx.scale, ctx.special = arguments[12:]
        batch = len(ctx.members.row)
        tokens = ctx.members.row.shape[-1]
        tables = []
        statistics = []
        saved = []
        for rows, norm in zip((view_rows, voxel_rows), norms, strict=True):
            inside = _by_view(norm.occupied)
            values = _by_view(rows)
            mean = _sum_rows(inside, values) / norm.total  # (views, hidden)
            centered = values - mean.unsqueeze(1)
            squares = _sum_rows(inside, centered.square()) + (norm.total - norm.count) * mean.square()
            variance = squares / norm.total
            deviation = (variance + norm.eps).rsqrt()
            normed = torch.addcmul(norm.bias.unsqueeze(1), centered, (norm.weight * deviation).unsqueeze(1))
            tables.append(nn.functional.gelu(normed).flatten(0, 1))
            statistics += [mean, variance]
            saved += [rows, norm.occupied, norm.weight, norm.bias, mean, deviation, norm.total]
        row, voxel = ctx.members.links.rows, ctx.voxels.links.rows  # (tokens, views), (tokens, 1)
        length, voxel_length = (torch.linalg.vector_norm(table, dim=1) for table in tables)
        lengths = (length[row] * voxel_length[voxel]).clamp_min_(_SHORTEST)  # (tokens, views)
        cosine = _products(tables[1].index_select(0, voxel.squeeze(1)), tables[0], row) / lengths
        agreement = (1 + cosine).div_(2)
        sums = agreement.sum(dim=1, keepdim=True)
        weights = agreement.div_(sums / ctx.scale)
        # The special tokens are empty sums.
        places = torch.arange(-ctx.special, tokens).clamp_min_(0)
        starts = places + torch.arange(batch).unsqueeze(1) * tokens  # (batch, special + tokens)
        added = _weighted_sums(row.flatten(), tables[0], starts.flatten() * row.shape[1], weights.flatten())
        ctx.save_for_backward(*saved, length, voxel_length, lengths, cosine, weights, sums)
        ctx.mark_non_differentiable(*statistics)
        return added.view(batch, ctx.special + tokens, -1), *statistics

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        length, voxel_length, lengths, cosine, weights, sums = saved[14:]
        # Normed rows are as large as their inputs, so they are computed again rather than kept.
        norms = (saved[:7], saved[7:14])
        again = []
        for rows, _, weight, bias, mean, deviation, _ in norms:
            centered = _by_view(rows) - mean.unsqueeze(1)
            scale = (weight * deviation).unsqueeze(1)
            again.append((centered, torch.addcmul(bias.unsqueeze(1), centered, scale)))
        table, voxel_table = (nn.functional.gelu(normed).flatten(0, 1) for _, normed in again)
        cells = ctx.members.links
        own = ctx.voxels.links
        tokens, views = cells.rows.shape
        # The tokens' gradient, then the voxels' rows: the gradient of a cell is a sum of rows of both.
        grad_tokens = gradient[:, ctx.special :].flatten(0, 1)
        both = torch.cat([grad_tokens, voxel_table])

        grad_weights = _products(grad_tokens, table, cells.rows)  # (tokens, views)
        # The weights of a token sum to a constant, so the part common to all of them is subtracted.
        common = (grad_weights * weights).sum(dim=1, keepdim=True)
        grad_product = (grad_weights * ctx.scale).sub_(common).div_(2 * sums).div_(lengths)
        # Where the clamp held, the cosine does not depend on the lengths.
        grad_lengths = (grad_product * cosine).mul_(lengths > _SHORTEST).neg_()

        token = cells.order // views
        # Each token in a cell adds two rows of `both`: its gradient times its weight, and its voxel's row times the
        # gradient of their product.
        index = torch.stack([token, own.rows.flatten().index_select(0, token) + tokens], dim=1)
        factors = torch.stack([weights.flatten(), grad_product.flatten()], dim=1).index_select(0, cells.order)
        grad_table = _weighted_sums(index.flatten(), both, cells.starts * 2, factors.flatten())
        _add_through_length(grad_table, table, length, cells.rows, grad_lengths * voxel_length[own.rows])
        index = cells.rows.index_select(0, own.order)
        factors = grad_product.index_select(0, own.order)
        grad_voxels = _weighted_sums(index.flatten(), table, own.starts * views, factors.flatten())
        grad_voxel_length = (grad_lengths * length[cells.rows]).sum(dim=1)
        _add_through_length(grad_voxels, voxel_table, voxel_length, own.rows, grad_voxel_length)

        grad_rows = []
        grad_norms = []
        for norm, (centered, normed), grad in zip(norms, again, (grad_table, grad_voxels), strict=True):
            rows, occupied, weight, _, _, deviation, total = norm
            inside = _by_view(occupied)
            scale = weight * deviation
            grad = torch.ops.aten.gelu_backward(grad.view_as(normed), normed)
            grad_bias = _sum_rows(inside, grad)
            grad_weight = _sum_rows(inside, grad * centered) * deviation
            # In training, mean and variance depend on every occupied row; no other one entered the statistics.
            share = scale / -total
            grad_mean = (grad_bias * share).unsqueeze(1)
            slope = (grad_weight * deviation * share).unsqueeze(1)
            entered = torch.addcmul(grad_mean, centered, slope).addcmul_(grad, scale.unsqueeze(1))
            entered = entered.mul_(inside.unsqueeze(-1)).unflatten(1, (len(rows), -1)).transpose(0, 1)
            grad_rows.append(entered)
            grad_norms += [None, grad_weight, grad_bias, None, None, None]
        return *grad_rows, *grad_norms, None, None, None, None


def _by_view(rows: Tensor) -> Tensor:
    """Reshape `(batch, views, rows, ...)` to `(views, batch * rows, ...)`; a copy unless views are contiguous."""
    return rows.transpose(0, 1).flatten(1, 2)


def _sum_rows(occupied: Tensor, values: Tensor) -> Tensor:
    """Sum the occupied rows: `(views, rows, hidden)` to `(views, hidden)`; reads memory once."""
    views, rows, hidden_size = values.shape
    starts = torch.arange(0, views * rows, rows)
    return _weighted_sums(torch.arange(views * rows), values.reshape(-1, hidden_size), starts, occupied.flatten())


def _weighted_sums(index: Tensor, table: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Sum weighted rows of a table between each start and the next one."""
    return nn.functional.embedding_bag(index, table, starts, mode="sum", per_sample_weights=weights)


def _products(one: Tensor, table: Tensor, row: Tensor) -> Tensor:
    """Compute inner products `(tokens, views)` of `one` `(tokens, hidden)` with the rows `(tokens, views)` of a table.

    In parts, because the gathered rows would be as many as tokens times views.
    """
    step = max(1, _PART // (row.shape[1] * table.shape[1]))
    products = []
    for own, rows in zip(one.split(step), row.split(step), strict=True):
        gathered = table.index_select(0, rows.flatten()).view(*rows.shape, -1)
        products.append(gathered.mul_(own.unsqueeze(1)).sum(dim=-1))
    return torch.cat(products)


def _add_through_length(out: Tensor, table: Tensor, length: Tensor, row: Tensor, grad_length: Tensor) -> None:
    """Add to `out` the gradient of a table `(rows, hidden)` through lengths `(rows,)`, which were read at `row`."""
    total = torch.zeros_like(length).index_add_(0, row.flatten(), grad_length.flatten())
    out.addcmul_(table, (total / length).where(length > 0, 0).unsqueeze(1))


normed_ensemble = Kernel(
    normed_ensemble_plain,
    normed_ensemble_fused,
    "In training; not with statistics of several processes, hooks or half precision weights, nor on a GPU or in "
    "compiled code, where a few products are faster than sums by index.",
    devices=("cpu",),
    compiles=False,
)
