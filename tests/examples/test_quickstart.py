"""The quickstart, with a small encoder and few steps."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import KDTree
from transformers import TrainerState

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


@pytest.mark.parametrize("options", [[], ["--compare"]])
def test_a_pointnet_is_trained_on_request(options, run, monkeypatch):
    titles = []

    def train(title, model, splits, given):
        titles.append(title)
        if title.startswith("wrap"):
            raise InterruptedError
        return {}, None

    monkeypatch.setattr(quickstart, "train", train)
    with pytest.raises(InterruptedError):
        run(*options)
    assert titles == ["PointNet from scratch"][: len(options)] + ["wrap, pretrained encoder"]


def test_answers_come_evenly_and_are_those_of_the_model_by_then(capsys, monkeypatch):
    answers = iter(range(10))

    class Classify:
        """Stands in for the pipeline; the score counts the questions."""

        model = torch.nn.Linear(1, 1)

        def __call__(self, clouds, top_k):
            assert not self.model.training and len(clouds) == 1 and top_k == 2
            return [[{"label": "chair", "score": next(answers) / 10}, {"label": "bed", "score": 0.0}]]

    monkeypatch.setattr(quickstart, "pipeline", lambda *_, **__: Classify())
    callback, state = quickstart.Answers(Classify.model), TrainerState(max_steps=12)
    for step in range(1, 13):
        Classify.model.train()
        state.global_step, state.epoch = step, step / 2
        callback.on_step_end(None, state, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "epoch 1: chair.ply is a chair 0 %, then bed 0 %" and len(lines) == 6
    assert lines[-1] == "epoch 6: chair.ply is a chair 50 %, then bed 0 %"


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


def test_votes_are_the_mean_logits_of_augmented_copies():
    rows = quickstart.load_point_dataset("shapes")["test"].select(range(6))
    seen = []

    class Classifier:
        """Stands in for a trainer; logits are the extents of the clouds."""

        args = SimpleNamespace(dataloader_drop_last=True)

        def predict(self, copies):
            seen.append(np.stack([np.asarray(copies[row]["points"])[:, :3] for row in range(len(copies))]))
            return SimpleNamespace(predictions=np.ptp(seen[-1], axis=1))

    first = quickstart.vote(Classifier(), rows, seed=1, votes=3)
    assert not Classifier.args.dataloader_drop_last
    np.testing.assert_allclose(first, np.mean([np.ptp(copies, axis=1) for copies in seen], axis=0))
    plain = np.ptp(np.asarray(rows["points"])[..., :3], axis=1)
    ratios = np.stack([np.ptp(copies, axis=1) / plain for copies in seen])  # (votes, rows, axes)
    assert ratios.min() >= 0.8 - 1e-5 and ratios.max() <= 1.25 + 1e-5 and ratios.std(axis=0).min() > 1e-3
    np.testing.assert_array_equal(quickstart.vote(Classifier(), rows, seed=1, votes=3), first)
    assert len(seen) == 6 and len(np.asarray(rows["points"])) == 6
    quickstart.vote(Classifier(), rows, seed=1)
    assert len(seen) == 6 + quickstart.VOTES
