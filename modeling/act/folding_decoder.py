"""FoldingNet decoder: from a patch's token to coarse points, then to a small grid folded around each of them."""

from __future__ import annotations

import torch
from torch import nn

from hf_any3d.modeling import kernels
from hf_any3d.modeling.layers.forward_contract import is_unmodified

# Corners of the grid around every coarse point, in the units of the input.
_CORNERS = ((-0.05, -0.05), (0.05, -0.05), (-0.05, 0.05), (0.05, 0.05))
POINTS_PER_COARSE_POINT = len(_CORNERS)


class FoldingDecoder(nn.Module):
    """Predict coarse points with an MLP, and fine points by folding a grid of four corners around each of them.

    Args:
        width: Channels of a token.
        group_size: Fine points per patch, a multiple of 4.
        coarse_width: Hidden channels of the MLP.
        folding_width: Hidden channels of the folding layers.

    Source: FoldingNet (arXiv 1712.07262) as Point-BERT (arXiv 2111.14819) uses it.
    """

    def __init__(self, width: int, group_size: int, coarse_width: int = 1024, folding_width: int = 512):
        super().__init__()
        self.num_coarse = group_size // POINTS_PER_COARSE_POINT
        self.coarse = nn.Sequential(
            nn.Linear(width, coarse_width),
            nn.ReLU(inplace=True),
            nn.Linear(coarse_width, coarse_width),
            nn.ReLU(inplace=True),
            nn.Linear(coarse_width, 3 * self.num_coarse),
        )
        # Input: token, corner, coarse point, in this order.
        self.lift = nn.Linear(width + 2 + 3, folding_width)
        self.lift_norm = nn.BatchNorm1d(folding_width)
        self.widen = nn.Linear(folding_width, folding_width)
        self.widen_norm = nn.BatchNorm1d(folding_width)
        self.out = nn.Linear(folding_width, 3)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct the points of patches, relative to their centres.

        Args:
            tokens: `(batch, groups, width)`.

        Returns:
            Coarse points `(batch, groups, group_size / 4, 3)`, and fine points `(batch, groups, group_size, 3)`, four
            for each coarse point in turn.
        """
        batch, groups, width = tokens.shape
        coarse = self.coarse(tokens).view(batch * groups, self.num_coarse, 3)
        shape = (*coarse.shape[:2], POINTS_PER_COARSE_POINT, -1)
        corners = torch.tensor(_CORNERS, dtype=coarse.dtype, device=coarse.device)
        if is_unmodified(self.lift):
            # Linear: the token's term is computed once per patch, the coarse point's once per point.
            token_weight, corner_weight, coarse_weight = self.lift.weight.split((width, 2, 3), dim=1)
            linear = nn.functional.linear
            patch_rows = linear(tokens, token_weight, self.lift.bias).view(batch * groups, 1, -1)
            rows = (patch_rows + linear(coarse, coarse_weight)).flatten(0, 1)
            corner_rows = linear(corners.to(rows.dtype), corner_weight)
        else:
            inputs = [tokens.reshape(len(coarse), 1, 1, -1), corners, coarse.unsqueeze(2)]
            inputs = torch.cat([part.expand(*shape) for part in inputs], dim=-1)
            rows, corner_rows = self.lift(inputs.flatten(0, 2)), None  # (patches * coarse points * 4, folding_width)
        rows = kernels.normed_linear(rows, corner_rows, self.lift_norm, self.widen)
        folded = kernels.normed_linear(rows.flatten(0, 1), None, self.widen_norm, self.out)
        fine = folded.view(*shape) + coarse.unsqueeze(2)
        return coarse.view(batch, groups, -1, 3), fine.view(batch, groups, -1, 3)
