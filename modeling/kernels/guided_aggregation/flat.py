"""Guided aggregation of the tokens of all clouds in one list, without matrices of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.cells import FlatCells, max_in_flat_cells, mean_in_flat_cells
from hf_any3d.modeling.kernels.guided_aggregation.dense import project
from hf_any3d.modeling.kernels.guided_aggregation.ensemble import view_weights
from hf_any3d.modeling.kernels.guided_aggregation.modules import CellAttention, CellNorm, Guidance
from hf_any3d.modeling.kernels.guided_aggregation.pairs import pair_attention


def aggregated(
    tokens: Tensor,
    attention: CellAttention,
    view_norm: CellNorm,
    voxel_norm: CellNorm,
    cells: FlatCells,
    voxels: FlatCells,
    guidance: Guidance,
) -> Tensor:
    """Return what is added to the tokens `(tokens, hidden)` of all clouds."""
    # One list for all views, not a copy for each
    every = tokens.expand(len(cells.row), -1, -1)  # (views, tokens, hidden)
    gathered = _attend(tokens, attention, cells)  # (views, tokens, width)
    out_weight = attention.out_weight.transpose(1, 2)
    out_bias = attention.out_bias.unsqueeze(1)
    if guidance.pooling == "max_mean":
        view_rows = _max_mean(every + gathered @ out_weight + out_bias, cells)
    else:  # mean and linear layer commute, as in `dense.pool_views`
        view_rows = mean_in_flat_cells(every, cells)
        view_rows = view_rows + mean_in_flat_cells(gathered, cells) @ out_weight + out_bias
    voxel_rows = _max_mean(tokens[None], voxels)
    view_rows = view_norm(view_rows[None], cells)[0]  # (views, rows, hidden)
    voxel_rows = voxel_norm(voxel_rows[None], voxels)[0, 0]  # (voxels, hidden)

    in_views = view_rows.flatten(0, 1)[cells.in_one_list]  # (views, tokens, hidden)
    in_voxels = voxel_rows[voxels.row[0]]  # (tokens, hidden)
    cosine = nn.functional.cosine_similarity(in_views, in_voxels[None], dim=-1)  # (views, tokens)
    weights = view_weights(cosine, guidance.scale)
    return (weights.unsqueeze(-1) * in_views).sum(dim=0)


def _attend(tokens: Tensor, attention: CellAttention, cells: FlatCells) -> Tensor:
    """Attend to the tokens of the same cell: `(tokens, hidden)` to `(views, tokens, width)`."""
    qkv = project(tokens, attention)  # (tokens, views, 3 * width)
    settings = attention.heads, attention.scale, attention.drop_rate
    # One view at a time: the rows of all pairs are gathered.
    views = zip(qkv.unbind(dim=1), cells.pairs, strict=True)
    return torch.stack([pair_attention(own, pairs, *settings) for own, pairs in views])


def _max_mean(values: Tensor, cells: FlatCells) -> Tensor:
    """Return maximum plus mean over the tokens of each cell: `(views, tokens, hidden)` to `(views, rows, hidden)`."""
    return max_in_flat_cells(values, cells) + mean_in_flat_cells(values, cells)
