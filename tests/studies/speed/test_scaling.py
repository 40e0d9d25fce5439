"""Scaling curves: fitted exponents, and what grows faster than it should ends with an error."""

import json

import numpy as np
import pytest

from studies.speed import scaling


@pytest.fixture
def curves(monkeypatch):
    """Curves whose operations move the clock by hand."""
    clock = [0.0]

    def costing(power):
        def prepare(size, folder):
            return lambda: clock.__setitem__(0, clock[0] + size**power)

        return prepare

    found = {
        "linear": scaling.Curve("numbers", (10, 100, 1000), 1, costing(1)),
        "quadratic": scaling.Curve("rows of a square", (10, 100, 2000), 1, costing(2)),
    }
    monkeypatch.setattr(scaling, "CURVES", found)
    monkeypatch.setattr(scaling.time, "process_time", lambda: clock[0])


def test_exponent_is_fitted_to_the_larger_sizes():
    sizes = np.array([1, 2, 4, 8, 16, 32])
    seconds = np.where(sizes < 8, 5.0, 0.1 * sizes**1.5)
    assert scaling.fitted_exponent(sizes, seconds) == pytest.approx(1.5)


def test_growth_above_the_known_complexity_is_an_error(curves, tmp_path, capsys):
    output, plot = tmp_path / "scaling.json", tmp_path / "scaling.png"
    with pytest.raises(SystemExit, match="above the known complexity: quadratic"):
        scaling.main(["--output", str(output), "--plot", str(plot)])
    measured = json.loads(output.read_text())["curves"]
    assert measured["quadratic"]["exponent"] == pytest.approx(2) and measured["linear"]["exponent"] == pytest.approx(1)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "| rows of a square | 10 · 100 · 2,000 |" in capsys.readouterr().out


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
