"""Select rows of clouds by index, with a cheap gradient, and check the clouds that a model is given."""

import torch
from torch import Tensor

from hf_any3d.modeling.kernels.coordinates import LARGEST_COORDINATE, refuse_out_of_range


def in_full_precision(points: Tensor, dtype: torch.dtype) -> Tensor:
    """Check the clouds that a model is given, and cast them to full precision.

    Coordinates stay in full precision in a half precision model: rounded points have other centres and neighbours.

    Args:
        points: `(batch, points, channels)`.
        dtype: Precision of the model, which must be able to represent the squares of all numbers.

    Returns:
        The points in float32, or in float64 if the model or the points are.

    Raises:
        ValueError: If there is no cloud, or a number is NaN, infinite or too large.
    """
    if not torch.compiler.is_compiling():  # in compiled code, the operator that samples centres checks coordinates
        if points.ndim and not len(points):
            raise ValueError(f"points has shape {tuple(points.shape)}; expected at least one cloud")
        if points.is_floating_point():
            refuse_out_of_range("points", points, min(LARGEST_COORDINATE, torch.finfo(dtype).max ** 0.5))
    return points.to(torch.promote_types(dtype, torch.float32))


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """Select rows of every cloud.

    Args:
        values: `(batch, points, channels)` floats of any kind.
        index: `(batch, picks)` integers in [0, points).

    Returns:
        `(batch, picks, channels)`, differentiable in `values`.

    Raises:
        ValueError: If the shapes do not match.
        IndexError: If an index is out of range (only checked on the CPU and in uncompiled code).
    """
    return _rows(values, index, "(batch, picks)")


def group(values: Tensor, index: Tensor) -> Tensor:
    """Select the rows of the neighbours of every query.

    Args:
        values: `(batch, points, channels)` floats of any kind.
        index: `(batch, queries, neighbors)` integers in [0, points), as returned by `knn`.

    Returns:
        `(batch, queries, neighbors, channels)`, differentiable in `values`.

    Raises:
        ValueError: If the shapes do not match.
        IndexError: If an index is out of range (only checked on the CPU and in uncompiled code).
    """
    return _rows(values, index, "(batch, queries, neighbors)")


def flatten_index(name: str, index: Tensor, count: int) -> Tensor:
    """Convert indices into each cloud to indices into all clouds concatenated.

    Args:
        name: Name of the indices in messages.
        index: `(batch, ...)` integers in [0, count).
        count: Rows of a cloud.

    Returns:
        LongTensor `(batch * ...,)`.

    Raises:
        ValueError: If `index` does not contain integers.
        IndexError: If an index is out of range (only checked on the CPU and in uncompiled code).
    """
    if index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: dtype {index.dtype}; expected torch.int64 or torch.int32")
    if not torch.compiler.is_compiling() and index.device.type == "cpu" and index.numel():
        low, high = index.aminmax()
        # A flat index beyond one cloud would silently read the next one.
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
    # A flat selection: unlike torch.gather, it needs no index of the size of the result.
    flat = flatten_index("index", index, count)
    return values.reshape(batch * count, channels).index_select(0, flat).reshape(*index.shape, channels)
