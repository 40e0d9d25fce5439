"""What every voxel says: the maximum plus the mean over its tokens."""

from __future__ import annotations

from typing import Any

import torch

from hf_any3d.modeling.any2point.cell_sums import from_table, pool_mean, sum_in_cells, sum_over_views
from hf_any3d.modeling.any2point.geometry import Membership
from hf_any3d.modeling.point_ops import scatter_max


def pool_voxels(tokens: torch.Tensor, voxels: Membership) -> torch.Tensor:
    """Maximum plus mean of the tokens `(batch, tokens, hidden)` of each voxel, `(batch, 1, voxels, hidden)`.

    Centres that were sampled far apart are nearly all alone in their voxels, where maximum and mean are the token.
    """
    # Other devices would have to wait for the number of the others, and compilers know no sizes that depend on data.
    if torch.compiler.is_compiling() or tokens.device.type != "cpu":
        maximum = scatter_max(tokens, voxels.row.squeeze(1), voxels.pool.shape[2])
        return maximum.unsqueeze(1) + pool_mean(tokens, voxels)
    table = _SumWhereAlone.apply(tokens, voxels)
    crowd = voxels.crowd
    if len(crowd.tokens):
        several = tokens.flatten(0, 1).index_select(0, crowd.tokens)
        maximum = scatter_max(several.unsqueeze(0), crowd.cell.unsqueeze(0), len(crowd.rows))
        table = table.index_add(0, crowd.rows, maximum.squeeze(0))
    return from_table(table, voxels)


class _SumWhereAlone(torch.autograd.Function):
    """Mean of each voxel, and the token once more where it is alone: `(voxels, hidden)`, all clouds end to end."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, voxels: Membership) -> torch.Tensor:
        links = voxels.links
        ctx.links, ctx.shape = links, tokens.shape
        return sum_in_cells(tokens, links, links.shares + (links.shares == 1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        links = ctx.links
        return sum_over_views(gradient, links, links.shares + (links.shares == 1)).view(ctx.shape), None
