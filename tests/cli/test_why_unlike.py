"""Why `predict` finds a cloud unlike those of a model's training: it may lie on its side."""

import numpy as np
import pytest
from typer.testing import CliRunner

from hf_any3d import PointCloudProcessor, PointFeaturesForPointCloudClassification
from hf_any3d.cli import app
from hf_any3d.tasks.classification import answer
from tests.common.case import varied_clouds
from tests.tiny_features import fitted, tiny_features


@pytest.mark.slow
def test_the_reason_is_told_on_stderr_of_unlike_clouds_alone(tmp_path, monkeypatch):
    model = fitted(tiny_features(PointFeaturesForPointCloudClassification))
    monkeypatch.setattr(answer, "MUCH_LESS", -99.0)  # whatever it looks like when it is turned
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
