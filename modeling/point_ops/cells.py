"""Cells on a line, on a plane or in space."""

import math

import torch
from torch import Tensor

# Three axes of 21 bits fill the 63 bits of a non-negative int64.
_AXIS_BITS = 21


def line_cells(position: Tensor, cell_size: float, length: float) -> Tensor:
    """Return the numbers of the cells of a line that contain positions.

    Args:
        position: `(..., tokens)` in units of the line, 0 to `length`.
        cell_size: Length of a cell; the last one may be shorter.
        length: Length of the line.

    Returns:
        LongTensor of the shape of `position`, 0 to `line_cell_count(cell_size, length) - 1`. Positions beyond the
        line are in the cell at that end.

    Raises:
        ValueError: If a size is not positive.

    Source: Any2Point, Sec. 3.3.
    """
    last = line_cell_count(cell_size, length) - 1
    return (position / cell_size).floor().long().clamp(0, last)


def plane_cells(position: Tensor, cell_size: float, width: float, height: float) -> Tensor:
    """Return the numbers of the square cells of a plane that contain positions.

    Args:
        position: `(..., tokens, 2)`, x (0 to `width`) and y (0 to `height`).
        cell_size: Edge of a cell; the last ones may be shorter.
        width: Extent along x.
        height: Extent along y.

    Returns:
        LongTensor `(..., tokens)`, column + row * columns, 0 to `plane_cell_count(cell_size, width, height) - 1`.
        Positions beyond the plane are in the cell at the nearest border.

    Raises:
        ValueError: If `position` has no x and y or a size is not positive.

    Source: Any2Point, Sec. 3.3.
    """
    if position.shape[-1:] != (2,):
        raise ValueError(f"position: shape {tuple(position.shape)}; expected (..., tokens, 2)")
    column = line_cells(position[..., 0], cell_size, width)
    row = line_cells(position[..., 1], cell_size, height)
    return column + row * line_cell_count(cell_size, width)


def voxel_cells(xyz: Tensor, edge: float, shift: float = 0.0) -> Tensor:
    """Label points by voxel.

    The grid of every cloud starts at its lowest corner, or `shift` edges before it along each axis. A label is the
    index of the first point in the voxel, so that there are at most as many labels as points, and no shape depends on
    the data.

    Args:
        xyz: `(batch, points, 3)`.
        edge: Edge of a voxel in the unit of `xyz`. A cloud spans at most 2^21 edges; points beyond share a voxel.
        shift: Shift of the grid in edges, from 0 to less than 1.

    Returns:
        LongTensor `(batch, points)`, 0 to points - 1. Points with equal labels share a voxel.

    Raises:
        ValueError: If `xyz` has another shape, `edge` is not positive or `shift` is out of range.

    Source: Any2Point, Sec. 3.3.
    """
    if xyz.dim() != 3 or xyz.shape[2] != 3:
        raise ValueError(f"xyz: shape {tuple(xyz.shape)}; expected (batch, points, 3)")
    _check_positive("edge", edge)
    if not 0 <= shift < 1:
        raise ValueError(f"shift: {shift}; expected at least 0 and less than 1")
    corner = xyz.amin(dim=1, keepdim=True)
    step = ((xyz - corner) / edge + shift).long().clamp(max=(1 << _AXIS_BITS) - 1)  # (batch, points, 3)
    voxel = (step[..., 0] << 2 * _AXIS_BITS) | (step[..., 1] << _AXIS_BITS) | step[..., 2]
    if torch.compiler.is_exporting():
        # Exported formats have no running maximum; comparing all pairs needs none.
        return (voxel[:, :, None] == voxel[:, None]).to(torch.uint8).argmax(dim=-1)
    # A stable sort groups the points of a voxel, the first one first.
    voxel, order = voxel.sort(dim=1, stable=True)
    place = torch.arange(voxel.shape[1], device=voxel.device).expand_as(voxel)
    follows = torch.zeros_like(voxel, dtype=torch.bool)
    follows[:, 1:] = voxel[:, 1:] == voxel[:, :-1]
    front = place.masked_fill(follows, 0).cummax(dim=1).values
    return torch.empty_like(order).scatter_(1, order, order.gather(1, front))


def line_cell_count(cell_size: float, length: float) -> int:
    """Count the cells of a line, including a shorter one at the end.

    Args:
        cell_size: Length of a cell.
        length: Length of the line.

    Raises:
        ValueError: If a size is not positive.
    """
    _check_positive("cell_size", cell_size)
    _check_positive("length", length)
    return math.ceil(length / cell_size)


def plane_cell_count(cell_size: float, width: float, height: float) -> int:
    """Count the square cells of a plane, including shorter ones at the borders.

    Args:
        cell_size: Edge of a cell.
        width: Extent along x.
        height: Extent along y.

    Raises:
        ValueError: If a size is not positive.
    """
    return line_cell_count(cell_size, width) * line_cell_count(cell_size, height)


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: {value}; expected a positive number")
