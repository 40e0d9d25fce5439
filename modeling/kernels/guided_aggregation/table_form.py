"""Guided aggregation in few operations, for devices on which their number decides, and for compilers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.kernels.guided_aggregation.modules import CellAttention, CellNorm, Guidance
from hf_any3d.modeling.kernels.guided_aggregation.table import GuidedTable, table_aggregation


class FoldedWeights(NamedTuple):
    """Weights of the attention within cells for all views at once.

    Args:
        weight: `(3 * views * width, hidden)`, projection to queries, keys and values of normalized tokens.
        bias: `(3 * views * width,)`.
        widen: `(views * width, hidden)`, the last product.
        widen_bias: `(views, hidden)`.
    """

    weight: Tensor
    bias: Tensor
    widen: Tensor
    widen_bias: Tensor


class LayerTable(NamedTuple):
    """Inputs of a layer's aggregation beside its hidden states and norms, the same for layers that share them.

    Args:
        attention: Attention within cells.
        table: Places of the tokens.
        folded: Weights of the attention for all views.
        batch_second: Whether hidden states have the shape `(sequence, batch, hidden)`.
    """

    attention: CellAttention
    table: GuidedTable
    folded: FoldedWeights
    batch_second: bool


def fold(attention: CellAttention) -> FoldedWeights:
    """Fold the gains and shifts of the layer norm into the projection, queries of all views first."""
    weight = attention.qkv_weight * attention.norm_weight.unsqueeze(1)  # (views, 3 * width, hidden)
    shift = torch.baddbmm(
        attention.qkv_bias.unsqueeze(-1), attention.qkv_weight, attention.norm_bias.unsqueeze(-1)
    ).squeeze(-1)
    return FoldedWeights(
        weight.unflatten(1, (3, -1)).transpose(0, 1).flatten(0, 2),
        shift.unflatten(1, (3, -1)).transpose(0, 1).flatten(),
        attention.out_weight.transpose(1, 2).flatten(0, 1),
        attention.out_bias,
    )


def is_right(
    attention: CellAttention, view_norm: CellNorm, voxel_norm: CellNorm, geometry: Any, guidance: Guidance
) -> bool:
    """Return whether one table of all cells and voxels computes an aggregation: it has one way of pooling and epsilon,
    and clouds of one size.
    """
    if guidance.pooling != "mean" or view_norm.eps != voxel_norm.eps or not hasattr(geometry, "table"):
        return False
    return all(module.can_be_fused() for module in (attention, view_norm, voxel_norm))


def is_chosen(hidden_states: Tensor, *arguments: Any) -> bool:
    """Return whether the table is right and, on this device, faster; the other arguments are those of `is_right`."""
    return table_aggregation.is_chosen_on(hidden_states.device) and is_right(*arguments)


def prepare(
    attention: CellAttention,
    view_norm: CellNorm,
    geometry: Any,
    guidance: Guidance,
    compiled_table: Callable[..., GuidedTable] | None = None,
    fold: Callable[[CellAttention], FoldedWeights] = fold,
) -> LayerTable:
    """Make what `aggregate_prepared` needs, once for all layers that share it.

    `compiled_table` and `fold` may be compiled code of `table_of_places` and `fold`.
    """
    # Geometry and weights are shared by the layers of a stage, so the first layer makes the table for all of them.
    sizes = guidance.cell_size, guidance.voxel_size
    with autocast_disabled(geometry.centers.device):
        table = geometry.table(*sizes, attention.heads, view_norm.count_empty, view_norm.weight.dtype, compiled_table)
        folded = geometry.of_weights(attention, partial(fold, attention))
    return LayerTable(attention, table, folded, geometry.batch_second)


def aggregate(
    hidden_states: Tensor,
    attention: CellAttention,
    view_norm: CellNorm,
    voxel_norm: CellNorm,
    geometry: Any,
    guidance: Guidance,
) -> Tensor:
    """Aggregate with a table of cells, and update the running statistics; see `choice.guided_aggregation`."""
    prepared = prepare(attention, view_norm, geometry, guidance)
    hidden_states, *of_batch = aggregate_prepared(hidden_states, view_norm, voxel_norm, prepared, guidance.scale)
    update_statistics(view_norm, voxel_norm, prepared, *of_batch)
    return hidden_states


def aggregate_prepared(
    hidden_states: Tensor, view_norm: CellNorm, voxel_norm: CellNorm, prepared: LayerTable, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Aggregate by a table that is there already.

    Hidden states have the axes of the layer. They are returned with the batch's mean and unbiased variance of each
    view and, as the last row, of the voxels: `(views + 1, hidden)` each, for `update_statistics`.
    """
    attention, table, folded, batch_second = prepared
    tokens = hidden_states.transpose(0, 1) if batch_second else hidden_states
    with autocast_disabled(tokens.device):
        sequence = tokens.to(view_norm.weight.dtype).contiguous()
        attended = _attend(sequence, attention, table, folded)
        norms = view_norm.weight, view_norm.bias, voxel_norm.weight, voxel_norm.bias
        out, mean, variance = table_aggregation(
            sequence, attended, folded.widen, folded.widen_bias, *norms, table, scale, view_norm.eps
        )
        unbiased = variance * table.unbiased
    out = out.to(hidden_states.dtype)
    return (out.transpose(0, 1) if batch_second else out), mean, unbiased


@torch.no_grad()
def update_statistics(
    view_norm: CellNorm, voxel_norm: CellNorm, prepared: LayerTable, mean: Tensor, variance: Tensor
) -> None:
    """Update the running statistics of both norms in one operation, once for a batch."""
    if not prepared.table.first_visit(view_norm):
        return
    # Views and voxels, means and variances, in one call: each is a kernel of its own otherwise.
    running = [view_norm.running_mean, voxel_norm.running_mean, view_norm.running_var, voxel_norm.running_var]
    of_batch = [mean[:-1], mean[-1:], variance[:-1], variance[-1:]]
    torch._foreach_lerp_(running, of_batch, view_norm.momentum)  # pyright: ignore[reportPrivateImportUsage]


def _attend(sequence: Tensor, attention: CellAttention, table: GuidedTable, folded: FoldedWeights) -> Tensor:
    """Attend within cells along the whole sequence: `(batch, sequence, hidden)` to `(…, views * width)`."""
    normed = nn.functional.layer_norm(sequence, sequence.shape[-1:])
    # Views are heads: (batch, views * heads, sequence, head width) each.
    heads = attention.heads * len(attention.qkv_weight)
    qkv = nn.functional.linear(normed, folded.weight, folded.bias).unflatten(-1, (3, heads, -1))
    # The gradient of separate views is one kernel of a compiler, that of `unbind` one for each.
    parts = [qkv[:, :, part] for part in range(3)] if torch.compiler.is_compiling() else qkv.unbind(2)
    query, key, value = (part.transpose(1, 2) for part in parts)
    attended = nn.functional.scaled_dot_product_attention(
        query, key, value, table.apart, attention.drop_rate, scale=attention.scale
    )
    return attended.transpose(1, 2).flatten(2)
