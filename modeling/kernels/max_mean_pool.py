"""Maximum plus mean of the tokens of each voxel."""

from __future__ import annotations

from typing import Any

import torch

from hf_any3d.modeling.kernels.cells import (
    Links,
    Membership,
    from_table,
    mean_in_cells,
    sum_in_cells,
    sum_over_views,
)
from hf_any3d.modeling.kernels.dispatch import without_autocast
from hf_any3d.modeling.kernels.pooling import segment_maximum


def max_mean_pool_plain(tokens: torch.Tensor, voxels: Membership) -> torch.Tensor:
    """Add maximum and mean of the tokens of each voxel.

    Args:
        tokens: `(batch, tokens, hidden)`.
        voxels: Voxels of the tokens, a single view.

    Returns:
        `(batch, 1, voxels, hidden)`, zeros for empty voxels.
    """
    batch, count, hidden_size = tokens.shape
    voxel_count = voxels.pool.shape[2]
    flat = voxels.row.squeeze(1) + torch.arange(batch, device=tokens.device).unsqueeze(1) * voxel_count
    maximum = segment_maximum(tokens.reshape(-1, hidden_size), flat.flatten(), batch * voxel_count)
    return maximum.view(batch, 1, voxel_count, hidden_size) + mean_in_cells(tokens, voxels)


def max_mean_pool_fused(tokens: torch.Tensor, voxels: Membership) -> torch.Tensor:
    """Compute `max_mean_pool_plain`; only voxels with several tokens are searched for a maximum.

    Tokens sampled far apart are nearly all alone in their voxels; there, maximum and mean are the token.
    """
    table = _MeanPlusAlone.apply(tokens, voxels.links)
    shared = voxels.shared_cells
    if len(shared.tokens):
        rows = tokens.flatten(0, 1).index_select(0, shared.tokens)
        maximum = torch.segment_reduce(rows, "max", lengths=shared.counts, axis=0, unsafe=True)
        table = table.index_add(0, shared.rows, maximum)
    return from_table(table, voxels)


class _MeanPlusAlone(torch.autograd.Function):
    """Mean of each voxel, plus the token if it is alone: `(voxels, hidden)`, all clouds concatenated."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, links: Links) -> torch.Tensor:
        ctx.links, ctx.shape = links, tokens.shape
        return sum_in_cells(tokens, links, links.shares + (links.shares == 1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        links = ctx.links
        return sum_over_views(gradient, links, links.shares + (links.shares == 1)).view(ctx.shape), None
