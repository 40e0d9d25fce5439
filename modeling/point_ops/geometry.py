"""Geometry of the tokens of a forward pass: their places in views, and the cells and voxels that they share."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.kernels.cells import FlatCells, Membership, membership
from hf_any3d.modeling.kernels.dispatch import is_exporting
from hf_any3d.modeling.kernels.guided_aggregation.table import GuidedTable, guided_table
from hf_any3d.modeling.kernels.pooling import segment_maximum, segment_mean
from hf_any3d.modeling.point_ops.grouping import flatten_index

# Three axes of 21 bits fill the 63 bits of a non-negative int64.
_AXIS_BITS = 21
# Shifted grids of `TokenGrids` and `FlatGeometry`.
GRIDS = 4


def line_cells(position: Tensor, cell_size: float, length: float) -> Tensor:
    """Return the numbers of the cells, from 0, that contain positions `(..., tokens)` on a line.

    Positions beyond the line are in the cell at that end. Source: Any2Point, Sec. 3.3.
    """
    last = line_cell_count(cell_size, length) - 1
    # Without the clamp, a position at the very end of the line would open a cell that `line_cell_count` does not
    # count.
    return (position / cell_size).floor().long().clamp(0, last)


def plane_cells(position: Tensor, cell_size: float, width: float, height: float) -> Tensor:
    """Return the numbers, column + row * columns, of the square cells that contain positions `(..., tokens, 2)`.

    Positions beyond the plane are in the cell at the nearest border. Source: Any2Point, Sec. 3.3.
    """
    column = line_cells(position[..., 0], cell_size, width)
    row = line_cells(position[..., 1], cell_size, height)
    return column + row * line_cell_count(cell_size, width)


def voxel_cells(xyz: Tensor, edge: float, shift: float = 0.0) -> Tensor:
    """Label points by voxel.

    The grid of every cloud starts at its lowest corner, or `shift` edges before it along each axis, with `shift` from
    0 to less than 1. A label is the index of the first point in the voxel, so that no shape depends on the data:
    `(batch, points)` of `xyz (batch, points, 3)`, which gives the edge's unit. A cloud spans at most 2^21 edges;
    points beyond share a voxel.

    Source: Any2Point, Sec. 3.3.

    Example:
        >>> xyz = torch.tensor([[[0.0, 0, 0], [0.9, 0, 0], [1.1, 0, 0]]])
        >>> voxel_cells(xyz, edge=1.0)
        tensor([[0, 0, 2]])
    """
    check_numbers(0, above=True, edge=edge)
    check_numbers(0, 1, shift=shift)
    # Pack the three steps of a point into one integer, so that points of a voxel are those with equal numbers.
    corner = xyz.amin(dim=1, keepdim=True)
    step = ((xyz - corner) / edge + shift).long().clamp(max=(1 << _AXIS_BITS) - 1)  # (batch, points, 3)
    voxel = (step[..., 0] << 2 * _AXIS_BITS) | (step[..., 1] << _AXIS_BITS) | step[..., 2]
    if is_exporting():
        # Exported formats have no running maximum; comparing all pairs needs none. Of equal maxima, argmax takes the
        # first, so that a label is the first point of its voxel here, too.
        return (voxel[:, :, None] == voxel[:, None]).to(torch.uint8).argmax(dim=-1)
    # A stable sort groups the points of a voxel, the first one first.
    voxel, order = voxel.sort(dim=1, stable=True)
    place = torch.arange(voxel.shape[1], device=voxel.device).expand_as(voxel)
    follows = torch.zeros_like(voxel, dtype=torch.bool)
    follows[:, 1:] = voxel[:, 1:] == voxel[:, :-1]
    # The front of each run of equal voxels, carried forward along the run; sorted back into the order of the points.
    front = place.masked_fill(follows, 0).cummax(dim=1).values
    return torch.empty_like(order).scatter_(1, order, order.gather(1, front))


def line_cell_count(cell_size: float, length: float) -> int:
    """Count the cells of a line, including a shorter one at the end."""
    check_numbers(0, above=True, cell_size=cell_size, length=length)
    return math.ceil(length / cell_size)


def scatter_mean(values: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Average tokens `(batch, tokens, channels)` by cell: `(batch, num_cells, channels)`, 0 in empty cells.

    Example:
        >>> values = torch.tensor([[[1.0], [3.0], [5.0]]])
        >>> scatter_mean(values, torch.tensor([[0, 0, 2]]), num_cells=3)[..., 0]
        tensor([[2., 0., 5.]])
    """
    rows, flat = _flatten(values, cell, num_cells)
    mean = segment_mean(rows, flat, values.shape[0] * num_cells)
    return mean.view(values.shape[0], num_cells, values.shape[2])


