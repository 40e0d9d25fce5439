"""Runs over few-shot folds, and their mean."""

import json
from dataclasses import replace

import pytest

from hf_any3d.training.folds import run_folds, summarize
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


def test_interrupted_series_continues(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_folds(Program(fails_at=2), [], tmp_path, 4, fold_words)
    assert not (tmp_path / "few_shot.json").exists()
    later = Program()
    result = run_folds(later, [], tmp_path, 4, fold_words)
    assert later.ran == [2, 3] and len(result["folds"]) == 4


def test_folds_with_other_arguments_are_refused(tmp_path):
    run_folds(Program(), ["--lr", "1"], tmp_path, 1, fold_words)
    with pytest.raises(ValueError, match="fold_0: was run with --lr 1 --fold 0, not --lr 2 --fold 0"):
        run_folds(Program(), ["--lr", "2"], tmp_path, 1, fold_words)


def test_a_single_fold_has_no_deviation():
    assert summarize([{"test": {"accuracy": 0.5}}])["summary"]["test"]["accuracy"] == {"mean": 0.5, "std": 0.0}
    with pytest.raises(ValueError, match="folds is 0"):
        run_folds(Program(), [], "unused", 0, fold_words)
