"""`hf-any3d reconstruct` on a tiny saved autoencoder."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from hf_any3d import read_point_cloud
from tests.cli.conftest import run
from tests.tiny_encoders import clouds

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


@pytest.fixture
def model(models):
    return models("autoencoder")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("scans")
    for name, cloud in zip(("chair", "lamp"), clouds(2, 60), strict=True):
        np.save(directory / f"{name}.npy", cloud.numpy())
    return directory


@pytest.mark.slow
def test_scores_and_codes_are_those_of_the_pipeline(model, files):
    code, printed, _ = run("reconstruct", model, files, "--json", "--threshold", 0.2)
    expected = pipeline("point-cloud-reconstruction", model=model)(str(files / "lamp.npy"), threshold=0.2)
    results = json.loads(printed)
    assert code == 0 and [Path(entry["file"]).name for entry in results] == ["chair.npy", "lamp.npy"]
    assert results[1]["token_ids"] == expected["token_ids"].tolist()
    for name in ("chamfer_l1", "chamfer_l2", "f_score"):
        assert results[1][name] == pytest.approx(expected[name])


@pytest.mark.slow
def test_the_suffix_of_the_output_selects_the_format(model, files, tmp_path):
    for name, given in (("a.html", files), ("a.png", files), ("b/a.ply", files / "chair.npy"), ("folder", files)):
        assert run("reconstruct", model, given, "--output", tmp_path / name)[0] == 0
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "chair.npy" in page and "lamp.npy" in page
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(read_point_cloud(tmp_path / "b" / "a.ply")) == 48
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == ["chair.html", "chair.ply", "lamp.html", "lamp.ply"]
