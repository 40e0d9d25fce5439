"""Find the neighbors of points, and select and interpolate rows of clouds by index."""

import math

import torch
from torch import Tensor

from hf_any3d.modeling import kernels
from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.kernels.coordinates import LARGEST_COORDINATE, refuse_out_of_range
from hf_any3d.modeling.kernels.dispatch import is_exporting

# Pairs of a query and a point that `ball_query` compares at a time.
_BALL_PAIRS = 2**22


def check_channels(points: Tensor, in_channels: int, min_points: int = 1) -> None:
    """Check that clouds have the shape `(batch, points, in_channels)`, and points enough."""
    if points.ndim != 3 or points.shape[-1] != in_channels or points.shape[1] < min_points:
        raise ValueError(
            f"points has shape {tuple(points.shape)}; expected (batch, points, {in_channels}): "
            f"the last axis is config.in_channels, as named by a processor's features, such as xyz and rgb, and a "
            f"cloud has {min_points} or more points"
        )


def in_full_precision(points: Tensor, dtype: torch.dtype) -> Tensor:
    """Check the clouds `(batch, points, channels)` that a model is given, and cast them to float32 or float64.

    In half precision, points have other centers and neighbors, and squares of numbers above the range of `dtype`.

    Example:
        >>> in_full_precision(torch.zeros(1, 2, 3, dtype=torch.float16), torch.float32).dtype
        torch.float32
    """
    if not torch.compiler.is_compiling():  # in compiled code, the operator that samples centers checks coordinates
        if points.ndim and not len(points):
            raise ValueError(f"points has shape {tuple(points.shape)}; expected at least one cloud")
        if points.is_floating_point():
            refuse_out_of_range("points", points, min(LARGEST_COORDINATE, torch.finfo(dtype).max ** 0.5))
    return points.to(torch.promote_types(dtype, torch.float32))


