"""Scaling curves: fitted exponents, and what their operations process."""

import numpy as np
import pytest

from studies.speed import scaling


def test_exponent_is_fitted_to_the_larger_sizes():
    sizes = np.array([1, 2, 4, 8, 16, 32])
    seconds = np.where(sizes < 8, 5.0, 0.1 * sizes**1.5)
    assert scaling.fitted_exponent(sizes, seconds) == pytest.approx(1.5)


# What is left out differs from "views" in numbers only.
DONE = {
    "points, sampled": lambda size, index: index.shape == (1, 128, 32) and index.max() < size,
    "points, classified": lambda size, labels: len(labels) == 1 and labels[0]["score"] > 0.05,
    "points, segmented": lambda size, scene: len(scene["labels"]) == size,
    "voxels": lambda size, output: 0 < output.last_hidden_state.shape[1] < size,
    "views": lambda size, loss: 1 < loss < 10,
    "rows": lambda size, clouds: clouds == size,
    "files": lambda size, clouds: clouds == size,
}


@pytest.mark.parametrize("name", DONE)
def test_operations_process_what_their_size_says(name, tmp_path):
    curve = scaling.CURVES[name]
    size = curve.sizes[0]
    assert DONE[name](size, curve.prepare(size, tmp_path)())
