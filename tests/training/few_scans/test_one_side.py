"""The sign that a cloud is a view from one side."""

import numpy as np
import pytest

from hf_any3d.training.few_scans.one_side import fit_side, one_side
from tests.golden import assert_stored


def test_views_are_told_from_whole_scans_and_few_whole_ones_are_taken_for_views():
    generator = np.random.default_rng(0)
    # Features whose mean is not 0, of which the first tells both apart.
    whole = generator.normal(5.0, 1.0, (200, 4))
    views = whole + generator.normal(0, 0.2, whole.shape) + np.array([3.0, 0, 0, 0])
    weight, bias = fit_side(whole, views, np.arange(200) % 5, share=0.95)
    assert 0.02 < (whole @ weight + bias > 0).mean() < 0.1
    assert (views @ weight + bias > 0).mean() > 0.8
    # Scans that are in no fold say nothing of others.
    some = np.where(np.arange(200) < 100, np.arange(200) % 5, -1)
    _, other = fit_side(whole, views, some, share=0.95)
    assert other != bias and abs(other - bias) < 2


def shell(count: int) -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(count, 3))
    return 3 * points / np.linalg.norm(points, axis=1, keepdims=True) + (5, 6, 7)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_an_eye_sees_the_near_side_from_slightly_below_to_far_above(axis):
    points = shell(1000)
    elevations, azimuths = [], []
    for seed in range(16):
        seen = one_side(points, 600, axis, np.random.default_rng(seed))
        assert seen.shape == (600, 3) and {*map(tuple, seen)} <= {*map(tuple, points)}
        own = np.unique(seen, axis=0) - (5, 6, 7)
        toward = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
        assert (own @ toward > -1).mean() > 0.95 and 0.3 < len(own) / 1000 < 0.4  # nearly nothing of the far side
        up = np.roll(toward, 1 - "xyz".index(axis))
        elevations.append(np.degrees(np.arcsin(up[1])))
        azimuths.append(np.degrees(np.arctan2(up[2], up[0])))
    assert -15 < min(elevations) < 8 and 50 < max(elevations) < 65
    assert np.histogram(azimuths, 4, (-180, 180))[0].min() > 0


def test_points_are_repeated_only_if_fewer_are_seen():
    points = shell(600)
    assert len(np.unique(one_side(points, 100, "y", np.random.default_rng(0)), axis=0)) == 100
    few = one_side(points[:20], 100, "y", np.random.default_rng(0))
    assert len(few) == 100 and len(np.unique(few, axis=0)) <= 20


@pytest.mark.parametrize("points", [shell(2), np.ones((5, 3))])
def test_of_few_or_equal_points_all_are_seen(points):
    seen = one_side(points, len(points), "y", np.random.default_rng(0))
    assert sorted(map(tuple, seen)) == sorted(map(tuple, points))


def test_of_very_many_points_some_are_looked_at():
    seen = one_side(shell(60_000), 30_000, "y", np.random.default_rng(0))
    assert 1_000 < len(np.unique(seen, axis=0)) <= 16_384


def test_views_are_those_of_earlier_versions():
    seen = [one_side(shell(200), 50, axis, np.random.default_rng(3)) for axis in "xyz"]
    assert_stored(seen, [6.870542, 10.822263, 7.379955])
