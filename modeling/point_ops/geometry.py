"""Where the tokens of a forward pass are: their places in views, and the cells and voxels that they share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hf_any3d.modeling.kernels.cells import Membership, membership
from hf_any3d.modeling.point_ops.cells import line_cell_count, line_cells, plane_cell_count, plane_cells, voxel_cells


def normalize_centers(centers: torch.Tensor) -> torch.Tensor:
    """Move and scale the centres `(batch, tokens, 3)` of every cloud into the unit sphere, mean at the origin."""
    centers = centers - centers.mean(dim=1, keepdim=True)
    radius = centers.norm(dim=-1).amax(dim=1)[:, None, None]
    return centers / radius.clamp_min(torch.finfo(centers.dtype).tiny)


@dataclass
class Geometry:
    """Places of the tokens in one forward pass, and their cells and voxels, computed once for all guided adapters.

    Args:
        centers: `(batch, tokens, 3)`.
        view_positions: `(batch, views, tokens, 1 or 2)` of `Projection`.
        extent: Length of the line, or (width, height) of the image.
        cell_size: Default edge of a cell, in the units of `view_positions`.
        special_tokens: Number of tokens before the point tokens (the class token), which guidance does not change.
        batch_second: Whether hidden states have the shape `(tokens, batch, hidden)`.
    """

    centers: torch.Tensor
    view_positions: torch.Tensor
    extent: tuple[float, ...]
    cell_size: float
    special_tokens: int = 1
    batch_second: bool = False
    _derived: dict = field(default_factory=dict, repr=False)

    def view_cells(self, cell_size: float | None = None) -> Membership:
        """Return which tokens share a cell of edge `cell_size` in each view; a plane's cells are numbered by row."""
        size = cell_size or self.cell_size
        key = ("view", size)
        if key not in self._derived:
            if len(self.extent) == 2:
                cell = plane_cells(self.view_positions, size, *self.extent)
                self._derived[key] = membership(cell, plane_cell_count(size, *self.extent))
            else:
                cell = line_cells(self.view_positions.squeeze(-1), size, *self.extent)
                self._derived[key] = membership(cell, line_cell_count(size, *self.extent))
        return self._derived[key]

    def voxels(self, edge: float) -> Membership:
        """Return which tokens share a voxel of `edge`, on a grid from each cloud's smallest corner; one "view"."""
        key = ("voxel", edge)
        if key not in self._derived:
            first = voxel_cells(self.centers, edge).unsqueeze(1)  # (batch, 1, tokens)
            self._derived[key] = membership(first, first.shape[-1])
        return self._derived[key]
