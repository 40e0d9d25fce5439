"""Guided aggregation of clouds of one size: all views at once, without copies of the tokens.

Linear maps come before gathering, averages before widening, and cosines are computed between cells and voxels, of
which there are fewer than tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.cells import Membership, max_in_cells, mean_in_cells
from hf_any3d.modeling.kernels.dispatch import recomputed
from hf_any3d.modeling.kernels.guided_aggregation.ensemble import BatchNorm, normed_ensemble, view_ensemble
from hf_any3d.modeling.kernels.guided_aggregation.modules import CellAttention, CellNorm, Guidance


def aggregated(
    tokens: Tensor,
    attention: CellAttention,
    view_norm: CellNorm,
    voxel_norm: CellNorm,
    cells: Membership,
    voxels: Membership,
    guidance: Guidance,
    special: int = 0,
) -> Tensor:
    """Return what is added to the tokens `(batch, tokens, hidden)`, after `special` rows of zeros in front."""
    view_rows = pool_views(tokens, attention, cells, guidance.pooling)
    # The sorted rows of a maximum would be a tenth of the saved bytes of a training step.
    voxel_rows = recomputed(_pool, tokens.unsqueeze(1), voxels, with_maximum=True)  # (batch, 1, voxels, hidden)
    places = cells, voxels, guidance.scale, special
    if not (view_norm.can_be_fused() and voxel_norm.can_be_fused()):
        view_rows = view_norm(view_rows, cells)  # (batch, views, cells, hidden)
        voxel_rows = voxel_norm(voxel_rows, voxels).squeeze(1)  # (batch, voxels, hidden)
        return view_ensemble(view_rows, voxel_rows, *places)
    view_rows = view_rows.to(tokens.dtype)
    voxel_rows = voxel_rows.to(tokens.dtype)
    norms = _norm_of(view_norm, view_rows, cells), _norm_of(voxel_norm, voxel_rows, voxels)
    added, mean, variance, voxel_mean, voxel_variance = normed_ensemble(view_rows, voxel_rows, *norms, *places)
    view_norm.update_statistics(mean, variance, norms[0].total, cells)
    voxel_norm.update_statistics(voxel_mean, voxel_variance, norms[1].total, voxels)
    return added


def pool_views(tokens: Tensor, attention: CellAttention, cells: Membership, pooling: str) -> Tensor:
    """Pool the tokens of every cell after attention: `(batch, views, cells, hidden)`."""
    gathered = _attend(tokens, attention, cells)  # (batch, views, tokens, width)
    out_weight = attention.out_weight.transpose(1, 2)  # (views, width, hidden)
    out_bias = attention.out_bias.unsqueeze(1)
    if pooling == "max_mean":
        return _pool(tokens.unsqueeze(1) + gathered @ out_weight + out_bias, cells, with_maximum=True)
    # Mean and linear layer commute: the narrow rows are averaged first, so that cells are widened, not tokens.
    # View by view: a product over clouds and views would copy the weights for every cloud, and the norm that follows
    # needs the rows of a view together.
    pooled = _pool(gathered, cells).transpose(0, 1)  # (views, batch, rows, width)
    added = (pooled.flatten(1, 2) @ out_weight + out_bias).unflatten(1, pooled.shape[1:3]).transpose(0, 1)
    return added + mean_in_cells(tokens, cells)


def project(tokens: Tensor, attention: CellAttention) -> Tensor:
    """Return queries, keys and values of tokens `(..., hidden)` in each view, `(..., views, 3 * width)`."""
    normed = nn.functional.layer_norm(tokens, tokens.shape[-1:])
    # The norms of all views share their statistics; gains and shifts are folded into one projection. A sum is faster
    # than such a small product.
    folded = attention.qkv_weight * attention.norm_weight.unsqueeze(1)  # (views, 3 * width, hidden)
    offset = (attention.qkv_weight * attention.norm_bias.unsqueeze(1)).sum(dim=-1) + attention.qkv_bias
    return nn.functional.linear(normed, folded.flatten(0, 1), offset.flatten()).unflatten(-1, offset.shape)


def _attend(tokens: Tensor, attention: CellAttention, cells: Membership) -> Tensor:
    """Attend to the tokens of the same cell: `(batch, tokens, hidden)` to `(batch, views, tokens, width)`."""
    # A twentieth of a step's saved bytes, and a product of few channels.
    qkv = recomputed(project, tokens, attention).transpose(1, 2)  # (batch, views, tokens, 3 * width)
    # Four axes, views and clouds in one: for more, torch has no kernel that does not keep the attention weights.
    query, key, value = (
        part.transpose(1, 2) for part in qkv.flatten(0, 1).unflatten(-1, (3, attention.heads, -1)).unbind(2)
    )  # each (batch * views, heads, tokens, head width)
    apart = cells.apart.flatten(0, 1).to(qkv.dtype)
    attended = nn.functional.scaled_dot_product_attention(
        query, key, value, apart, attention.drop_rate, scale=attention.scale
    )
    return attended.transpose(1, 2).reshape(*qkv.shape[:3], -1)


def _pool(values: Tensor, cells: Membership, with_maximum: bool = False) -> Tensor:
    """Pool `(batch, views, tokens, hidden)` over the cells of each view: mean, or maximum plus mean."""
    mean = cells.pool.to(values.dtype) @ values  # (batch, views, rows, hidden)
    if not with_maximum:
        return mean
    return max_in_cells(values, cells) + mean


def _norm_of(norm: CellNorm, rows: Tensor, cells: Membership) -> BatchNorm:
    """Return the norm of the rows `(batch, views, rows, hidden)` of a batch."""
    occupied = cells.occupied.to(rows.dtype)  # (batch, views, rows)
    count = occupied.sum(dim=(0, 2)).unsqueeze(-1)  # (views, 1)
    # A copy: compiled graphs do not support the same tensor as two arguments.
    total = torch.full_like(count, len(rows) * cells.cells) if norm.count_empty else count.clone()
    return BatchNorm(occupied, norm.weight.to(rows.dtype), norm.bias.to(rows.dtype), count, total, norm.eps)
