"""The search for a recipe: its arms, the average of weights, and figures compared seed by seed."""

import json

import pytest
import torch
from torch import nn

from examples import quickstart
from examples.studies import recipe


def test_an_arm_changes_what_it_names_and_nothing_else():
    base, changed = recipe.settings_of("recipe"), recipe.settings_of("tokens_64")
    assert changed["model"] == {**base["model"], "num_tokens": 64}
    assert {**changed, "model": None} == {**base, "model": None}
    assert recipe.settings_of("mild")["augmentation"] != base["augmentation"] == quickstart.AUGMENTATION


def test_the_average_is_that_of_all_steps():
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("variance", torch.ones(1))
    average = recipe.MovingAverage(decay=0.99)
    for value in (1.0, 3.0, 5.0):
        nn.init.constant_(model.weight, value)
        model.variance.fill_(value)
        average.on_step_end(None, None, None, model=model)
    assert average.weights["weight"].item() == pytest.approx(0.99 * (0.99 * 1 + 0.01 * 3) + 0.01 * 5)
    assert average.weights["variance"].item() == model.weight.item() == 5


def test_scores_are_those_of_the_logits():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).numpy()
    found = recipe.scores(logits, torch.tensor([0, 0, 1]).numpy())
    assert found["accuracy"] == pytest.approx(1 / 3) and found["mean_class_accuracy"] == pytest.approx(1 / 4)
    expected = nn.functional.cross_entropy(torch.tensor(logits), torch.tensor([0, 0, 1]))
    assert found["loss"] == pytest.approx(float(expected))


@pytest.fixture
def runs(tiny_encoder, tmp_path, monkeypatch):
    """Results of two arms after two steps."""
    monkeypatch.setattr(quickstart, "ENCODER", tiny_encoder)
    monkeypatch.setitem(quickstart.MODEL, "num_layers", None)
    monkeypatch.setitem(quickstart.TRAINING, "max_steps", 2)
    monkeypatch.setattr(recipe, "VOTES", 2)
    recipe.main(["--arms", "recipe", "smoothing_0.2", "--seeds", "3", "--threads", "1", "--output-dir", str(tmp_path)])
    return tmp_path


def test_a_search_compares_validation_shapes_in_every_way(runs):
    stored = json.loads((runs / "recipe.json").read_text())
    assert stored["looks"] == 2 * len(recipe.WAYS)
    first, second = stored["rows"]
    assert first["last"]["accuracy_gain"] == 0
    for name in recipe.FIGURES:
        gain = second["votes"][name] - first["last"][name]
        assert second["votes"][f"{name}_gain"] == pytest.approx(gain)
    shapes = len(quickstart.load_point_dataset("shapes")["train"])
    assert all(sum(run["shapes"].values()) == shapes for run in stored["runs"])
    assert "| label smoothing 0.2 |" in (runs / "recipe.md").read_text()
