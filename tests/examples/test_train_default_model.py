"""The packaged classifier's head, and the program that makes the model."""

import json
from pathlib import Path

import numpy as np
import torch

from examples import train_default_model as program, unknown_things
from hf_any3d.modeling.layers.heads import ClassificationHead
from hf_any3d.pipelines import default_model
from tests.errors import raises
from tests.examples.test_unknown_things import upright_rows


def test_what_lies_is_of_an_upright_class_and_slivers_are_parts():
    rows = upright_rows()
    clouds, generator = rows["points"][:], np.random.default_rng(0)
    lying = unknown_things.draw_stranger("lying", clouds, clouds[[0, 1]], generator)
    assert np.ptp(lying, axis=0).argmax() == 0
    sliver = unknown_things.draw_stranger("sliver", clouds[:1], clouds, generator)
    assert sliver.shape == (64, 3) and len(np.unique(sliver, axis=0)) < 10
    things = program.draw_others(rows, 0, 14)
    assert things.shape == (14, 64, 3) and np.allclose(np.linalg.norm(things, axis=2).max(axis=1), 1)
    with raises(ValueError, naming="kind is 'cat'"):
        unknown_things.draw_stranger("cat", clouds, clouds, generator)


def test_a_head_is_sure_of_what_it_learned_and_not_of_others():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = 4 * torch.eye(6)[labels] + 0.3 * torch.randn(60, 6, generator=generator)
    others = 4 * torch.eye(6)[5] + 0.3 * torch.randn(40, 6, generator=generator)
    head = ClassificationHead(6, 3, [16], dropout=0.5)
    program.learn_head(head, features, labels, others, steps=200)
    with torch.no_grad():
        known, strange = head(features).softmax(-1), head(others).softmax(-1)
    assert (known.argmax(-1) == labels).all() and known.amax(-1).mean() > 0.7 > 0.5 > strange.amax(-1).mean()


def test_it_is_made_by_one_command(tmp_path):
    folder = tmp_path / "default_model"
    program.main(["--copies", "1", "--steps", "2", "--output-dir", str(folder)])
    assert {file.name for file in folder.iterdir()} == {file.name for file in Path(default_model()).iterdir()}
    assert json.loads((folder / "metrics.json").read_text())["training"]["steps"] == 2
