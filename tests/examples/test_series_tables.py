"""Tables of series, cell by cell, and runs whose inputs have changed."""

import json
from dataclasses import replace

from examples.repeat.series import write_sweep
from hf_any3d.training.folds import run_once
from tests.errors import raises
from tests.model_card.test_building import REPORT


def figure(mean, std=0.0):
    return {"mean": mean, "std": std}


def test_a_sweep_lists_what_its_runs_measured_but_losses_and_training(tmp_path):
    first = {"train": {"accuracy": figure(1.0)}, "validation": {"accuracy": figure(0.5, 0.1), "loss": figure(2.0)}}
    second = {"validation": {"accuracy": figure(0.25)}, "test": {"mean_iou": figure(0.125), "chamfer": figure(0.02)}}
    result = {
        "arguments": ["--epochs", "3"],
        "vary": {"lr": ["1", "2", "3"], "peft": ["a"]},
        "seeds": [0, 5],
        "rows": [
            {
                "settings": {"lr": "1", "peft": "a"},
                "runs": {"0": {}, "5": {}},
                "summary": first,
                "trained_parameters": 1234,
            },
            {"settings": {"lr": "2", "peft": "a"}, "runs": {"0": {}}, "summary": second, "trained_parameters": 7},
            {"settings": {"lr": "3", "peft": "a"}, "runs": {}, "summary": {}},
        ],
    }
    write_sweep(result, tmp_path)
    assert json.loads((tmp_path / "sweep.json").read_text()) == result
    lines = (tmp_path / "sweep.md").read_text().replace("\\", "").splitlines()
    head = "| lr | peft | runs | trained parameters | validation accuracy | test mean_iou | test chamfer |"
    assert lines[0] == "# sweep" and lines[2] == head
    assert lines[4:7] == [
        "| 1 | a | 2 | 1,234 | 50.0 ± 10.0 |  |  |",
        "| 2 | a | 1 | 7 | 25.0 | 12.5 | 0.02 |",
        "| 3 | a | 0 |  |  |  |  |",
    ]
    assert lines[8].startswith("Mean ± standard deviation over the seeds 0, 5;")
    assert lines[8].endswith("Arguments of all runs: --epochs 3.")
    write_sweep(result | {"arguments": []}, tmp_path)
    assert "Arguments of all runs: none." in (tmp_path / "sweep.md").read_text()


def test_a_run_is_refused_where_its_inputs_have_changed(tmp_path):
    (data := tmp_path / "train.csv").write_text("a")
    words = ["--train_file", str(data), "--lr"]
    run = lambda words: replace(REPORT, metrics={"test": {"loss": 1.0}}).save(f"{words[-1]}/metrics.json")  # noqa: E731
    first = run_once(run, [*words, "1"], tmp_path / "run")
    assert first.metrics == {"test": {"loss": 1.0}}
    assert json.loads((tmp_path / "run" / "arguments.json").read_text()) == [*words, "1"]
    again = run_once(lambda words: 1 / 0, [*words, "1"], tmp_path / "run")
    assert again.metrics == first.metrics, "it is not repeated"
    with raises(ValueError, naming="--lr"):
        run_once(run, [*words, "2"], tmp_path / "run")
    data.write_text("b")
    with raises(ValueError, naming="train.csv"):
        run_once(run, [*words, "1"], tmp_path / "run")
