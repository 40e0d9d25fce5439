"""Why `predict` finds a cloud unlike those of a model's training: on its side, or a whole room."""

import importlib

import numpy as np
import pytest
from typer.testing import CliRunner

from hf_any3d import PointCloudProcessor, PointFeaturesForPointCloudClassification
from hf_any3d.cli import app
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.no_object import why_no_object
from tests.common.case import varied_clouds
from tests.tiny_features import fitted, tiny_features

predict = importlib.import_module("hf_any3d.cli.predict")  # its name in the package is that of the command


def walls(size):
    """Floor and three walls, as seen from inside."""
    points = np.random.default_rng(0).uniform(size=(400, 3))
    for number, (axis, side) in enumerate(((1, 0), (0, 0), (0, 1), (2, 0))):
        points[number::4, axis] = side
    return (points * size).astype(np.float32)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (walls((5, 2.5, 4)), "5.0 × 2.5 × 4.0 in size, in meters a whole room"),
        (walls((5, 1, 4)), None),
        (walls((500, 250, 400)), None),
        (np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32) * 0.5, None),
        (walls((1, 1, 1))[:3], "3 points show no shape"),
    ],
)
def test_a_room_and_a_handful_of_points_are_told_whatever_a_model_says_of_them(points, reason):
    found = why_no_object(PointCloudData(points), "y")
    assert found is None if reason is None else found.startswith(reason)


def test_the_reason_is_told_on_stderr_of_unlike_clouds_alone(tmp_path, monkeypatch):
    model = fitted(tiny_features(PointFeaturesForPointCloudClassification))
    monkeypatch.setattr(predict, "MUCH_LESS", -99.0)  # whatever it looks like when it is turned
    model.save_pretrained(tmp_path / "model")
    PointCloudProcessor(num_points=48, center=False, scale=None).save_pretrained(tmp_path / "model")
    turn = np.linspace(0, 40, 48)
    helix = np.stack([9 * np.cos(turn), 9 * turn - 180, 9 * np.sin(turn)], axis=1)
    for name, cloud in (("known", varied_clouds(24, seed=7)[0].numpy()), ("strange", helix)):
        np.save(tmp_path / f"{name}.npy", cloud.astype(np.float32))
    files = [str(tmp_path / f"{name}.npy") for name in ("known", "strange")]
    done = CliRunner().invoke(app, ["predict", *files, "--model", str(tmp_path / "model")])
    (line,) = [line for line in done.stderr.splitlines() if "points up" in line]
    assert "strange.npy: if " in line and "try --up-axis" in line
    without = CliRunner().invoke(app, ["predict", *files, "--model", str(tmp_path / "model"), "--no-unknown"])
    assert without.exit_code == 0 and "points up" not in without.stderr
