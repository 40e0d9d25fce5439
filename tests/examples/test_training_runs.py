"""What training benchmarks share: runs are kept, figures go over seeds."""

import json

import pytest

from tests.examples.conftest import imported_beside_others


@pytest.fixture(scope="module")
def shared():
    with imported_beside_others("training_runs") as module:
        yield module


def test_a_kept_run_is_read_back_until_its_settings_change(shared, tmp_path):
    calls = []

    def run():
        calls.append(1)
        return {"accuracy": 0.5}

    path = tmp_path / "runs" / "a-0.json"
    first = shared.kept_run(path, {"epochs": 1}, run)
    assert shared.kept_run(path, {"epochs": 1}, run) == first
    assert len(calls) == 1
    shared.kept_run(path, {"epochs": 2}, run)
    assert len(calls) == 2
    assert json.loads(path.read_text())["settings"] == {"epochs": 2}


def test_a_run_that_fails_leaves_nothing_behind(shared, tmp_path):
    def run():
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        shared.kept_run(tmp_path / "a-0.json", {}, run)
    assert not list(tmp_path.iterdir())


def test_figures_over_seeds_have_the_sample_deviation(shared):
    row = shared.over_seeds([{"accuracy": 0.5}, {"accuracy": 0.7}], ["accuracy"])
    assert row == pytest.approx({"accuracy": 0.6, "accuracy_std": 0.2 / 2**0.5})
    assert shared.percent(row, "accuracy") == "60.0 ± 14.1"
    assert shared.over_seeds([{"accuracy": 0.5}], ["accuracy"])["accuracy_std"] == 0
    assert shared.percent({"accuracy": 0.5}, "accuracy") == "50.0"


def test_settings_hold_every_changed_setting_of_the_training(shared):
    settings = shared.recipe_settings({"num_train_epochs": 7}, model={"head_widths": (2,)})
    assert settings["training"]["num_train_epochs"] == 7
    assert settings["model"] == {"head_widths": [2]}
    assert json.loads(json.dumps(settings)) == settings
