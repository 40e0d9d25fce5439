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
        IndexError: if an index lies outside the cloud (checked on CPU; elsewhere, or compiled, the check would stall).
    """
    return _rows(values, index, "(batch, picks)")


def group(values: Tensor, index: Tensor) -> Tensor:
    """Pick the neighbours' rows for every query.

    Args:
        values: (batch, points, channels) floats of any kind.
        index: (batch, queries, neighbors) integers in [0, points), as `knn` returns them.

    Returns:
        (batch, queries, neighbors, channels), differentiable in `values`.

    Raises:
        ValueError: if the shapes do not fit together.
        IndexError: if an index lies outside the cloud (checked on CPU; elsewhere, or compiled, the check would stall).
    """
    return _rows(values, index, "(batch, queries, neighbors)")


def flatten_index(name: str, index: Tensor, count: int) -> Tensor:
    """Turn indices into each cloud into indices into all clouds laid end to end.

    Args:
        name: what the caller calls the indices, for the error.
        index: (batch, ...) integers in [0, count).
        count: rows of a cloud.

    Returns:
        (batch * ...,) LongTensor.

    Raises:
        ValueError: if `index` does not hold integers.
        IndexError: if an index lies outside its cloud (checked on CPU; elsewhere, or compiled, the check would stall).
    """
    if index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: dtype {index.dtype}; expected torch.int64 or torch.int32")
    if not torch.compiler.is_compiling() and index.device.type == "cpu" and index.numel():
        low, high = index.aminmax()
        # A flat index past the end of one cloud would silently read the next cloud.
        if low < 0 or high >= count:
            raise IndexError(f"{name}: values from {low} to {high}; expected 0 to {count - 1}")
    batch = index.shape[0]
    offset = torch.arange(batch, device=index.device).mul_(count)
    return (index.reshape(batch, -1) + offset[:, None]).reshape(-1)


def _rows(values: Tensor, index: Tensor, expected: str) -> Tensor:
    if values.dim() != 3:
        raise ValueError(f"values: shape {tuple(values.shape)}; expected (batch, points, channels)")
    batch, count, channels = values.shape
    if index.dim() != expected.count(",") + 1 or index.shape[0] != batch:
        raise ValueError(f"index: shape {tuple(index.shape)}; expected {expected} with batch {batch}")
    # One flat selection: unlike torch.gather it needs no index of the size of the result.
    flat = flatten_index("index", index, count)
    return values.reshape(batch * count, channels).index_select(0, flat).reshape(*index.shape, channels)
