"""Models trained with estimated normals: learned, saved, told in the card, and estimated again when they answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_any3d import PointCloudProcessor
from hf_any3d.data.files import PointCloudData, write_point_cloud
from tests.cli.conftest import run
from tests.cli.test_train import SMALL
from tests.tiny_encoders import saved_encoder

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")
WAYS = {
    "features": ("--way", "features", "--points", 64, "--copies", 1, "--feature_sets", "descriptors", "--unlike", 7),
    "trained": ("--way", "trained", "--model_type", "pointnet", "--max_steps", 1, "--points", 64, "--use_cpu"),
}
WITH_NORMALS = ("--features", "xyz", "normals")


def write_scans(folder: Path) -> Path:
    """Write balls and sticks: clouds, one of them with normals, and a mesh."""
    for label, size in (("ball", [1, 1, 1]), ("stick", [0.3, 2, 0.3])):
        (folder / label).mkdir(parents=True)
        for number in range(5):
            points = np.random.default_rng(number).normal(size=(90, 3)) * size
            points /= np.linalg.norm(points / size, axis=1, keepdims=True)
            write_point_cloud(folder / label / f"{number}.ply", PointCloudData(points.astype(np.float32)))
    # Of another scan, as twins with two labels are refused.
    own = PointCloudData(
        (2 * points[:, [1, 2, 0]] ** 3).astype(np.float32), normals=np.tile(np.float32([0, 0, 1]), (90, 1))
    )
    write_point_cloud(folder / "ball" / "own.ply", own)
    (folder / "stick" / "mesh.off").write_text("OFF\n4 2 0\n0 0 0\n1 0 0\n0 3 0\n0 0 1\n3 0 1 2\n3 0 1 3\n")
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_a_model_learns_from_estimated_normals_and_estimates_them_again(way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scans(tmp_path / "scans")
    words = ("train", "scans", *WAYS[way], *WITH_NORMALS)
    refused = run(*words, "--output", "without")
    assert refused.code != 0 and "has no normals" in refused.err and "--estimate-normals" in refused.err, refused.err
    with pytest.warns(UserWarning, match="normals of clouds that have none are estimated"):
        learned = run(*words, "--estimate-normals", "--output", "model")
    assert learned.code == 0, learned.err
    assert PointCloudProcessor.from_pretrained("model").estimate_normals is True
    assert "estimated from 24 neighbors where a cloud has none" in (tmp_path / "model" / "README.md").read_text()
    answered = run("predict", "scans/ball/0.ply", "--model", "model", "--json")
    assert answered.code == 0, answered.err
    assert "no normals: estimated from 24 neighbors, outwards" in json.loads(answered.out)[0]["warnings"][0]
    with pytest.warns(UserWarning, match="normals of clouds that have none are estimated"):
        evaluated = run("evaluate", "model", "scans")
    assert evaluated.code == 0, evaluated.err


def test_points_of_tables_are_labeled_with_estimated_normals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    points = np.random.default_rng(0).normal(size=(6, 80, 3)).astype(np.float32)
    Dataset.from_dict({"points": points.tolist(), "labels": [[0, 1] * 40] * 6}).to_parquet("rooms.parquet")
    encoder = saved_encoder("bert")
    words = (
        "train",
        "rooms.parquet",
        "--encoder",
        encoder,
        "--output",
        "model",
        *SMALL,
        "--max_steps",
        1,
        *WITH_NORMALS,
    )
    refused = run(*words)
    assert refused.code == 1 and "normals" in refused.err and "--estimate-normals" in refused.err, refused.err
    learned = run(*words, "--estimate-normals")
    assert learned.code == 0, learned.err
    assert "estimated from 24 neighbors" in (tmp_path / "model" / "README.md").read_text()


def test_estimated_normals_that_nobody_reads_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = run("train", "shapes", "--estimate-normals")
    assert refused.code == 1 and "add normals to the features" in refused.err, refused.err
