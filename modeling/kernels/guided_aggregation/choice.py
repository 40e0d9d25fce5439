"""The one function that chooses how a guided aggregation is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_any3d.modeling.kernels.cells import FlatCells
from hf_any3d.modeling.kernels.dispatch import runs_reference
from hf_any3d.modeling.kernels.guided_aggregation import dense, flat, table_form
from hf_any3d.modeling.kernels.guided_aggregation.modules import CellAttention, CellNorm, Guidance


def guided_aggregation(
    definition: Callable[..., Tensor],
    hidden_states: Tensor,
    attention: CellAttention,
    view_norm: CellNorm,
    voxel_norm: CellNorm,
    geometry: Any,
    guidance: Guidance,
) -> Tensor:
    """Add to every token the features of its cells, in the fastest form that is right for these modules.

    Args:
        definition: What is computed; it runs after `set_kernels("reference")`, and where a hook or a subclass of the
            attention must be called.
        hidden_states: In the axes of the layer: `(batch, sequence, hidden)`, of which tokens before the point tokens
            do not change; `(sequence, batch, hidden)` if the geometry has the batch second; or `(tokens, hidden)` for
            tokens of all clouds in one list.
        attention: Attention within cells.
        view_norm: Norm of the cells' rows.
        voxel_norm: Norm of the voxels' rows.
        geometry: A `Geometry` or `FlatGeometry`, places of the point tokens.
        guidance: Sizes, pooling and scale.

    Returns:
        Hidden states of the same shape and dtype.
    """
    modules = attention, view_norm, voxel_norm
    is_fused = attention.can_be_fused() and not runs_reference()
    if is_fused and table_form.is_chosen(hidden_states, *modules, geometry, guidance):
        return table_form.aggregate(hidden_states, *modules, geometry, guidance)
    cells = geometry.view_cells(guidance.cell_size)
    voxels = geometry.voxels(guidance.voxel_size)
    dtype = view_norm.weight.dtype
    if isinstance(cells, FlatCells):
        tokens = hidden_states.to(dtype)
        if is_fused:
            added = flat.aggregated(tokens, *modules, cells, voxels, guidance)
            return (hidden_states + added).to(hidden_states.dtype)
        # One cloud of all tokens, since no cell has tokens of two clouds
        return definition(tokens[None], cells, voxels, *modules, guidance)[0].to(hidden_states.dtype)
    # Adapters have the batch first, whatever the order of the encoder's axes is.
    states = hidden_states.transpose(0, 1) if geometry.batch_second else hidden_states
    special = geometry.special_tokens
    tokens = states[:, special:].to(dtype).contiguous()
    if is_fused:
        states = states + dense.aggregated(tokens, *modules, cells, voxels, guidance, special)
    else:
        changed = definition(tokens, cells, voxels, *modules, guidance)
        states = torch.cat([states[:, :special].to(dtype), changed], dim=1)
    states = states.to(hidden_states.dtype)
    return states.transpose(0, 1) if geometry.batch_second else states
