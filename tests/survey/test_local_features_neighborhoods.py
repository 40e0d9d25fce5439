"""Features of surroundings: sums over boxes, sizes made of smaller ones, coordinates of maps, answers in pieces."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from hf_any3d_survey.local_features import LocalFeaturesConfig, LocalFeaturesForPointCloudSegmentation
from hf_any3d_survey.local_features.ground_surface import GroundSurface, _squares
from hf_any3d_survey.local_features.neighborhoods import Measured, Neighborhoods
from hf_any3d_survey.local_features.sparse_boxes import SparseVoxels


def scattered(count, extent=(12.0, 9.0, 4.0)):
    return np.random.default_rng(0).random((count, 3)) * extent - 2


def described(points, heights, edges=(0.5, 1.0, 2.0)):
    return Neighborhoods(points, Measured(heights[:, None]), edges).features(slice(None))


def test_sums_and_columns_are_those_of_the_voxels_around():
    points = scattered(800)
    voxels = SparseVoxels(points, 0.5)
    cells = np.floor(points / 0.5).astype(int)
    # (voxels, 3); points of a voxel are in the same cell
    cell = np.stack([cells[np.flatnonzero(voxels.of_point == number)[0]] for number in range(len(voxels))])
    away = cell[:, None] - cell[None]
    values = np.random.default_rng(1).random((len(voxels), 2))
    is_near = (np.abs(away) <= 1).all(axis=2)
    np.testing.assert_allclose(voxels.box_sums(values), is_near @ values)
    is_beside = (np.abs(away[..., :2]) <= 1).all(axis=2)
    height = voxels.means(points)[:, 2]
    above, below, lowest, highest = voxels.columns(height)
    np.testing.assert_array_equal(above, (is_beside & (away[..., 2] < -1)).sum(axis=1))
    np.testing.assert_array_equal(below, (is_beside & (away[..., 2] > 1)).sum(axis=1))
    np.testing.assert_array_equal(lowest, np.where(is_beside, height, np.inf).min(axis=1))
    np.testing.assert_array_equal(highest, np.where(is_beside, height, -np.inf).max(axis=1))


def test_parents_are_the_voxels_of_a_larger_edge():
    points = scattered(3000)
    fine = SparseVoxels(points, 0.5)
    coarse = SparseVoxels(points, 2.0)
    parents = fine.parents(4)
    np.testing.assert_array_equal(parents.of_point[fine.of_point], coarse.of_point)


def test_edges_that_do_not_fit_into_each_other_have_boxes_of_their_own():
    points = scattered(3000)
    heights = points[:, 2] - points[:, 2].min()
    alone = described(points, heights, (0.5, 0.75))
    # All features of the smaller size, and the number of voxels in the larger boxes
    np.testing.assert_array_equal(alone[:, :18], described(points, heights, (0.5,))[:, :18])
    fine = SparseVoxels(points, 0.25)
    large = SparseVoxels(fine.means(points), 0.75)
    count = large.box_sums(large.counts[:, None])[large.of_point, 0][fine.of_point]
    assert np.isclose(alone, np.log(count)[:, None], atol=1e-5).all(axis=0).any()


def test_coordinates_of_maps_change_no_feature():
    points = scattered(4000, (300.0, 200.0, 20.0))
    # Places with few digits, which coordinates of maps hold exactly; moved by whole voxels of all sizes
    points = np.round(points * 1024) / 1024
    heights = points[:, 2] - points[:, 2].min()
    near = described(points, heights)
    far = described(points + [651_264.0, 6_864_896.0, 1_024.0], heights)
    np.testing.assert_allclose(far, near, atol=2e-3)


def test_described_points_are_those_of_a_description_of_all():
    points = scattered(6000, (60.0, 50.0, 8.0))
    measured = Measured((points[:, 2:] - points[:, 2].min()).astype(np.float32))
    rows = np.flatnonzero((points[:, 0] < 5) & (points[:, 1] > 20))
    by = np.arange(len(points))
    # A point that is described by one far from the others
    by[rows[0]] = points[:, 0].argmax()
    for described_by in (None, by):
        every = Neighborhoods(points, measured, (0.5, 1.0, 2.0, 3.0), described_by)
        some = Neighborhoods(points, measured, (0.5, 1.0, 2.0, 3.0), described_by, rows=rows)
        np.testing.assert_array_equal(some.features(rows), every.features(rows))


@pytest.mark.parametrize("radius", [1, 2, 5, 40])
def test_squares_are_those_of_filters(radius):
    heights = np.random.default_rng(0).random((30, 17))
    opened = _squares(_squares(heights, radius, np.minimum), radius, np.maximum)
    np.testing.assert_array_equal(opened, ndimage.grey_opening(heights, 2 * radius + 1, mode="nearest"))


def test_a_single_point_lies_flat_wherever_it_is():
    points = np.array([[0.1, 0.1, 0.1], [900.1, 700.3, 0.1], [1800.7, 20.3, 5.2]])
    features = described(points, np.zeros(3))
    # Without a spread no direction is known, and rounding makes none.
    horizontality = features[:, 5]
    np.testing.assert_array_equal(horizontality, 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (7, 6)])
def test_heights_are_linear_between_cells(shape):
    heights = np.random.default_rng(0).random((3, *shape))
    surface = GroundSurface(np.array([-1.0, 2.0]), 1.5, heights, np.zeros(0, bool))
    points = np.random.default_rng(1).random((500, 3)) * 14 - 3
    place = (points[:, :2] - surface.corner).T / surface.cell - 0.5
    below = [ndimage.map_coordinates(grid, place, order=1, mode="nearest") for grid in heights]
    np.testing.assert_allclose(surface.heights_above(points), points[:, 2:] - np.stack(below, axis=1), atol=1e-6)


def test_answers_in_pieces_are_those_of_all_at_once():
    torch.manual_seed(0)
    config = LocalFeaturesConfig(in_channels=9, num_labels=3, unknown={"rows": 20, "width": 4})
    model = LocalFeaturesForPointCloudSegmentation(config).eval()
    points = torch.randn(2, 5000, 9)
    at_once = model(points=points)
    with torch.inference_mode():
        in_pieces = model(points=points)
    torch.testing.assert_close(in_pieces.logits, at_once.logits)
    torch.testing.assert_close(in_pieces.unknown, at_once.unknown)
    with torch.inference_mode(), pytest.raises(ValueError, match="expected finite numbers"):
        model(points=points.index_fill(1, torch.tensor([4000]), float("nan")))
