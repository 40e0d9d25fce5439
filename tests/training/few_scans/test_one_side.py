"""The sign that a cloud is a view from one side."""

import numpy as np

from hf_any3d.training.few_scans.one_side import fit_side, one_side


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


def test_of_very_many_points_some_are_looked_at():
    seen = one_side(shell(60_000), 30_000, "y", np.random.default_rng(0))
    assert 1_000 < len(np.unique(seen, axis=0)) <= 16_384