def scatter_max(values: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Compute the maximum over the tokens of every cell, as `scatter_mean`; equal maxima share the gradient.

    Example:
        >>> values = torch.tensor([[[1.0], [3.0], [5.0]]])
        >>> scatter_max(values, torch.tensor([[0, 0, 1]]), num_cells=2)[..., 0]
        tensor([[3., 5.]])
    """
    rows, flat = _flatten(values, cell, num_cells)
    largest = segment_maximum(rows, flat, values.shape[0] * num_cells)
    return largest.view(values.shape[0], num_cells, values.shape[2])


def _flatten(values: Tensor, cell: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    return values.flatten(0, 1), flatten_index("cell", cell, num_cells)


def normalize_centers(centers: torch.Tensor) -> torch.Tensor:
    """Move and scale the centers `(batch, tokens, 3)` of every cloud into the unit sphere, mean at the origin.

    Example:
        >>> normalize_centers(torch.tensor([[[1.0, 0, 0], [5.0, 0, 0]]]))
        tensor([[[-1.,  0.,  0.],
                 [ 1.,  0.,  0.]]])
    """
    centers = centers - centers.mean(dim=1, keepdim=True)
    # A cloud whose centers coincide has radius 0; clamped, its centers stay at the origin.
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
        given_centers: Centers in the units of the input, if `centers` are in others.
        embed_patches: Returns tokens and positions of other patches of the clouds, by their number and size; None
            where the model cannot.
        layers_run_again: Whether gradient checkpointing runs layers again, so that nothing with a gradient may be
            kept from one layer to the next.
    """

    centers: torch.Tensor
    view_positions: torch.Tensor
    extent: tuple[float, ...]
    cell_size: float
    special_tokens: int = 1
    batch_second: bool = False
    given_centers: torch.Tensor | None = None
    embed_patches: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]] | None = None
    layers_run_again: bool = False
    _derived: dict = field(default_factory=dict, repr=False)

    def view_cells(self, cell_size: float | None = None) -> Membership:
        """Return which tokens share a cell of edge `cell_size` in each view; a plane's cells are numbered by row."""
        size = cell_size or self.cell_size
        # The adapters of all layers ask for the same few sizes.
        key = ("view", size)
        if key not in self._derived:
            if len(self.extent) == 2:
                cell = plane_cells(self.view_positions, size, *self.extent)
            else:
                cell = line_cells(self.view_positions.squeeze(-1), size, *self.extent)
            count = 1  # not by math.prod, which torch.compile cannot trace
            for side in self.extent:
                count *= line_cell_count(size, side)
            self._derived[key] = membership(cell, count)
        return self._derived[key]

    def voxels(self, edge: float) -> Membership:
        """Return which tokens share a voxel of `edge`, on a grid from each cloud's smallest corner; one "view"."""
        key = ("voxel", edge)
        if key not in self._derived:
            first = voxel_cells(self.centers, edge).unsqueeze(1)  # (batch, 1, tokens)
            self._derived[key] = membership(first, first.shape[-1])
        return self._derived[key]

    def table(
        self,
        cell_size: float | None,
        voxel_size: float,
        heads: int,
        count_empty: bool,
        dtype: torch.dtype,
        compiled: Callable[..., GuidedTable] | None = None,
    ) -> GuidedTable:
        """Return cells and voxels of all views as one table; see `guided_table`. `compiled` may be a compiled
        `table_of_places`.
        """
        key = ("table", cell_size or self.cell_size, voxel_size, heads, count_empty, dtype)
        if key not in self._derived:
            settings = voxel_size, heads, count_empty, dtype
            if compiled is None:
                self._derived[key] = table_of(self, cell_size, *settings)
            else:
                places = self.centers, self.view_positions, self.extent, self.special_tokens
                for tensor in places[:2]:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
                self._derived[key] = compiled(type(self), *places, cell_size or self.cell_size, *settings)
        return self._derived[key]

    def of_weights(self, owner: Hashable, compute: Callable[[], Any]) -> Any:
        """Return what `compute` makes of the weights of a module, once for the layers that share it."""
        if self.layers_run_again:
            return compute()
        if owner not in self._derived:
            self._derived[owner] = compute()
        return self._derived[owner]

    def once(self, key: Hashable, compute: Callable[[torch.Tensor], Any]) -> Any:
        """Return what `compute` makes of the centers in the units of the input, which is kept under a key."""
        if key not in self._derived:
            self._derived[key] = compute(self.centers if self.given_centers is None else self.given_centers)
        return self._derived[key]


