"""Collecting rows of a cloud by index, with a cheap gradient."""

import torch
from torch import Tensor


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """Pick rows of every cloud.

    Args:
        values: (batch, points, channels) floats of any kind.
        index: (batch, picks) integers in [0, points).

    Returns:
        (batch, picks, channels), differentiable in `values`.

    Raises:
        ValueError: if the shapes do not fit together.
        IndexError: if an index lies outside the cloud (checked on CPU; on other devices the check would stall).
    """
    _check("index", values, index, 2)
    return _rows(values, index)


def group(values: Tensor, index: Tensor) -> Tensor:
    """Pick the neighbours' rows for every query.

    Args:
        values: (batch, points, channels) floats of any kind.
        index: (batch, queries, neighbors) integers in [0, points), as `knn` returns them.

    Returns:
        (batch, queries, neighbors, channels), differentiable in `values`.

    Raises:
        ValueError: if the shapes do not fit together.
        IndexError: if an index lies outside the cloud (checked on CPU; on other devices the check would stall).
    """
    _check("index", values, index, 3)
    return _rows(values, index)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    batch, count, channels = values.shape
    # One flat selection: unlike torch.gather it needs no index of the size of the result.
    offset = torch.arange(batch, device=index.device).mul_(count)
    flat = (index.reshape(batch, -1) + offset[:, None]).reshape(-1)
    return values.reshape(batch * count, channels).index_select(0, flat).reshape(*index.shape, channels)


def _check(name: str, values: Tensor, index: Tensor, dimensions: int) -> None:
    if values.dim() != 3:
        raise ValueError(f"values: shape {tuple(values.shape)}; expected (batch, points, channels)")
    if index.dim() != dimensions or index.shape[0] != values.shape[0]:
        expected = ("batch, picks", "batch, queries, neighbors")[dimensions - 2]
        raise ValueError(f"{name}: shape {tuple(index.shape)}; expected ({expected}) with batch {values.shape[0]}")
    if index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: dtype {index.dtype}; expected torch.int64 or torch.int32")
    if index.device.type == "cpu" and index.numel():
        low, high = index.aminmax()
        # A flat index past the end of one cloud would silently read the next cloud.
        if low < 0 or high >= values.shape[1]:
            raise IndexError(f"{name}: values from {low} to {high}; expected 0 to {values.shape[1] - 1}")
