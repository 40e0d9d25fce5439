"""Centre and radius of a cloud, quick for clouds whose axes lie in one piece."""

import numpy as np


def mean_point(axes: np.ndarray) -> np.ndarray:
    """The mean of the points of a cloud.

    Args:
        axes: (3, num_points), x, y and z one after the other.

    Returns:
        (3, 1) float64, to the last bit the mean of an array (num_points, 3), whose points numpy adds one by one.
    """
    return np.cumsum(axes, axis=1, dtype=np.float64)[:, -1:] / axes.shape[1]


def largest_norm(axes: np.ndarray) -> np.floating:
    """The largest distance of a point from the origin, of the type of `axes` (3, num_points)."""
    squares = axes * axes
    return np.sqrt((squares[0] + squares[1] + squares[2]).max())
