"""The quickstart, with a small encoder and few steps."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import KDTree

from examples import quickstart
from hf_any3d import read_point_cloud

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tiny_encoder, tmp_path, monkeypatch, capsys):
    """Output and folder of a short run."""
    monkeypatch.setattr(quickstart, "ENCODER", tiny_encoder)
    monkeypatch.setitem(quickstart.MODEL, "num_layers", None)
    monkeypatch.setattr(quickstart, "VOTES", 2)

    def start(*options):
        quickstart.main(["--output-dir", str(tmp_path), "--max-steps", "2", "--threads", "1", *options])
        return capsys.readouterr().out, tmp_path

    return start


@pytest.mark.slow
def test_quickstart_trains_draws_saves_and_classifies(run):
    printed, folder = run()
    assert "majority class" in printed and "wrap, pretrained encoder" in printed and "PointNet" not in printed
    assert len(re.findall(r"^epoch \d+: chair.ply is a \w+ \d+ %, then \w+ \d+ %$", printed, re.MULTILINE)) == 2
    for file in quickstart.FILES:
        assert re.search(rf"{file} +\w+ +\d+\.\d %   (right|WRONG)", printed)
    assert re.search(r"\d of 6 right", printed) and "Try next" in printed
    with Image.open(folder / "shapes.png") as picture:
        assert picture.width > 800
    stored = {file.name for file in (folder / "model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "preprocessor_config.json"} <= stored


@pytest.mark.slow
def test_files_and_their_near_duplicates_are_not_in_training():
    splits = quickstart.load_point_dataset("shapes")
    kept = quickstart.without_files(splits["train"])
    names = {name for name, _ in quickstart.FILES.values()}
    assert names <= set(splits["train"]["name"]) and not names & set(kept["name"])
    gone = {row["group"] for row in splits["train"].select_columns(["name", "group"]) if row["name"] in names}
    assert not gone & set(kept["group"])
    assert len(kept) == len(splits["train"]) - sum(group in gone for group in splits["train"]["group"])


def test_each_file_is_the_mesh_of_its_row():
    rows = quickstart.load_point_dataset("shapes")["train"]
    labels = rows.features["label"]
    for file, (name, label) in quickstart.FILES.items():
        (row,) = (row for row in rows.filter(lambda other, name=name: other == name, input_columns="name"))
        assert labels.int2str(int(row["label"])) == label
        points = read_point_cloud(quickstart.DATA / file).sample_surface(4096).points
        points = points - points.mean(axis=0)
        points /= np.linalg.norm(points, axis=1).max()
        distance, _ = KDTree(points).query(np.asarray(row["points"]))
        assert distance.mean() < 0.035, file  # shapes have radius 1; other shapes are 0.1 and more away


def test_quickstart_shows_an_answer_before_it_trains_or_downloads():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = makefile.partition("\nquickstart:")[2].partition("\n\n")[0]
    steps = [commands.index(step) for step in ("hf-any3d predict", "fetch_encoder.py", "quickstart.py")]
    assert steps == sorted(steps)
    assert "chair.ply" in commands and "stool.ply" in commands
