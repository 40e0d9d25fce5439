"""Stored runs, and figures over seeds."""

import json

import pytest

from studies import runs
from tests.errors import raises


def test_stored_run_is_read_back_until_its_settings_change(tmp_path):
    calls = []

    def run():
        calls.append(1)
        return {"accuracy": 0.5}

    path = tmp_path / "runs" / "a-0.json"
    first = runs.kept_run(path, {"epochs": 1}, run)
    assert runs.kept_run(path, {"epochs": 1}, run) == first
    assert len(calls) == 1
    runs.kept_run(path, {"epochs": 2}, run)
    assert len(calls) == 2
    assert json.loads(path.read_text())["settings"] == {"epochs": 2}


def test_failed_run_stores_nothing(tmp_path):
    def run():
        raise RuntimeError("stopped")

    with raises(RuntimeError, naming="stopped"):
        runs.kept_run(tmp_path / "a-0.json", {}, run)
    assert not list(tmp_path.iterdir())


def test_figures_over_seeds_have_the_sample_deviation():
    row = runs.over_seeds([{"accuracy": 0.5}, {"accuracy": 0.7}], ["accuracy"])
    assert row == pytest.approx({"accuracy": 0.6, "accuracy_std": 0.2 / 2**0.5})
    assert runs.percent(row, "accuracy") == "60.0 ± 14.1"
    assert runs.over_seeds([{"accuracy": 0.5}], ["accuracy"])["accuracy_std"] == 0
    assert runs.percent({"accuracy": 0.5}, "accuracy") == "50.0"


def test_settings_have_every_changed_training_setting():
    settings = runs.training_settings({"num_train_epochs": 7}, model={"head_widths": (2,)})
    assert settings["training"]["num_train_epochs"] == 7
    assert settings["model"] == {"head_widths": [2]}
    assert json.loads(json.dumps(settings)) == settings


def test_folder_is_emptied_when_settings_changed(tmp_path):
    runs.reset_if_changed(tmp_path / "run", {"steps": 1})
    (tmp_path / "run" / "checkpoint").write_text("half")
    runs.reset_if_changed(tmp_path / "run", {"steps": 1})
    assert (tmp_path / "run" / "checkpoint").is_file()
    runs.reset_if_changed(tmp_path / "run", {"steps": 2})
    assert not (tmp_path / "run" / "checkpoint").exists()
