"""The study of learning: its arms, and that stored runs are not repeated."""

import pytest
from datasets import Dataset, DatasetDict, Features, Value

from studies import earlier_recipe, learning
from studies.tables import read_table


def test_stored_run_is_not_repeated_unless_settings_changed(tmp_path, monkeypatch):
    calls = []

    def train_once(arm, seed, splits, split, output_dir):
        calls.append((arm, seed))
        return {
            "accuracy": 0.5,
            "mean_class_accuracy": 0.5,
            "seconds": 1.0,
            "cpu_seconds": 1.0,
            "trained_parameters": 3,
        }

    rows = Dataset.from_dict({"label": [0, 1, 1]}, features=Features({"label": Value("int64")}))
    monkeypatch.setattr(learning, "load_point_dataset", lambda name: DatasetDict(train=rows, test=rows))
    monkeypatch.setattr(learning, "train_once", train_once)
    options = ["--output-dir", str(tmp_path), "--arms", "pointnet", "tokenizer", "--seeds", "0", "1"]
    learning.main(options)
    assert len(calls) == 4
    learning.main(options)
    assert len(calls) == 4
    monkeypatch.setitem(earlier_recipe.TRAINING, "learning_rate", 1.0)
    learning.main(options)
    assert len(calls) == 8
    summary = read_table(tmp_path / "learning.parquet")
    assert [row["arm"] for row in summary["rows"]] == ["majority", "pointnet", "tokenizer"]
    assert summary["rows"][0]["accuracy"] == pytest.approx(2 / 3)
    assert not list(tmp_path.rglob("*.tmp"))
