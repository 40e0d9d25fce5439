"""Pooling the tokens of each cell."""

import torch
from torch import Tensor

from hf_any3d.modeling.point_ops.grouping import flatten_index


def cell_counts(cell: Tensor, num_cells: int) -> Tensor:
    """Count the tokens in every cell.

    Args:
        cell: (batch, tokens) LongTensor, 0 to num_cells - 1.
        num_cells: number of cells.

    Returns:
        (batch, num_cells) LongTensor.

    Raises:
        ValueError: if `cell` has another shape or dtype.
        IndexError: if a cell does not exist (checked on CPU).
    """
    if cell.dim() != 2:
        raise ValueError(f"cell: shape {tuple(cell.shape)}; expected (batch, tokens)")
    flat = flatten_index("cell", cell, num_cells)
    return _count(flat, cell.shape[0] * num_cells).reshape(cell.shape[0], num_cells)


def scatter_mean(values: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Average the tokens of every cell.

    Args:
        values: (batch, tokens, channels); half precision is summed in float32.
        cell: (batch, tokens) LongTensor, 0 to num_cells - 1.
        num_cells: number of cells.

    Returns:
        (batch, num_cells, channels), 0 in empty cells, differentiable in `values`.

    Raises:
        ValueError: if the shapes do not fit together.
        IndexError: if a cell does not exist (checked on CPU).
    """
    flat, rows, count = _flatten(values, cell, num_cells)
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    # index_add costs a tenth of scatter_add, which wants an index as large as the values.
    total = wide.new_zeros(count.shape[0], wide.shape[1]).index_add(0, flat, wide)
    mean = total / count.clamp(min=1)[:, None]
    return mean.to(values.dtype).reshape(values.shape[0], num_cells, values.shape[2])


def scatter_max(values: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Take the largest value of every cell, channel by channel.

    Args:
        values: (batch, tokens, channels).
        cell: (batch, tokens) LongTensor, 0 to num_cells - 1.
        num_cells: number of cells.

    Returns:
        (batch, num_cells, channels), 0 in empty cells, differentiable in `values`; equal maxima share the gradient.

    Raises:
        ValueError: if the shapes do not fit together.
        IndexError: if a cell does not exist (checked on CPU).
    """
    flat, rows, count = _flatten(values, cell, num_cells)
    if torch.compiler.is_exporting():
        # Formats of other programs know no runs.
        largest = rows.new_full((count.shape[0], rows.shape[1]), -torch.inf)
        largest = largest.scatter_reduce(0, flat[:, None].expand_as(rows), rows, "amax")
    else:
        # Sorting the few cells lets the tokens of each be reduced in one run: several times faster than
        # scatter_reduce.
        rows = rows.index_select(0, flat.argsort(stable=True))
        largest = torch.segment_reduce(rows, "max", lengths=count, axis=0, unsafe=True)
    return largest.masked_fill(count[:, None] == 0, 0).reshape(values.shape[0], num_cells, values.shape[2])


def _flatten(values: Tensor, cell: Tensor, num_cells: int) -> tuple[Tensor, Tensor, Tensor]:
    if values.dim() != 3:
        raise ValueError(f"values: shape {tuple(values.shape)}; expected (batch, tokens, channels)")
    if cell.shape != values.shape[:2]:
        raise ValueError(f"cell: shape {tuple(cell.shape)}; expected {tuple(values.shape[:2])} like values")
    flat = flatten_index("cell", cell, num_cells)
    return flat, values.reshape(flat.shape[0], values.shape[2]), _count(flat, values.shape[0] * num_cells)


def _count(flat: Tensor, length: int) -> Tensor:
    # Not bincount: its result's length depends on the data, for which a GPU has to wait.
    return flat.new_zeros(length).scatter_add_(0, flat, torch.ones_like(flat))
