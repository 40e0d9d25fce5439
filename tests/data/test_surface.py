import numpy as np
import pytest

from hf_any3d.data.surface import sample_surface

SQUARE = np.array([[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]], dtype=np.float32)
FACES = np.array([[0, 1, 2], [0, 2, 3]])


def test_points_cover_a_square_evenly_and_lie_on_it():
    points, _, _ = sample_surface(SQUARE, FACES, 4000, np.random.default_rng(0))
    assert points.shape == (4000, 3) and points.dtype == np.float32
    assert (points[:, 2] == 0).all() and points.min() >= 0 and points.max() <= 2
    counts = np.histogram2d(points[:, 0], points[:, 1], bins=4, range=[[0, 2], [0, 2]])[0]
    assert np.abs(counts - 250).max() < 5 * np.sqrt(250)


def test_faces_are_drawn_in_proportion_to_their_area():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 3, 5]], dtype=np.float32)
    _, face, _ = sample_surface(vertices, np.array([[0, 1, 2], [3, 4, 5]]), 5000, np.random.default_rng(0))
    assert (face == 1).mean() == pytest.approx(0.9, abs=0.02)


def test_the_weights_give_the_point_back():
    points, face, weights = sample_surface(SQUARE, FACES, 50, np.random.default_rng(0))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((SQUARE[FACES[face]] * weights[:, :, None]).sum(axis=1), points, atol=1e-5)


@pytest.mark.parametrize("faces", [np.zeros((0, 3), int), np.array([[0, 1, 1]])])
def test_a_mesh_without_area_is_refused(faces):
    with pytest.raises(ValueError, match="of total area 0.0; expected a positive area"):
        sample_surface(SQUARE, faces, 10, np.random.default_rng(0))
