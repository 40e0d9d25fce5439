"""The ground of made terrain with points below it: heights are those without these points."""

import numpy as np
import pytest

from hf_any3d.modeling.local_features.ground_surface import GroundSurface
from hf_any3d.modeling.local_features.lowest_points import lowest_points

SIDE, DENSITY = 60.0, 6


def height(places):
    """A gentle slope with waves."""
    return 0.1 * places[:, 0] + np.sin(places[:, 1] / 9)


def terrain(seed=0):
    generator = np.random.default_rng(seed)
    places = generator.random((int(DENSITY * SIDE**2), 2)) * SIDE
    points = np.column_stack([places, height(places) + generator.normal(0, 0.02, len(places))])
    is_house = (np.abs(places - 30) < [6, 5]).all(axis=1)
    points[is_house, 2] = height(np.array([[30.0, 30.0]]))[0] + 6
    return points, is_house


def below(points, kind, share, seed=1):
    """Points below the ground, as reflections and errors of scanners make them."""
    generator = np.random.default_rng(seed)
    copied = points[generator.choice(len(points), max(1, int(share * len(points))), replace=False)]
    if kind == "scattered":
        return copied - np.column_stack([np.zeros((len(copied), 2)), generator.uniform(5, 80, len(copied))])
    if kind == "layer":
        return copied - [0, 0, 14]
    centers = copied[::6] - [0, 0, 25]
    return np.concatenate([centers + generator.normal(0, 0.3, centers.shape) for _ in range(6)])


@pytest.mark.parametrize("kind", ["scattered", "layer", "clusters"])
@pytest.mark.parametrize("share", [0.001, 0.01])
def test_points_below_the_ground_do_not_move_it(kind, share):
    points, is_house = terrain()
    noisy = np.concatenate([points, below(points, kind, share)])
    surfaces = [GroundSurface.below(scan, 1.0) for scan in (points, noisy)]
    clean, found = (surface.heights_above(points)[:, 1] for surface in surfaces)
    assert not surfaces[1].is_noise[: len(points)].any() and surfaces[1].is_noise[len(points) :].mean() > 0.98
    # A cell whose own points are few may take the height of its neighbor.
    assert np.quantile(np.abs(found - clean), 0.99) < 0.05
    assert np.abs(found - clean).max() < 1
    assert np.quantile(np.abs(found[~is_house]), 0.9) < 0.5
    assert (found[is_house] > 3).all()


def test_a_ditch_is_ground_however_deep():
    points, _ = terrain()
    in_ditch = np.abs(points[:, 1] - 12) < 2
    points[in_ditch, 2] -= 5
    heights, _, _ = lowest_points(points, np.zeros(2), 1.0)
    # Columns 11 and 12 are within it, 8 and 15 beside it.
    assert (heights[:, [11, 12]].mean(axis=1) < heights[:, [8, 15]].mean(axis=1) - 3).all()


@pytest.mark.parametrize("count", [1, 3, 50])
def test_a_few_points_have_a_ground(count):
    points = np.random.default_rng(0).random((count, 3)) * [20, 20, 60]
    assert np.isfinite(GroundSurface.below(points, 1.0).heights).all()
