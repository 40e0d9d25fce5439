"""The packaged classifier's head, and the program that makes the model."""

import json
from pathlib import Path

import numpy as np
import torch

from examples import train_default_model as program, unknown_things
from hf_any3d.modeling.layers.heads import ClassificationHead
from hf_any3d.pipelines import default_model
from hf_any3d.training.few_scans.no_class import draw_things
from tests.errors import raises
from tests.examples.test_unknown_things import upright_rows


def test_others_are_of_all_kinds_and_what_lies_is_of_an_upright_class(monkeypatch):
    rows = upright_rows()
    monkeypatch.setattr(program, "OTHERS", {"lying": 1.0})
    monkeypatch.setattr(program, "draw_things", lambda count: draw_things(count, 64))
    things = program.draw_others(rows, 5, 14)
    assert things.shape[0] == 19 and all(np.ptp(thing, axis=0).argmax() == 0 for thing in things[:5])
    assert np.allclose(np.linalg.norm(things[5:], axis=2).max(axis=1), 1)
    cloud = rows["points"][:][:1]
    sliver = unknown_things.draw_stranger("sliver", cloud, cloud, np.random.default_rng(0))
    assert sliver.shape == (64, 3) and len(np.unique(sliver, axis=0)) < 10
    with raises(ValueError, naming="kind is 'cat'"):
        unknown_things.draw_stranger("cat", cloud, cloud, np.random.default_rng(0))


def test_a_head_is_sure_of_what_it_learned_and_not_of_others(monkeypatch):
    monkeypatch.setitem(program.TRAINING, "steps", 200)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = 4 * torch.eye(6)[labels] + 0.3 * torch.randn(60, 6, generator=generator)
    others = 4 * torch.eye(6)[5] + 0.3 * torch.randn(40, 6, generator=generator)
    head = ClassificationHead(6, 3, [16], dropout=0.5)
    program.learn_head(head, features, labels, others)
    with torch.no_grad():
        known, strange = head(features).softmax(-1), head(others).softmax(-1)
    assert (known.argmax(-1) == labels).all() and known.amax(-1).mean() > 0.7 > 0.5 > strange.amax(-1).mean()


def test_it_is_made_by_one_command(tmp_path, monkeypatch):
    monkeypatch.setitem(program.TRAINING, "steps", 2)
    monkeypatch.setattr(program, "THINGS", 7)
    monkeypatch.setattr(program, "HEADINGS", 1)
    monkeypatch.setattr(unknown_things, "THINGS", 10)  # one of each unlabeled class
    folder = tmp_path / "default_model"
    program.main(["--copies", "1", "--output-dir", str(folder)])
    assert {file.name for file in folder.iterdir()} == {file.name for file in Path(default_model()).iterdir()}
    assert json.loads((folder / "metrics.json").read_text())["training"]["steps"] == 2
