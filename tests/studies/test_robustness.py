"""The robustness report: its conditions, resuming, table, picture, section of the card, and the program."""

import json
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features

from hf_any3d import PointCloudProcessor
from studies.robustness import __main__ as program, report as robustness
from studies.robustness.corruptions import CORRUPTIONS
from studies.robustness.report import (
    Condition,
    ConditionRows,
    conditions,
    plot_robustness,
    robustness_report,
    write_robustness,
)
from tests.errors import raises
from tests.tiny_encoders import tiny_model

NAMES = ["flat", "tall"]
CLEAN = {"accuracy": 1.0, "mean_class_accuracy": 1.0, "loss": 0.1}


def rows(count: int = 4, points: int = 96, colors: bool = False) -> Dataset:
    """Clouds that are wide or tall."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    clouds = (
        generator.normal(size=(count, points, 3)) * np.where(labels[:, None] == 0, (2, 0.3, 2), (0.3, 2, 0.3))[:, None]
    )
    columns = {"points": list(clouds.astype(np.float32)), "label": labels}
    features = {"points": Array2D((points, 3), "float32"), "label": ClassLabel(names=NAMES)}
    if colors:
        columns["colors"] = list(generator.random((count, points, 3)).astype(np.float32))
        features["colors"] = Array2D((points, 3), "float32")
    return Dataset.from_dict(columns, features=Features(features))


class ExtentTrainer:
    """Stands for a Trainer whose model compares height and width."""

    def __init__(self, fails_at: int | None = None):
        self.calls, self.fails_at = 0, fails_at

    def predict(self, dataset, metric_key_prefix):
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        read = [dataset[index] for index in range(len(dataset))]
        extents = np.stack([np.abs(row["points"][:, :3]).mean(axis=0) for row in read])
        right = float(np.mean((extents[:, 1] > extents[:, 0]) == [row["label"] for row in read]))
        return SimpleNamespace(
            metrics={f"{metric_key_prefix}_accuracy": right, f"{metric_key_prefix}_mean_class_accuracy": right}
        )


@pytest.fixture(scope="module")
def report():
    return robustness_report(ExtentTrainer(), rows(), PointCloudProcessor(num_points=64), CLEAN)


@pytest.mark.slow
def test_report_has_all_corruptions_severities_and_other_conditions(report):
    found = [(row["name"], row["level"]) for row in report["rows"]]
    assert found[:75] == [(name, severity) for name in CORRUPTIONS for severity in range(1, 6)]
    assert found[75:79] == [("number of points", count) for count in (32, 16, 8, 4)]
    assert found[79:] == [("up axis", 30), ("up axis", 90), ("up axis", 180), ("any axis", 180)]


def test_colors_are_removed_only_for_models_that_use_them():
    processor = PointCloudProcessor(num_points=32, features=["xyz", "rgb"])
    assert [one.name for one in conditions(processor) if one.family == "color"] == ["gray", "black"]
    gray = ConditionRows(rows(colors=True), processor, Condition("color", "gray"))[0]["points"]
    plain = processor(rows(colors=True)[0], return_tensors="np")["points"][0]
    assert (gray[:, 3:] == 0.5).all() and not (plain[:, 3:] == 0.5).any()
    np.testing.assert_allclose(gray[:, :3], plain[:, :3], atol=1e-6)


@pytest.mark.slow
def test_rows_have_the_models_number_of_points_without_warnings():
    samplings = ("random", "farthest", "first")  # by turns: each corruption meets all of them
    processors = [PointCloudProcessor(num_points=80, sampling=sampling, min_points=60) for sampling in samplings]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, condition in enumerate(conditions(processors[0])):
            processor = processors[number % 3]
            first, again = (ConditionRows(rows(points=70), processor, condition)[1] for _ in range(2))
            assert first["points"].shape == (80, 3) and first["label"] == 1
            np.testing.assert_array_equal(first["points"], again["points"])


@pytest.mark.slow
def test_interrupted_report_resumes_and_equals_an_uninterrupted_one(tmp_path, report):
    processor, path = PointCloudProcessor(num_points=64), tmp_path / "robustness.json"
    with pytest.raises(KeyboardInterrupt):
        robustness_report(ExtentTrainer(fails_at=31), rows(), processor, CLEAN, path=path)
    assert len(json.loads(path.read_text())["rows"]) == 30
    trainer = ExtentTrainer()
    assert robustness_report(trainer, rows(), processor, CLEAN, path=path) == report
    assert trainer.calls == 53 and json.loads(path.read_text()) == report
    for other in ({"seed": 1}, {"about": {"model": "b"}}):
        trainer = ExtentTrainer(fails_at=1)  # another evaluation does not reuse the rows
        with pytest.raises(KeyboardInterrupt):
            robustness_report(trainer, rows(), processor, CLEAN, path=path, **other)


@pytest.mark.slow
def test_picture_needs_the_extra_which_the_error_names(report, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    assert plot_robustness(report, tmp_path / "robustness.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with raises(ImportError, naming="'hf-any3d[visuals]'"):
        plot_robustness(report, tmp_path / "other.png")
    written, remarks = write_robustness(report, tmp_path / "report")
    assert {path.name for path in written} == {"robustness.json", "robustness.md"}
    assert remarks == ["no robustness.png: this needs matplotlib: pip install 'hf-any3d[visuals]'"]


@pytest.mark.slow
def test_card_gets_one_section_unless_edited(report, tmp_path):
    tiny_model(num_labels=2).save_pretrained(tmp_path)
    for _ in range(2):
        written, remarks = write_robustness(report, tmp_path)
        assert tmp_path / "README.md" in written and not remarks
    card = (tmp_path / "README.md").read_text()
    assert card.count("## Robustness") == 1 and card.count("| shear |") == 1
    assert card.index("## Robustness") < card.index("Made with hf_any3d")
    (tmp_path / "README.md").write_text(card.replace("# ", "# My ", 1))
    _, remarks = write_robustness(report, tmp_path)
    assert len(remarks) == 1 and "was edited by hand and is kept" in remarks[0]
    assert (tmp_path / "README.md").read_text() == card.replace("# ", "# My ", 1)


@pytest.mark.slow
def test_the_program_writes_the_report_next_to_the_model(tmp_path, monkeypatch, capsys):
    some = [Condition("noise", "gaussian", 1), Condition("points", "number of points", 16)]
    monkeypatch.setattr(robustness, "conditions", lambda processor: some)
    monkeypatch.setattr(robustness, "summarize_robustness", lambda clean, rows: {"clean": clean["accuracy"]})
    for module in (robustness, program):
        monkeypatch.setattr(module, "robustness_table", lambda report: f"{len(report['rows'])} rows")
    monkeypatch.setattr(robustness, "plot_robustness", lambda report, path: path)
    model, data = tmp_path / "model", tmp_path / "data.parquet"
    tiny_model(num_labels=2, id2label=dict(enumerate(NAMES))).save_pretrained(model)
    PointCloudProcessor(num_points=48).save_pretrained(model)
    rows().to_parquet(data)
    options = json.dumps({"data_files": {"test": str(data)}})
    words = [str(model), "--dataset", "parquet", "--options", options, "--cpu"]
    program.main(words)
    said = capsys.readouterr().out
    assert "2 rows" in said and f"written: {model / 'robustness.json'}" in said
    stored = json.loads((model / "robustness.json").read_text())
    assert stored["settings"]["dataset"] == "parquet" and len(stored["rows"]) == 2
    assert "## Robustness" in (model / "README.md").read_text()
    program.main([*words, "--output-dir", str(tmp_path / "other")])
    assert json.loads((tmp_path / "other" / "robustness.json").read_text())["rows"] == stored["rows"]
    assert (tmp_path / "other" / "robustness.md").read_text() == "# Robustness\n\n2 rows\n"
