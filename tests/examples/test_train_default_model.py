"""The packaged classifier's training beside things of no class."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers.modeling_outputs import SequenceClassifierOutput

from examples import quickstart, train_default_model as program
from hf_any3d.pipelines import default_model
from tests.errors import raises
from tests.examples.test_unknown_things import upright_rows


@pytest.fixture
def rows() -> Dataset:
    return upright_rows()


def test_rows_come_first_and_others_are_drawn_anew(rows):
    dataset = program.WithOthers(rows, {}, {"noise": 1.0})
    assert len(dataset) == 9 and [int(dataset[number]["label"]) for number in range(6)] == [0, 1, 2] * 2
    torch.manual_seed(0)
    first, second = dataset[6], dataset[6]
    assert first["label"] == program.NO_CLASS and first["points"].shape[1] == 3
    assert not np.array_equal(first["points"], second["points"])


def test_what_lies_is_of_an_upright_class_and_slivers_are_parts(rows):
    dataset = program.WithOthers(rows, {}, {"lying": 1.0})
    assert set(dataset.upright) == {0, 1, 3, 4}  # beds and chairs
    points = dataset[7]["points"]
    assert np.ptp(points, axis=0).argmax() == 0
    cloud = dataset.clouds[:1]
    sliver = program.draw_stranger("sliver", cloud, cloud, np.random.default_rng(0))
    assert sliver.shape == (64, 3) and len(np.unique(sliver, axis=0)) < 10
    with raises(ValueError, naming="kind is 'cat'"):
        program.draw_stranger("cat", cloud, cloud, np.random.default_rng(0))


def test_the_loss_wants_equal_scores_for_others_and_the_class_for_the_rest():
    labels = torch.tensor([1, program.NO_CLASS])
    even, sure = torch.zeros(2, 3), torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 0.0]])
    mixed = torch.stack([sure[0], even[1]])
    losses = [program.doubting_loss(SequenceClassifierOutput(logits=logits), labels) for logits in (mixed, even, sure)]
    assert losses[0] < losses[1] and losses[0] < losses[2]
    # Without others it is the loss of the other stages.
    known = SequenceClassifierOutput(logits=torch.randn(4, 3)), torch.tensor([0, 1, 2, 0])
    assert torch.allclose(program.doubting_loss(*known), quickstart.smoothed_loss(*known))


def test_it_is_made_by_one_command(tmp_path):
    folder = tmp_path / "default_model"
    program.main(["--max-steps", "2", "--output-dir", str(folder)])
    assert {file.name for file in folder.iterdir()} == {file.name for file in Path(default_model()).iterdir()}
    assert json.loads((folder / "metrics.json").read_text())["training"]["steps"] == 2
