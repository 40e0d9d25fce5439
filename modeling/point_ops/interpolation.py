"""Carrying features from few points to many."""

from torch import Tensor

from hf_any3d.modeling.point_ops.grouping import group
from hf_any3d.modeling.point_ops.neighbors import knn


def three_nearest_interpolate(query: Tensor, points: Tensor, features: Tensor, eps: float = 1e-8) -> Tensor:
    """Blend the features of the three nearest points at every query.

    The weights are the inverse squared distances, normalised to sum 1; they carry no gradient. In a cloud of fewer
    than three points all of them take part. Sums are float32 or better, under autocast too.

    Args:
        query: (batch, queries, channels), channels >= 3; only x, y, z count.
        points: (batch, points, channels), channels >= 3.
        features: (batch, points, width) of `points`.
        eps: added to the squared distances, so that a query upon a point takes that point's features.

    Returns:
        (batch, queries, width), differentiable in `features`.

    Raises:
        ValueError: if the shapes do not fit together.

    Source: PointNet++, Eq. 2.
    """
    if features.dim() != 3 or features.shape[:2] != points.shape[:2]:
        raise ValueError(
            f"features: shape {tuple(features.shape)}; expected ({', '.join(map(str, points.shape[:2]))}, width)"
        )
    index, distance = knn(query, points, min(3, points.shape[1]), return_distances=True)
    weight = 1 / (distance + eps)  # (batch, queries, 3)
    weight = weight / weight.sum(dim=2, keepdim=True)
    # Not a matrix product, which autocast and TF32 would round; places are blended here, too. It is also slower.
    blended = (weight.unsqueeze(-1) * group(features, index)).sum(dim=2)  # (batch, queries, width)
    return blended.to(features.dtype)
