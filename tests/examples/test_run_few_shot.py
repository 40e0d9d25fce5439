"""The few-shot program: its folds, their mean, and resuming."""

import json

import pytest
import yaml

from examples import run_few_shot
from hf_any3d.model_card.run_report import RunReport
from tests.examples.conftest import SMALL, words_of


@pytest.fixture
def start(tiny_encoder, tmp_path):
    """Run the program on two folds of the embedded shapes."""
    recipe = tmp_path / "recipe.yaml"
    settings = {
        **SMALL,
        "encoder_name_or_path": tiny_encoder,
        "validation_fraction": 0,
        "few_shot": {"test_per_class": 4},
    }
    recipe.write_text(yaml.safe_dump(settings | {"save_strategy": "no", "eval_strategy": "no"}))

    def run(**more):
        words = words_of({"way": 2, "shot": 3, "folds": 2, "output_dir": str(tmp_path / "out"), **more})
        return run_few_shot.main([str(recipe), "--draw", "--load_best_model_at_end", "false", *words])

    return run


@pytest.mark.slow
def test_folds_are_drawn_trained_and_summarized(start, tmp_path, capsys):
    result = start(voting=2, augment=["scale"])
    folder = tmp_path / "out"
    reports = [RunReport.load(folder / f"fold_{fold}" / "metrics.json") for fold in range(2)]
    for fold, report in enumerate(reports):
        assert report.data["few_shot"] == {"way": 2, "shot": 3, "fold": fold, "test_per_class": 4}
        assert report.data["rows"] == {"train": 6, "test": 8}
        assert set(report.metrics) == {"test", "test_voting"} and report.data["votes"] == 2
    classes = [set(report.class_accuracy["test"]) for report in reports]
    assert all(len(names) == 2 for names in classes) and classes[0] != classes[1]
    accuracies = [report.metrics["test"]["accuracy"] for report in reports]
    assert result["summary"]["test"]["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert json.loads((folder / "few_shot.json").read_text()) == result
    out = capsys.readouterr().out
    assert "test, 2 folds: accuracy" in out and "test_voting, 2 folds: accuracy" in out

    (folder / "fold_1" / "metrics.json").unlink()
    before = (folder / "fold_0" / "metrics.json").stat().st_mtime_ns
    again = start(voting=2, augment=["scale"])
    assert (folder / "fold_0" / "metrics.json").stat().st_mtime_ns == before
    assert again["summary"] == result["summary"]
