"""Collecting rows of a cloud by index, with a cheap gradient, and refusing clouds that cannot be worked with."""

import torch
from torch import Tensor

# Far beyond any scan in any unit; squares and their sums over a batch stay far inside the range of float32.
LARGEST_COORDINATE = 1e12


def refuse_out_of_range(name: str, values: Tensor, largest: float = LARGEST_COORDINATE) -> None:
    """Refuse clouds with numbers that would make all that follows NaN, running statistics of norms included.

    Costs one pass over the numbers and, on other devices than the CPU, waiting for its result. Not for code that is
    compiled.

    Args:
        name: what the caller calls the clouds, for the error.
        values: (batch, points, channels) floats of any kind.
        largest: the largest number allowed, as of its size.

    Raises:
        ValueError: if a number is NaN, infinite or larger; names the first such cloud.
    """
    if not values.numel():
        return
    low, high = values.detach().aminmax()
    if (low >= -largest) & (high <= largest):
        return
    sizes = values.detach().abs().flatten(1).amax(dim=1)  # (batch,); NaN where a number is
    cloud = int((sizes <= largest).logical_not().nonzero()[0])
    if not sizes[cloud].isfinite():
        raise ValueError(f"{name}: found NaN or infinite coordinates in cloud {cloud}; expected finite numbers")
    raise ValueError(
        f"{name}: found {sizes[cloud]:.3g} in cloud {cloud}; expected numbers of at most {largest:.3g} in size"
    )


def in_full_precision(points: Tensor, dtype: torch.dtype) -> Tensor:
    """Check the clouds that a model is given, and cast them to full precision.

    Places stay in full precision in a half precision model: rounded points have other centres and neighbours.

    Args:
        points: (batch, points, channels).
        dtype: precision of the model, into which the squares of all numbers have to fit.

    Returns:
        The points in float32, or in float64 where the model or the points are.

    Raises:
        ValueError: if there is no cloud, or a number is NaN, infinite or too large.
    """
    if not torch.compiler.is_compiling():  # compiled, the operator that samples centres checks their coordinates
        if points.ndim and not len(points):
            raise ValueError(f"points has shape {tuple(points.shape)}; expected at least one cloud")
        if points.is_floating_point():
            refuse_out_of_range("points", points, min(LARGEST_COORDINATE, torch.finfo(dtype).max ** 0.5))
    return points.to(torch.promote_types(dtype, torch.float32))


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
