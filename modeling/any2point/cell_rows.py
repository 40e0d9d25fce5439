"""The mean of the tokens of every cell and what attention adds to it, written into one piece of memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.any2point.cell_sums import as_table, from_table, pool_mean, sum_in_cells, sum_over_views
from hf_any3d.modeling.any2point.geometry import Membership


def widened_mean(
    tokens: torch.Tensor, gathered: torch.Tensor, weight: torch.Tensor, members: Membership
) -> torch.Tensor:
    """Mean of the tokens of each cell plus a linear map of what was gathered there, `(batch, views, rows, hidden)`.

    Args:
        tokens: `(batch, tokens, hidden)`.
        gathered: `(batch, views, rows, width)`, means over the cells.
        weight: `(views, width + 1, hidden)`, transposed, with the bias as the last row.
        members: Cells of the tokens.
    """
    gathered = nn.functional.pad(gathered, (0, 1), value=1.0)
    if torch.compiler.is_compiling():
        return pool_mean(tokens, members) + gathered @ weight
    return _WidenedMean.apply(tokens, gathered.to(tokens.dtype), weight.to(tokens.dtype), members)


class _WidenedMean(torch.autograd.Function):
    """The same for the views one after the other; neither of the summands has rows of its own."""

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
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        narrow, weight = ctx.saved_tensors
        links = ctx.members.links
        table = as_table(gradient)
        of_tokens = sum_over_views(table, links, links.shares)
        of_rows = table.view(*narrow.shape[:2], -1)
        # As a product of the transposed: with the few columns of `gathered` on the right it takes twice as long.
        of_narrow = (weight @ of_rows.transpose(1, 2)).transpose(1, 2)  # (views, batch * rows, width + 1)
        of_weight = narrow.transpose(1, 2) @ of_rows
        of_gathered = of_narrow.unflatten(1, (len(gradient), -1)).transpose(0, 1)
        return of_tokens.view(len(gradient), -1, table.shape[1]), of_gathered, of_weight, None
