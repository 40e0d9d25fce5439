"""Sample the centers of clouds."""

from torch import Tensor

from hf_any3d.modeling import kernels
from hf_any3d.modeling.config_checks import check_numbers


def farthest_point_sample(
    points: Tensor,
    num_samples: int,
    *,
    start_index: int | Tensor = 0,
    min_squared_norm: float | None = None,
    tie_rule: str = "first",
) -> Tensor:
    """Sample a fixed number of points of every cloud, spread over it.

    Each step takes the point that is farthest from those already taken, in float32 squared distance. The indices are
    those of the plain loop, on every device. No gradient.

    Args:
        points: `(batch, points, 3 or more channels)`, xyz first.
        num_samples: Number of samples of each cloud.
        start_index: The first sample, one for all clouds or a LongTensor `(batch,)`.
        min_squared_norm: Points with x²+y²+z² up to this value are never candidates, though one may be the start.
            The CUDA kernel with which many released weights were trained skips points up to 1e-3 this way. If a cloud
            has no candidate, index 0 is taken.
        tie_rule: Which of several equally far points is taken: "first", the lowest index; "cuda", the one that the
            tree reduction of that kernel would keep.

    Returns:
        LongTensor `(batch, num_samples)` on the device of `points`.

    Raises:
        ValueError: `num_samples` is below 1 or above the number of points.

    Source: PointNet++, Sec. 3.2; Eldar et al., "The farthest point strategy for progressive image sampling".

    Example:
        >>> points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [4, 0, 0], [5, 0, 0]]])
        >>> farthest_point_sample(points, num_samples=3)
        tensor([[0, 3, 1]])
    """
    check_numbers(0, min_squared_norm=min_squared_norm)
    return kernels.farthest_point_sample(points, num_samples, start_index, min_squared_norm, tie_rule)
