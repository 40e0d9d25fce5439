"""Mean of the tokens of each cell plus a linear map of the attention's output there."""

from __future__ import annotations

from typing import Any

import torch

from hf_any3d.modeling.kernels.cells import (
    Membership,
    as_table,
    from_table,
    mean_in_cells,
    sum_in_cells,
    sum_over_views,
)
from hf_any3d.modeling.kernels.dispatch import without_autocast


def widened_mean_plain(
    tokens: torch.Tensor, gathered: torch.Tensor, weight: torch.Tensor, members: Membership
) -> torch.Tensor:
    """Average the tokens of each cell and add a linear map of narrow rows.

    Args:
        tokens: `(batch, tokens, hidden)`.
        gathered: `(batch, views, rows, width + 1)`, means over the cells, with a last column of ones.
        weight: `(views, width + 1, hidden)`, transposed, with the bias as the last row.
        members: Cells of the tokens.

    Returns:
        `(batch, views, rows, hidden)`.
    """
    return mean_in_cells(tokens, members) + gathered @ weight


def widened_mean_fused(
    tokens: torch.Tensor, gathered: torch.Tensor, weight: torch.Tensor, members: Membership
) -> torch.Tensor:
    """Compute `widened_mean_plain` view by view, without rows for either of the summands."""
    return _WidenedMean.apply(tokens, gathered.to(tokens.dtype), weight.to(tokens.dtype), members)


class _WidenedMean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: torch.Tensor, gathered: torch.Tensor, weight: torch.Tensor, members: Membership
    ) -> torch.Tensor:
        narrow = gathered.transpose(0, 1).flatten(1, 2)  # (views, batch * rows, width + 1)
        table = sum_in_cells(tokens, members.links, members.links.shares)
        table.view(*narrow.shape[:2], -1).baddbmm_(narrow, weight)
        ctx.save_for_backward(narrow, weight)
        ctx.members = members
        return from_table(table, members)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        narrow, weight = ctx.saved_tensors
        links = ctx.members.links
        table = as_table(gradient)
        grad_tokens = sum_over_views(table, links, links.shares)
        rows = table.view(*narrow.shape[:2], -1)
        # Transposed: with the few columns of `gathered` on the right, the product takes twice as long.
        grad_narrow = (weight @ rows.transpose(1, 2)).transpose(1, 2)  # (views, batch * rows, width + 1)
        grad_weight = narrow.transpose(1, 2) @ rows
        grad_gathered = grad_narrow.unflatten(1, (len(gradient), -1)).transpose(0, 1)
        return grad_tokens.view(len(gradient), -1, table.shape[1]), grad_gathered, grad_weight, None
