"""The measurement of attention across the batch: orders of the test clouds, and the program as a whole."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.examples.conftest import EXAMPLES, imported_beside_others, tiny_shapes


@pytest.fixture(scope="module")
def bench():
    with imported_beside_others("sound_and_faithful", EXAMPLES / "benchmarks") as program:
        yield program


class ByExtent(nn.Module):
    """Answers with the rounded extent of each cloud: batches play no part."""

    def forward(self, points):
        extent = points.abs().amax(dim=(1, 2)).round().long()
        return SimpleNamespace(logits=nn.functional.one_hot(extent, 4).float())


class ByCompany(nn.Module):
    """Answers for all clouds of a batch what the first one is."""

    def forward(self, points):
        answer = points.abs().amax(dim=(1, 2)).round().long()[:1].expand(len(points))
        return SimpleNamespace(logits=nn.functional.one_hot(answer, 4).float())


@pytest.fixture
def clouds():
    labels = np.array([2, 0, 1, 2, 0, 1, 2, 0])
    return torch.as_tensor(labels, dtype=torch.float32)[:, None, None].expand(-1, 4, 3), labels


def test_predictions_come_back_in_the_order_of_the_clouds(bench, clouds):
    points, labels = clouds
    order = np.array([3, 1, 7, 0, 2, 5, 4, 6])
    assert bench.predict(ByExtent(), points, order, 3).tolist() == labels.tolist()


def test_a_model_that_keeps_clouds_apart_answers_alike_in_every_order(bench, clouds):
    measured = bench.measure(ByExtent(), *clouds, batch_size=3)
    assert [measured[name] for name in bench.ACCURACIES] == [1, 1, 1]
    assert [measured[name] for name in bench.CHANGES] == [0, 0, 0]


def test_a_model_that_reads_its_company_profits_from_sorted_batches(bench, clouds):
    measured = bench.measure(ByCompany(), *clouds, batch_size=3)
    assert measured["single"] == 1
    assert measured["sorted"] == 7 / 8
    assert measured["shuffled"] < measured["sorted"]
    assert measured["sorted_single"] == 1 / 8
    assert 0 < measured["sorted_shuffled"] <= 1


def test_only_the_faithful_wrap_has_the_accidents(bench):
    options = bench.parse([])
    sound, faithful = (bench.settings_of(arm, options)["model"] for arm in ("sound", "faithful"))
    assert set(faithful) - set(sound) == set(bench.ACCIDENTS)
    assert faithful["attention_axis"] == "batch"


@pytest.mark.slow
def test_the_program_trains_tests_and_goes_on_where_it_stopped(bench, tiny_encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "load_point_dataset", lambda name: tiny_shapes())
    monkeypatch.setitem(bench.recipe.TRAINING, "per_device_train_batch_size", 4)
    options = ["--output-dir", str(tmp_path), "--encoder", tiny_encoder, "--epochs", "1", "--seeds", "0"]
    options += ["--arms", "sound", "faithful", "--batch-size", "3"]
    with pytest.warns(UserWarning, match="depend on the other clouds of a batch"):
        bench.main(options)
    summary = json.loads((tmp_path / "sound_and_faithful.json").read_text())
    sound, faithful = summary["rows"]
    assert [sound[name] for name in bench.CHANGES] == [0, 0, 0]
    assert sound["sorted"] == sound["shuffled"] == sound["single"]
    assert faithful["cpu_seconds"] > 0
    assert "| faithful to the released program |" in (tmp_path / "sound_and_faithful.md").read_text()
    monkeypatch.setattr(bench, "train_once", None)
    bench.main(options)
    assert "sorted by class" in capsys.readouterr().out
