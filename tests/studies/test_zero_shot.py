"""The study of zero-shot classification: its draws, its table, and that stored draws are not repeated."""

import numpy as np
import pytest
import torch

from hf_any3d import load_point_dataset
from studies import zero_shot
from studies.tables import read_table


def test_no_class_is_held_out_twice():
    names = load_point_dataset("shapes", split="train").features["label"].names
    for validation in (False, True):
        drawn = [name for number in range(3) for name in zero_shot.draw_classes(names, number, validation)]
        assert len(drawn) == len(set(drawn) & set(names)) == 15
    chosen_by = [set(zero_shot.draw_classes(names, number, validation=True)) for number in range(3)]
    assert all(set(zero_shot.draw_classes(names, number)) not in chosen_by for number in range(3))
    with pytest.raises(ValueError, match="draw 3; expected 0 to 2"):
        zero_shot.draw_classes(names, 3)


def test_stored_draws_are_not_repeated_and_all_are_in_the_table(sentence_encoder, tmp_path, monkeypatch):
    small = {"num_train_epochs": 1, "max_train_samples": 60, "num_points": 64, "use_cpu": True}
    monkeypatch.setattr(zero_shot, "ENCODER", sentence_encoder)
    monkeypatch.setattr(zero_shot, "MODEL_CHANGES", {"num_tokens": 8, "tokenizer_neighbors": 4})
    monkeypatch.setattr(zero_shot, "TRAINING", small)
    zero_shot.main(["--output-dir", str(tmp_path), "--draws", "0"])
    (tmp_path / "draw-0" / "metrics.json").unlink()
    zero_shot.main(["--output-dir", str(tmp_path), "--draws", "0", "1"])
    assert not (tmp_path / "draw-0" / "metrics.json").exists(), "a stored draw is not repeated"
    summary = read_table(tmp_path / "zero_shot.parquet")
    accuracies = [run["metrics"]["test"]["unseen_accuracy"] for run in summary["runs"]]
    found = summary["figures"]["test"]["unseen_accuracy"]
    assert found["mean"] == pytest.approx(np.mean(accuracies))
    assert found["std"] == pytest.approx(np.std(accuracies, ddof=1))
    text = (tmp_path / "zero_shot.md").read_text()
    assert f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}" in text and "draw 1:" in text
    assert torch.get_num_threads() == 1