def table_of(
    geometry: Geometry, cell_size: float | None, voxel_size: float, heads: int, count_empty: bool, dtype: torch.dtype
) -> GuidedTable:
    """Make the table of cells and voxels of all views; see `guided_table`."""
    cells = geometry.view_cells(cell_size)
    voxels = geometry.voxels(voxel_size)
    return guided_table(cells, voxels, geometry.special_tokens, heads, count_empty, dtype)


def table_of_places(
    kind: type[Geometry],
    centers: Tensor,
    view_positions: Tensor,
    extent: tuple[float, ...],
    special_tokens: int,
    cell_size: float,
    *settings: Any,
) -> GuidedTable:
    """Make a table of the places of a `Geometry`, as a function of tensors and numbers that compilers take."""
    return table_of(kind(centers, view_positions, extent, cell_size, special_tokens), cell_size, *settings)


class FlatGeometry:
    """Places of the tokens of all clouds of a batch in one list, and their cells, for guided adapters.

    Cells are those of four grids in space, each shifted from the previous one by a quarter of a cell along every axis.
    Tokens are voxels, and cells are voxels of a larger grid, by default of `cell_size` voxels along an edge.
    `grid_coord` is `(tokens, 3)` int64, from 0 in each cloud, `coord (tokens, 3)` in any unit, and `cloud (tokens,)`
    numbers the cloud of each.
    """

    def __init__(self, grid_coord: Tensor, coord: Tensor, cloud: Tensor, num_clouds: int, cell_size: float = GRIDS):
        self.grid_coord = grid_coord
        self.coord = coord.detach().float()
        self.cloud = cloud
        self.num_clouds = num_clouds
        self.cell_size = cell_size
        self._derived: dict[tuple[str, float], FlatCells] = {}

    def view_cells(self, cell_size: float | None = None) -> FlatCells:
        """Return which tokens share a cell of edge `cell_size`, in voxels, in each grid."""
        edge = max(cell_size or self.cell_size, 1)  # in smaller cells, each voxel is alone, too
        if ("view", edge) not in self._derived:
            shifts = torch.arange(GRIDS, device=self.cloud.device).view(-1, 1, 1) / GRIDS
            # In float64, so that coordinates on a wall fall the same way everywhere.
            cells = (self.grid_coord.double() / edge + shifts).floor().long()  # (grids, tokens, 3)
            self._derived["view", edge] = self._number(cells)
        return self._derived["view", edge]

    def voxels(self, edge: float) -> FlatCells:
        """Return which tokens share a cell of `edge`, in radii of the cloud, from its smallest corner; one "view"."""
        if ("voxel", edge) not in self._derived:
            # A flat batch has no axis of clouds to reduce over, so centers, radii and corners come from scattered
            # reductions.
            coord = self.coord
            index = self.cloud[:, None].expand(-1, 3)
            center = scatter_mean(coord[None], self.cloud[None], self.num_clouds)[0]
            distance = (coord - center[self.cloud]).norm(dim=1)
            radius = distance.new_zeros(self.num_clouds).scatter_reduce(0, self.cloud, distance, "amax")
            corner = coord.new_full((self.num_clouds, 3), math.inf).scatter_reduce(0, index, coord, "amin")
            # A cloud of a single voxel has radius 0, and all of its tokens are in cell 0.
            step = (radius * edge).clamp_min(torch.finfo(coord.dtype).tiny)[self.cloud, None]
            cells = ((coord - corner[self.cloud]) / step).long().clamp(max=(1 << _AXIS_BITS) - 1)
            self._derived["voxel", edge] = self._number(cells[None])
        return self._derived["voxel", edge]

    def _number(self, cells: Tensor) -> FlatCells:
        """Assign numbers to the cells `(views, tokens, 3)` of all clouds: from 0, without gaps, in each view."""
        numbers = []
        for own in cells:
            # Cloud, x, y and z are the digits of one number whose radices are the extents of the axes. Most such
            # numbers belong to no token: `unique` closes the gaps.
            key = self.cloud
            for axis in range(3):
                key = key * (int(own[:, axis].amax()) + 1) + own[:, axis]
            numbers.append(key.unique(return_inverse=True)[1])
        return FlatCells(torch.stack(numbers))
