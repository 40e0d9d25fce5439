"""Points sampled and pooled on a grid, and submanifold convolution of occupied cells in plain PyTorch.

A batch is flat: the points of all clouds in one tensor, with the number of each one's cloud.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_any3d.modeling import kernels
from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.kernels.submanifold_convolution import NeighborTable

_LARGEST_KEY = 2**62


@dataclass
class GridSample:
    """Points of which each grid cell keeps one: `kept (voxels,)`, by cloud, then by cell.

    `inverse (points,)` is the voxel of each point, `grid_coord (voxels, 3)` int64 the cell of each voxel, from 0 in
    each cloud.
    """

    kept: Tensor
    inverse: Tensor
    grid_coord: Tensor


def grid_sample(coord: Tensor, grid_size: float, cloud: Tensor | None = None, num_clouds: int = 1) -> GridSample:
    """Keep the point of each grid cell that is nearest to the cell's center, whatever the order of the points.

    Points are `(points, 3)`, of the cloud `(points,)`, or of one; `grid_size` is the edge of a cell in their units.

    Raises:
        ValueError: A cloud spans more cells than numbers can name.

    Example:
        >>> points = torch.tensor([[0.1, 0, 0], [0.5, 0.5, 0.5], [1.2, 0, 0]])
        >>> sampled = grid_sample(points, grid_size=1.0)
        >>> sampled.kept, sampled.inverse
        (tensor([1, 2]), tensor([0, 0, 1]))
    """
    check_numbers(0, above=True, grid_size=grid_size)
    if cloud is None:
        cloud = torch.zeros(len(coord), dtype=torch.long, device=coord.device)
    scaled = coord.double() / grid_size  # in float64, so that points between two cells fall the same way everywhere
    cells = scaled.floor()
    distance = (scaled - cells - 0.5).square_().sum(dim=1)
    lowest = cells.new_full((num_clouds, 3), math.inf).scatter_reduce(0, cloud[:, None].expand(-1, 3), cells, "amin")
    cells = cells - lowest[cloud]
    if len(cells) and not float(cells.amax()) < 2**20:
        raise ValueError(
            f"grid_size={grid_size}: a cloud spans {float(cells.amax()):.3g} cells; expected fewer than {2**20:,}; "
            "use a larger grid_size, or scale the cloud down"
        )
    grid_coord = cells.long()
    # Two stable sorts: by distance to the center, then by cell. The first point of each run of a cell is its nearest.
    nearest_first = distance.argsort(stable=True)
    key, by_key = _cell_keys(grid_coord, cloud, num_clouds)[nearest_first].sort(stable=True)
    order = nearest_first[by_key]
    # The first row of all begins a run, if there is a row.
    is_first = torch.cat([key.new_ones(min(len(key), 1), dtype=torch.bool), key[1:] != key[:-1]])
    inverse = torch.empty_like(order).scatter_(0, order, is_first.cumsum(0) - 1)
    kept = order[is_first]
    return GridSample(kept, inverse, grid_coord[kept])


@dataclass
class GridPool:
    """Cells of a coarser grid, sorted by cloud, x, y, z, and the cell of each voxel, `inverse (voxels,)`."""

    grid_coord: Tensor
    cloud: Tensor
    inverse: Tensor


def grid_pool(grid_coord: Tensor, cloud: Tensor, num_clouds: int, stride: int) -> GridPool:
    """Group voxels `(voxels, 3)`, int64 from 0, of each cloud by cells that are `stride` times as large.

    Example:
        >>> cells = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 0, 0]])
        >>> grid_pool(cells, torch.zeros(3, dtype=torch.long), num_clouds=1, stride=2).inverse
        tensor([0, 0, 1])
    """
    check_numbers(1, stride=stride)
    cells = grid_coord.div(stride, rounding_mode="floor")
    extent = [int(size) + 1 for size in cells.amax(dim=0)]
    unique, inverse = _cell_keys(cells, cloud, num_clouds).unique(return_inverse=True)
    columns = []
    # Undo the numbering of `_cell_keys`, whose last axis varies fastest; what remains is the cloud.
    for size in reversed(extent):
        columns.append(unique % size)
        unique = unique.div(size, rounding_mode="floor")
    return GridPool(torch.stack(columns[::-1], dim=1), unique, inverse)


def _cell_keys(grid_coord: Tensor, cloud: Tensor, num_clouds: int, margin: int = 0) -> Tensor:
    """Return one number for each cell `(voxels, 3)` from 0 and its cloud, ascending by cloud, x, y and z.

    The `margin` are free cells before and after the occupied ones along each axis, so that a neighbor's number is that
    of no cell in another row.
    """
    sizes = [int(size) + 1 + 2 * margin for size in grid_coord.amax(dim=0)] if len(grid_coord) else [1, 1, 1]
    if num_clouds * math.prod(sizes) > _LARGEST_KEY:
        raise ValueError(f"grid_coord: {num_clouds} clouds of {sizes} cells; expected fewer than 2**62 cells in all")
    key = cloud
    for axis, size in enumerate(sizes):
        key = key * size + (grid_coord[:, axis] + margin)
    return key


def has_duplicates(grid_coord: Tensor, cloud: Tensor, num_clouds: int) -> bool:
    """Return whether a cell occurs twice in a cloud.

    Example:
        >>> cells = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0]])
        >>> has_duplicates(cells, torch.zeros(3, dtype=torch.long), num_clouds=1)
        True
    """
    key = _cell_keys(grid_coord, cloud, num_clouds).sort().values
    return bool((key[1:] == key[:-1]).any())


def neighbor_table(grid_coord: Tensor, cloud: Tensor, num_clouds: int, reach: int = 1) -> NeighborTable:
    """Find which cells around each voxel `(voxels, 3)`, int64 from 0, are occupied in its cloud; none occurs twice.

    Neighbors count up to `reach` cells along each axis: 1 for a kernel of 3³, 2 for one of 5³.

    Example:
        >>> cells = torch.tensor([[0, 0, 0], [1, 0, 0]])
        >>> table = neighbor_table(cells, torch.zeros(2, dtype=torch.long), num_clouds=1)
        >>> [(own.tolist(), other.tolist()) for own, other in table.pairs if len(own)]
        [([1], [0])]
    """
    check_numbers(0, reach=reach)
    keys = _cell_keys(grid_coord, cloud, num_clouds, margin=reach)
    keys, rows = keys.sort()
    size = 2 * reach + 1
    # Extents with the margin of free cells at both sides, as `_cell_keys` numbers them.
    y, z = (int(grid_coord[:, axis].amax()) + size for axis in (1, 2))
    if keys.device.type == "cpu":
        pairs = []
        # Half of the directions: a pair of neighbors is found once, and used both ways.
        for position in range(size**3 // 2):
            # The digits of a position in base `size` are the steps along x, y and z, each from -reach to reach.
            a, b, c = (position // size**power % size - reach for power in (2, 1, 0))
            wanted = keys + ((a * y + b) * z + c)
            # For keys beyond the last one, searchsorted returns an index that does not exist.
            found = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
            own = (keys[found] == wanted).nonzero()[:, 0]
            pairs.append((rows[own], rows[found[own]]))
        return NeighborTable(pairs)
    # In a few operations, none of which waits for the number of pairs.
    position = torch.arange(size**3, device=keys.device)
    x_step, y_step, z_step = (position.div(size**power, rounding_mode="floor") % size - reach for power in (2, 1, 0))
    wanted = keys + ((x_step * y + y_step) * z + z_step)[:, None]  # (positions, voxels)
    found = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    neighbors = torch.where(keys[found] == wanted, rows[found], -1).int()
    return NeighborTable(table=torch.empty_like(neighbors).scatter_(1, rows.expand(size**3, -1), neighbors))


def submanifold_convolution(values: Tensor, weight: Tensor, bias: Tensor | None, table: NeighborTable) -> Tensor:
    """Convolve occupied cells with a cubic kernel; see `kernels.submanifold_convolution`. Autocast applies.

    Example:
        >>> cells = torch.tensor([[0, 0, 0], [1, 0, 0]])
        >>> table = neighbor_table(cells, torch.zeros(2, dtype=torch.long), num_clouds=1)
        >>> submanifold_convolution(torch.tensor([[1.0], [2.0]]), torch.ones(1, 3, 3, 3, 1), None, table)[:, 0]
        tensor([3., 3.])
    """
    device = values.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        values = values.to(dtype)
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return kernels.submanifold_convolution(values, weight, bias, table)
