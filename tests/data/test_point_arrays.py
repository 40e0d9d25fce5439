"""Center and radius are bitwise equal to the plain formulas."""

import numpy as np
import pytest

from hf_any3d.data.point_arrays import largest_norm, mean_point


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_points", [1, 2, 7, 100, 1024, 9000])
def test_mean_and_radius_equal_the_plain_formulas(num_points, dtype):
    generator = np.random.default_rng(num_points)
    points = (30 * generator.standard_normal((num_points, 3)) + [50, -2, 0.1]).astype(dtype)
    axes = np.ascontiguousarray(points.T)
    np.testing.assert_array_equal(mean_point(axes)[:, 0], points.mean(axis=0, dtype=np.float64))
    assert largest_norm(axes) == np.linalg.norm(points, axis=1).max()
    assert largest_norm(axes).dtype == dtype
