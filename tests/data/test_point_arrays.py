"""Center and radius are bitwise equal to the plain formulas; means of cells are those of their points."""

import numpy as np
import pytest

from hf_any3d.data.point_arrays import largest_norm, mean_point, means_of_cells


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_points", [1, 2, 7, 100, 1024, 9000])
def test_mean_and_radius_equal_the_plain_formulas(num_points, dtype):
    generator = np.random.default_rng(num_points)
    points = (30 * generator.standard_normal((num_points, 3)) + [50, -2, 0.1]).astype(dtype)
    axes = np.ascontiguousarray(points.T)
    np.testing.assert_array_equal(mean_point(axes)[:, 0], points.mean(axis=0, dtype=np.float64))
    assert largest_norm(axes) == np.linalg.norm(points, axis=1).max()
    assert largest_norm(axes).dtype == dtype


def test_means_are_those_of_the_points_of_each_cell_in_the_order_of_cells():
    cells = np.array([[1, 0, 0], [0, 2, 0], [1, 0, 0], [0, 0, 5], [0, 2, 0]])
    points, values = np.arange(15.0).reshape(5, 3), np.array([[1.0], [2], [4], [8], [16]])
    of_points, of_values = means_of_cells(cells, points, values)
    np.testing.assert_array_equal(of_points, [[9, 10, 11], [7.5, 8.5, 9.5], [3, 4, 5]])
    np.testing.assert_array_equal(of_values, [[8], [9], [2.5]])
