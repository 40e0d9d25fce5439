"""Neighbouring patches of a cloud, for guided adapters around ACT's blocks."""

from __future__ import annotations

import torch

from hf_any3d.modeling.any2point.geometry import Geometry, Membership, membership
from hf_any3d.modeling.any2point.virtual_projection import normalize_centers
from hf_any3d.modeling.point_ops import voxel_cells

GRIDS = 4


class TokenGrids(Geometry):
    """Cells of four grids in space, each shifted from the previous one by a quarter of a cell along every axis.

    Any2Point cuts lines and planes into cells because its text and image encoders have their positions there; on a
    line, tokens that are far apart in space share a cell. ACT's tokens have positions in space, so cells are cubes. A
    single grid separates some neighbours. Of the four, at most one has a wall within an eighth of an edge of a token
    along any one axis, so at most three along all axes, and in the remaining one everything within that distance
    shares the token's cell. The grids are the adapter's views: each token weights them by how well its cell agrees
    with its voxel.

    Args:
        centers: `(batch, tokens, 3)`, positions of the tokens in any unit.
        cell_size: Default edge of a cell, in radii of the cloud.
        special_tokens: Number of tokens before those of patches.
    """

    def __init__(self, centers: torch.Tensor, cell_size: float, special_tokens: int):
        centers = normalize_centers(centers.detach().float())
        views = centers.unsqueeze(1).expand(-1, GRIDS, -1, -1)  # (batch, grids, tokens, 3)
        super().__init__(centers, views, (), cell_size, special_tokens)

    def view_cells(self, cell_size: float | None = None) -> Membership:
        """Return the tokens' cells of edge `cell_size`, in radii of the cloud, in each grid."""
        edge = cell_size or self.cell_size
        key = ("view", edge)
        if key not in self._derived:
            grids = [voxel_cells(self.centers, edge, shift=number / GRIDS) for number in range(GRIDS)]
            cell = torch.stack(grids, dim=1)  # (batch, grids, tokens)
            self._derived[key] = membership(cell, cell.shape[-1])
        return self._derived[key]
