"""Colors by features: groups of equal features are told apart, whatever their number and order."""

import numpy as np
import pytest

from hf_any3d.visualization.feature_colors import feature_colors
from tests.golden import assert_stored


def groups(points: int = 600) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    group = np.arange(points) % 4
    return random.normal(0, 5, (4, 12))[group] + random.normal(0, 0.1, (points, 12)), group


def test_groups_of_features_have_colors_of_their_own():
    features, group = groups()
    colors = feature_colors(features)
    assert colors.shape == (600, 3) and colors.dtype == np.float32 and 0 <= colors.min() < colors.max() <= 1
    means = np.stack([colors[group == number].mean(axis=0) for number in range(4)])
    spread = max(colors[group == number].std(axis=0).max() for number in range(4))
    apart = [np.abs(a - b).max() for number, a in enumerate(means) for b in means[:number]]
    assert min(apart) > 10 * spread


def test_colors_of_many_points_come_from_a_sample():
    features, _ = groups()
    expected = feature_colors(features)
    for times in (40, 400):  # more than the sample, and than are projected at a time
        many = feature_colors(np.tile(features, (times, 1))).reshape(times, 600, 3)
        assert np.abs(many - expected).max() < 0.1


def test_bad_features_are_refused():
    for bad in (np.zeros((5, 2)), np.zeros((0, 4)), np.full((5, 4), np.nan)):
        with pytest.raises(ValueError, match="features have shape"):
            feature_colors(bad)


def test_colors_are_those_of_earlier_versions():
    assert_stored(list(feature_colors(groups()[0]).T), [0.426095, -0.882179, -0.610542])
