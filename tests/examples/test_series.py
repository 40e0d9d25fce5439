"""Series of runs: few-shot folds and sweeps."""

import json
from dataclasses import replace

import pytest

from examples.repeat.series import sweep
from hf_any3d.training.folds import run_folds
from tests.model_card.test_building import REPORT


class Program:
    """Write a report whose accuracy is a tenth of the fold; can fail at one."""

    def __init__(self, fails_at: int | None = None):
        self.ran, self.fails_at = [], fails_at

    def __call__(self, words: list[str]):
        fold, folder = int(words[words.index("--fold") + 1]), words[words.index("--output_dir") + 1]
        if fold == self.fails_at:
            raise KeyboardInterrupt
        self.ran.append(fold)
        report = replace(REPORT, metrics={"test": {"accuracy": fold / 10}, "test_voting": {"accuracy": 0.5}})
        report.save(f"{folder}/metrics.json")
        return report


def fold_words(fold: int) -> list[str]:
    return ["--fold", str(fold)]


def test_mean_and_deviation_are_over_folds_for_each_split(tmp_path):
    result = run_folds(Program(), ["--lr", "1"], tmp_path, 4, fold_words)
    assert result["summary"]["test"]["accuracy"] == {"mean": pytest.approx(0.15), "std": pytest.approx(0.1290994)}
    assert result["summary"]["test_voting"]["accuracy"] == {"mean": 0.5, "std": 0.0}
    assert [fold["test"]["accuracy"] for fold in result["folds"]] == [0, 0.1, 0.2, 0.3]
    assert json.loads((tmp_path / "few_shot.json").read_text()) == result


class Learner:
    """Write a report whose accuracy depends on learning rate and seed; can fail after some runs."""

    def __init__(self, most: int = 100):
        self.ran, self.most = [], most

    def __call__(self, words: list[str]):
        if len(self.ran) == self.most:
            raise KeyboardInterrupt
        given = dict(zip(words[::2], words[1::2], strict=True))
        self.ran.append((given["--learning_rate"], given["--seed"]))
        accuracy = 10 * float(given["--learning_rate"]) + int(given["--seed"]) / 100
        report = replace(REPORT, metrics={"test": {"accuracy": accuracy, "loss": 1.0}})
        report.save(f"{given['--output_dir']}/metrics.json")
        return report


VARY = {"learning_rate": ["0.01", "0.02"]}


def test_sweep_writes_mean_and_deviation_of_each_setting(tmp_path):
    learner = Learner()
    result = sweep(learner, ["--peft", "lora"], tmp_path, VARY, [0, 2])
    assert learner.ran == [("0.01", "0"), ("0.02", "0"), ("0.01", "2"), ("0.02", "2")]  # seeds outermost
    assert json.loads((tmp_path / "sweep.json").read_text()) == result
    summary = result["rows"][1]["summary"]["test"]["accuracy"]
    assert summary == {"mean": pytest.approx(0.21), "std": pytest.approx(0.0141421, rel=1e-4)}
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    trained = f"{REPORT.trained_parameters:,}"
    assert lines[2] == "| learning_rate | runs | trained parameters | test accuracy |"
    assert lines[4:6] == [f"| 0.01 | 2 | {trained} | 11.0 ± 1.4 |", f"| 0.02 | 2 | {trained} | 21.0 ± 1.4 |"]
    latex = (tmp_path / "sweep.tex").read_text()
    assert rf"0.02 & 2 & {trained} & 21.0 $\pm$ 1.4 \\" in latex and r"learning\_rate" in latex


def test_interrupted_sweep_keeps_its_table_and_continues(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep(Learner(most=3), [], tmp_path, VARY, [0, 1])
    stored = json.loads((tmp_path / "sweep.json").read_text())
    assert [list(row["runs"]) for row in stored["rows"]] == [["0", "1"], ["0"]]
    learner = Learner()
    result = sweep(learner, [], tmp_path, VARY, [0, 1])
    assert learner.ran == [("0.02", "1")]
    more = sweep(learner, [], tmp_path, {"learning_rate": ["0.01", "0.02", "0.03"]}, [0, 1])
    assert learner.ran[1:] == [("0.03", "0"), ("0.03", "1")] and more["rows"][:2] == result["rows"]


@pytest.mark.parametrize(
    ("vary", "seeds", "words", "message"),
    [
        ({"learning_rate": []}, [0], [], "learning_rate has the values none; expected distinct ones"),
        ({"learning_rate": ["1", "1"]}, [0], [], "learning_rate has the values 1, 1; expected distinct ones"),
        ({}, [3, 3], [], "seeds has the values 3, 3"),
        ({"seed": ["1"]}, [0], [], "--seed is set for each run of a sweep; expected it as --seeds"),
        ({}, [0], ["--output_dir", "a"], "--output_dir is set for each run of a sweep; expected it as --output-dir"),
        (VARY, [0], ["--learning_rate", "1"], "--learning_rate is set for each run of a sweep; expected it as --vary"),
    ],
)
def test_wrong_sweeps_are_refused_before_the_first_run(vary, seeds, words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sweep(Learner(most=0), words, tmp_path, vary, seeds)
    assert not list(tmp_path.iterdir())
