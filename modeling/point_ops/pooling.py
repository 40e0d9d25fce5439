"""Pooling the tokens of each cell."""

import torch
from torch import Tensor

from hf_any3d.modeling.kernels.pooling import count_index, segment_maximum
from hf_any3d.modeling.point_ops.grouping import flatten_index


def cell_counts(cell: Tensor, num_cells: int) -> Tensor:
    """Count the tokens in every cell.

    Args:
        cell: LongTensor `(batch, tokens)`, 0 to num_cells - 1.
        num_cells: Number of cells.

    Returns:
        LongTensor `(batch, num_cells)`.

    Raises:
        ValueError: If `cell` has another shape or dtype.
        IndexError: If a cell does not exist (only checked on the CPU).
    """
    if cell.dim() != 2:
        raise ValueError(f"cell: shape {tuple(cell.shape)}; expected (batch, tokens)")
    flat = flatten_index("cell", cell, num_cells)
    return count_index(flat, cell.shape[0] * num_cells).view(cell.shape[0], num_cells)


def scatter_mean(values: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Average the tokens of every cell.

    Args:
        values: `(batch, tokens, channels)`; half precision is summed in float32.
        cell: LongTensor `(batch, tokens)`, 0 to num_cells - 1.
        num_cells: Number of cells.

    Returns:
        `(batch, num_cells, channels)`, 0 in empty cells, differentiable in `values`.

    Raises:
        ValueError: If the shapes do not match.
        IndexError: If a cell does not exist (only checked on the CPU).
    """
    rows, flat = _flatten(values, cell, num_cells)
    count = count_index(flat, values.shape[0] * num_cells)
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    # index_add takes a tenth of the time of scatter_add, which needs an index of the size of the values.
    total = wide.new_zeros(count.shape[0], wide.shape[1]).index_add(0, flat, wide)
    mean = total / count.clamp(min=1)[:, None]
    return mean.to(values.dtype).reshape(values.shape[0], num_cells, values.shape[2])


def scatter_max(values: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Compute the maximum over the tokens of every cell, channel by channel.

    Args:
        values: `(batch, tokens, channels)`.
        cell: LongTensor `(batch, tokens)`, 0 to num_cells - 1.
        num_cells: Number of cells.

    Returns:
        `(batch, num_cells, channels)`, 0 in empty cells, differentiable in `values`; equal maxima share the gradient.

    Raises:
        ValueError: If the shapes do not match.
        IndexError: If a cell does not exist (only checked on the CPU).
    """
    rows, flat = _flatten(values, cell, num_cells)
    largest = segment_maximum(rows, flat, values.shape[0] * num_cells)
    return largest.view(values.shape[0], num_cells, values.shape[2])


def _flatten(values: Tensor, cell: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    if values.dim() != 3:
        raise ValueError(f"values: shape {tuple(values.shape)}; expected (batch, tokens, channels)")
    if cell.shape != values.shape[:2]:
        raise ValueError(f"cell: shape {tuple(cell.shape)}; expected {tuple(values.shape[:2])} like values")
    return values.flatten(0, 1), flatten_index("cell", cell, num_cells)
