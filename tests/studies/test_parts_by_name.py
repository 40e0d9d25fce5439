"""The study of parts by name: its words, its figures, and that stored runs are not repeated."""

import json

import numpy as np
import pytest
from transformers import AutoConfig

from hf_any3d import load_point_dataset
from studies import parts_by_name
from studies.tables import read_table


def test_every_word_has_another_and_no_word_is_both():
    names = load_point_dataset("parts", split="test").features["labels"].feature.names
    words = {name.split(" ", 1)[1] for name in names}
    assert words == set(parts_by_name.OTHER_WORDS) and not words & set(parts_by_name.OTHER_WORDS.values())


def test_stored_runs_are_not_repeated_and_all_are_in_the_table(sentence_encoder, tmp_path, monkeypatch):
    sizes = {
        "num_groups": 8,
        "group_size": 8,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "projection_dim": AutoConfig.from_pretrained(sentence_encoder).hidden_size,
        "parts": {"text_tower": {"name_or_path": sentence_encoder}},
    }
    monkeypatch.setattr(parts_by_name, "MODEL", parts_by_name.MODEL | sizes)
    monkeypatch.setattr(parts_by_name, "TRAINING", parts_by_name.TRAINING | {"steps": 3, "batch_size": 4})
    few = {
        split: load_point_dataset("parts", split=split).shuffle(seed=0).select(range(40))
        for split in ("train", "test")
    }
    monkeypatch.setattr(parts_by_name, "load_point_dataset", lambda name, split: few[split])
    parts_by_name.main(["--output-dir", str(tmp_path), "--seeds", "0"])
    first = json.loads((tmp_path / "runs" / "0.json").read_text())
    parts_by_name.main(["--output-dir", str(tmp_path), "--seeds", "0", "1"])
    summary = read_table(tmp_path / "parts_by_name.parquet")
    assert summary["runs"][0] == first and [run["category"] for run in summary["runs"]] == ["table", "mug"]
    for condition in parts_by_name.CONDITIONS:
        ious = [run[condition]["iou"] for run in summary["runs"]]
        assert all(0 <= iou <= 1 for iou in ious)
        assert summary["figures"][f"{condition}_iou"]["mean"] == pytest.approx(np.mean(ious))
    assert "| category that training lacks; names exchanged |" in (tmp_path / "parts_by_name.md").read_text()
