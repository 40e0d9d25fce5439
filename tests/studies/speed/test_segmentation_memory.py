"""The benchmark of segmentation's memory: peaks are those of a process of its own; large scenes are thinned too."""

import sys

import numpy as np
import pytest

from hf_any3d import AutoModelForPointCloudSegmentation
from studies.speed import segmentation_memory


def test_the_peak_is_that_of_the_command():
    plain, _ = segmentation_memory.peak_of([sys.executable, "-c", "pass"])
    large, seconds = segmentation_memory.peak_of([sys.executable, "-c", "bytearray(b'1' * 50_000_000)"])
    assert 50 < large - plain < 150 and 0 < seconds < 10
    with pytest.raises(RuntimeError, match="exit code 3"):
        segmentation_memory.peak_of([sys.executable, "-c", "raise SystemExit(3)"])


def test_every_scene_is_labeled_complete_and_large_ones_also_thinned(tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(segmentation_memory, "peak_of", lambda words: (commands.append(words), (100.0, 1.0))[1])
    monkeypatch.setattr(segmentation_memory, "BLOCK", 64)
    monkeypatch.setattr(segmentation_memory, "write_scene", lambda path, size: np.save(path, np.zeros((size, 3))))
    rows = segmentation_memory.measure([100, 1000], 500, tmp_path)
    assert [(row["points"], row["max_points"]) for row in rows] == [(64, None), (100, None), (1000, None), (1000, 500)]
    assert [command[-2:] == ["--max-points", "500"] for command in commands] == [False, False, False, True]
    model = AutoModelForPointCloudSegmentation.from_pretrained(tmp_path / "model")
    assert model.config.num_labels == segmentation_memory.LABELS
    assert len(capsys.readouterr().out.splitlines()) == 5
