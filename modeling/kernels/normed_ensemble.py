"""Batch norm and GELU of the cells of each view and of the voxels, then the sum over a token's cells.

Norms save the rows before them, and `view_ensemble` those after them; together only the former are saved.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.cell_norm import (
    by_cloud,
    by_view,
    cell_norm,
    norm_gradients,
    normalize,
    normalize_again,
)
from hf_any3d.modeling.kernels.cells import Membership
from hf_any3d.modeling.kernels.dispatch import without_autocast
from hf_any3d.modeling.kernels.view_ensemble import ensemble, ensemble_gradients, view_ensemble_plain


class BatchNorm(NamedTuple):
    """Arguments of `cell_norm` besides the rows and the choice of GELU."""

    occupied: Tensor
    weight: Tensor
    bias: Tensor
    count: Tensor
    total: Tensor
    eps: float


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
        voxel_norm: Norm of the voxels; `(1, …)`, as voxels have one view.
        members: Cells of the tokens.
        voxels: Voxels of the tokens.
        scale: Factor of the sum.
        special: Number of leading tokens that get zeros.

    Returns:
        The sum `(batch, special + tokens, hidden)`; then mean and variance of the cells `(views, hidden)`, and of the
        voxels `(1, hidden)`, without gradients.
    """
    view_rows, *view_statistics = cell_norm(view_rows, *view_norm, gelu=True)
    voxel_rows, *voxel_statistics = cell_norm(voxel_rows, *voxel_norm, gelu=True)
    added = view_ensemble_plain(view_rows, voxel_rows.squeeze(1), members, voxels, scale, special)
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
    @staticmethod
    def forward(ctx: Any, view_rows: Tensor, voxel_rows: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        view_norm, voxel_norm = BatchNorm(*arguments[:6]), BatchNorm(*arguments[6:12])
        ctx.members, ctx.voxels, ctx.scale, ctx.special = arguments[12:]
        tables, statistics, norms = [], [], []
        for rows, norm in ((view_rows, view_norm), (voxel_rows, voxel_norm)):
            inside = by_view(norm.occupied)
            # The same for cells and for voxels, which are cells of one view.
            normed, mean, variance = normalize(by_view(rows), inside, *norm[1:])
            deviation = (variance + norm.eps).rsqrt()
            tables.append(nn.functional.gelu(normed).flatten(0, 1))
            statistics += [mean, variance]
            norms += [rows, norm.occupied, norm.weight, norm.bias, mean, deviation, norm.total]
        added, agreement = ensemble(*tables, ctx.members, ctx.voxels, ctx.scale, ctx.special)
        ctx.save_for_backward(*norms, *agreement)
        ctx.mark_non_differentiable(*statistics)
        return added, *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        # Normed rows are as large as their inputs, so they are computed again rather than kept.
        norms, again = (saved[:7], saved[7:14]), []
        for rows, _, weight, bias, mean, deviation, _ in norms:
            again.append(normalize_again(by_view(rows), weight, bias, mean, deviation))
        tables = [nn.functional.gelu(normed).flatten(0, 1) for _, normed in again]
        grad_tables = ensemble_gradients(
            gradient, *tables, *saved[14:], ctx.members, ctx.voxels, ctx.scale, ctx.special
        )
        grad_rows, grad_norms = [], []
        for norm, (centered, normed), grad in zip(norms, again, grad_tables, strict=True):
            rows, occupied, weight, _, _, deviation, total = norm
            # Backwards through GELU, then through the norm with its batch statistics.
            grad_normed = torch.ops.aten.gelu_backward(grad.view_as(normed), normed)
            grads = norm_gradients(grad_normed, centered, by_view(occupied), weight, deviation, total)
            grad_rows.append(by_cloud(grads[0], rows))
            grad_norms += [None, *grads[1:], None, None, None]
        return *grad_rows, *grad_norms, None, None, None, None
