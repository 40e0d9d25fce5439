"""Nearest neighbours of query points."""

from torch import Tensor

from hf_any3d.modeling import kernels
from hf_any3d.modeling.point_ops.grouping import group


def knn(
    query: Tensor, points: Tensor, k: int, *, method: str = "auto", return_distances: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Find the k nearest points of every query, sorted from near to far.

    Equally far points are in the order of their indices, except with "matmul", whose rounding hides equality. Memory
    is bounded for any number of queries. No gradient.

    Args:
        query: `(batch, queries, channels)`, channels >= 3; only x, y, z are used. Other precisions are read as
            float32.
        points: `(batch, points, channels)`, channels >= 3.
        k: Number of neighbours, 1 to points. A query that is one of the points is its own first neighbour.
        method: "exact" squares the coordinate differences; "matmul" expands the square into a matrix product, which
            may swap neighbours at nearly equal distances; "kdtree" searches a tree, on the CPU only; "auto" uses the
            tree on the CPU if there are many points per neighbour, else "exact".
        return_distances: Whether to also return the squared distances.

    Returns:
        Indices `(batch, queries, k)`, and with `return_distances` the squared distances of the same shape in float32.

    Raises:
        ValueError: If an argument has the wrong shape, range or device, or if a coordinate is NaN, infinite or
            beyond `LARGEST_COORDINATE`.
    """
    index, distance = kernels.knn(query, points, k, method)
    return (index, distance) if return_distances else index


def three_nearest_interpolate(query: Tensor, points: Tensor, features: Tensor, eps: float = 1e-8) -> Tensor:
    """Interpolate the features of the three nearest points at every query.

    The weights are the inverse squared distances, normalised to sum 1; they have no gradient. In clouds of fewer than
    three points, all points are used. Sums are computed in float32 or better, under autocast too.

    Args:
        query: `(batch, queries, channels)`, channels >= 3; only x, y, z are used.
        points: `(batch, points, channels)`, channels >= 3.
        features: `(batch, points, width)` of `points`.
        eps: Added to the squared distances, so that a query at a point gets the features of that point.

    Returns:
        `(batch, queries, width)`, differentiable in `features`.

    Raises:
        ValueError: If the shapes do not match.

    Source: PointNet++, Eq. 2.
    """
    if features.dim() != 3 or features.shape[:2] != points.shape[:2]:
        raise ValueError(
            f"features: shape {tuple(features.shape)}; expected ({', '.join(map(str, points.shape[:2]))}, width)"
        )
    index, distance = knn(query, points, min(3, points.shape[1]), return_distances=True)
    weight = 1 / (distance + eps)  # (batch, queries, 3)
    weight = weight / weight.sum(dim=2, keepdim=True)
    # No matrix product: slower, and autocast and TF32 would round coordinates, which are interpolated too.
    blended = (weight.unsqueeze(-1) * group(features, index)).sum(dim=2)  # (batch, queries, width)
    return blended.to(features.dtype)