def knn(
    query: Tensor, points: Tensor, k: int, *, method: str = "auto", return_distances: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Find the k nearest points of every query, sorted from near to far.

    Equally far points are in the order of their indices, except with "matmul", whose rounding hides equality. Memory
    is bounded for any number of queries. No gradient.

    Args:
        query: `(batch, queries, 3 or more channels)`, xyz first.
        points: `(batch, points, 3 or more channels)`.
        k: Number of neighbors. A query that is one of the points is its own first neighbor.
        method: "exact" squares the coordinate differences; "matmul" expands the square into a matrix product, which
            may swap neighbors at nearly equal distances; "kdtree" searches a tree, on the CPU only; "auto" uses the
            tree on the CPU if there are many points per neighbor, else "exact".
        return_distances: Whether to also return the squared distances, in float32.

    Returns:
        Indices `(batch, queries, k)`.

    Raises:
        ValueError: `k` is below 1 or above the number of points, or the batches differ.

    Example:
        >>> points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [4, 0, 0]]])
        >>> knn(points[:, :1], points, k=2)
        tensor([[[0, 1]]])
    """
    index, distance = kernels.knn(query, points, k, method)
    return (index, distance) if return_distances else index


def ball_query(
    query: Tensor, points: Tensor, radius: float, k: int, *, return_counts: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Find the first k points, in the order of their indices, in the ball around every query.

    Which points of a crowded ball are kept therefore depends on the order of the cloud. A ball with fewer points is
    filled up with its first one; an empty one has index 0. Points at the radius are inside. Memory is bounded for any
    number of queries. No gradient.

    Args:
        query: `(batch, queries, 3 or more channels)`, xyz first.
        points: `(batch, points, 3 or more channels)`.
        radius: Radius of the balls in the unit of the points.
        k: Points per ball, 1 or more.
        return_counts: Whether to also return how many points are in each ball `(batch, queries)`, those beyond k, too.

    Returns:
        Indices `(batch, queries, k)`.

    Raises:
        ValueError: `radius` is below 0 or NaN, `k` is below 1, or the batches differ.

    Source: PointNet++, Sec. 3.2.

    Example:
        >>> points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [4, 0, 0]]])
        >>> ball_query(points[:, :1], points, radius=2.0, k=3)  # filled up with the first one
        tensor([[[0, 1, 0]]])
    """
    check_numbers(0, radius=radius)
    check_numbers(1, k=k)
    if query.shape[0] != points.shape[0]:  # torch would look for the balls of one cloud in all
        raise ValueError(f"query: shape {tuple(query.shape)}; expected a batch of {points.shape[0]}, as points have")
    query, points = (values[..., :3].detach().float() for values in (query, points))
    # Each pass below reads the coordinates of one axis, which lie in a row this way.
    axes = points.transpose(1, 2).contiguous().unsqueeze(2)  # (batch, 3, 1, points)
    if is_exporting():  # parts would be those of the traced clouds
        index, count = _in_balls(query, axes, radius, k)
        return (index, count) if return_counts else index
    # On a CPU the distances of a part stay in its cache.
    pairs = min(_BALL_PAIRS, 2**18) if points.device.type == "cpu" else _BALL_PAIRS
    rows = max(1, pairs // max(1, len(points) * points.shape[1]))
    parts = [_in_balls(part, axes, radius, k) for part in query.split(rows, dim=1)]
    index = torch.cat([part for part, _ in parts], dim=1)
    return (index, torch.cat([count for _, count in parts], dim=1)) if return_counts else index


def _in_balls(query: Tensor, axes: Tensor, radius: float, k: int) -> tuple[Tensor, Tensor]:
    offset = query[..., 0].unsqueeze(-1) - axes[:, 0]  # (batch, queries, points)
    # In place, axis by axis: all pairs of a part are the largest tensor here.
    distance = offset.square_()
    for axis in (1, 2):
        distance += (query[..., axis].unsqueeze(-1) - axes[:, axis]).square_()
    inside = distance <= radius**2
    if inside.device.type == "cpu" and not torch.compiler.is_compiling():
        # Find the first k places of each row of booleans `(batch, queries, points)`, by listing those that are True
        counts = inside.sum(dim=2)  # (batch, queries)
        own = counts.view(-1, 1)
        numbers = inside.nonzero(as_tuple=True)[2]  # those of the first row, of the second, and so on
        numbers = torch.cat([numbers, numbers.new_zeros(1)])  # for an empty ball at the end
        order = torch.arange(k)
        # The first one in place of those that a ball lacks.
        places = own.cumsum(0) - own + torch.where(order < own, order, 0)
        return torch.where(own > 0, numbers[places], 0).view(*counts.shape, k), counts
    place = inside.cumsum(dim=2)  # from 1 at the first point inside
    counts = place[..., -1]
    # Points outside and those beyond k go to one more column, which is dropped.
    place = torch.where(inside & (place <= k), place - 1, k)
    number = torch.arange(place.shape[2], device=place.device).expand_as(place)
    first = place.new_zeros(*place.shape[:2], k + 1).scatter_(2, place, number)[..., :k]
    is_filled = torch.arange(k, device=place.device) < counts.unsqueeze(-1)
    return torch.where(is_filled, first, first[..., :1]), counts


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """Select rows `index (batch, picks)` of every cloud: `(batch, picks, channels)`, differentiable in `values`.

    Example:
        >>> gather_points(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[2, 0]]))[..., 0]
        tensor([[3., 1.]])
    """
    return group(values, index)


def group(values: Tensor, index: Tensor) -> Tensor:
    """Select rows `index (batch, queries, neighbors)` of `values (batch, points, channels)`; differentiable.

    Example:
        >>> group(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[0, 1], [2, 2]]])).shape
        torch.Size([1, 2, 2, 1])
    """
    batch, count, channels = values.shape
    if index.shape[0] != batch:
        raise ValueError(f"index: shape {tuple(index.shape)}; expected a batch of {batch}")
    # A flat selection: unlike torch.gather, it needs no index of the size of the result.
    flat = flatten_index("index", index, count)
    return values.reshape(batch * count, channels).index_select(0, flat).reshape(*index.shape, channels)


def three_nearest_interpolate(query: Tensor, points: Tensor, features: Tensor, eps: float = 1e-8) -> Tensor:
    """Interpolate the features of the three nearest points at every query.

    The weights are the inverse squared distances, normalized to sum 1; they have no gradient. In clouds of fewer than
    three points, all points are used. Sums are computed in float32 or better, under autocast too.

    Args:
        query: `(batch, queries, 3 or more channels)`, xyz first.
        points: `(batch, points, 3 or more channels)`.
        features: `(batch, points, width)` of `points`; the result `(batch, queries, width)` is differentiable in them.
        eps: Added to the squared distances, so that a query at a point gets the features of that point.

    Source: PointNet++, Eq. 2.

    Example:
        >>> points = torch.tensor([[[0.0, 0, 0], [2, 0, 0]]])
        >>> features = torch.tensor([[[0.0], [10.0]]])
        >>> three_nearest_interpolate(torch.tensor([[[1.0, 0, 0]]]), points, features)
        tensor([[[5.]]])
    """
    check_numbers(0, above=True, eps=eps)
    if features.shape[:2] != points.shape[:2]:  # more features than points would not be noticed
        raise ValueError(
            f"features: shape {tuple(features.shape)}; expected ({len(points)}, {points.shape[1]}, width)"
        )
    index, distance = knn(query, points, min(3, points.shape[1]), return_distances=True)
    weight = 1 / (distance + eps)  # (batch, queries, 3)
    weight = weight / weight.sum(dim=2, keepdim=True)
    # No matrix product: slower, and autocast and TF32 would round coordinates, which are interpolated too.
    blended = (weight.unsqueeze(-1) * group(features, index)).sum(dim=2)  # (batch, queries, width)
    return blended.to(features.dtype)


def flatten_index(name: str, index: Tensor, count: int) -> Tensor:
    """Convert indices `(batch, …)` into each cloud to indices `(batch * …,)` into all clouds concatenated."""
    if not torch.compiler.is_compiling() and index.device.type == "cpu" and index.numel():
        low, high = index.aminmax()
        # A flat index beyond one cloud would silently read the next one.
        if low < 0 or high >= count:
            raise IndexError(f"{name}: values from {low} to {high}; expected 0 to {count - 1}")
    batch = index.shape[0]
    offset = torch.arange(batch, device=index.device).mul_(count)
    return (index.reshape(batch, math.prod(index.shape[1:])) + offset[:, None]).reshape(-1)
