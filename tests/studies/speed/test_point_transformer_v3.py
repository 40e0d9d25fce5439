"""The benchmark of Point Transformer V3 compares equal features, and prints what it writes."""

import json
import sys

import torch

from studies.speed import large_scene, point_transformer_v3
from tests.tiny_ptv3 import SMALL


def test_benchmark_compares_equal_features_and_prints_what_it_writes(monkeypatch, capsys, tmp_path):
    output = tmp_path / "result.json"
    monkeypatch.setitem(point_transformer_v3.PRESETS, "sonata", SMALL | {"in_channels": 9, "grid_size": 0.02})
    arguments = ["point_transformer_v3.py", "--voxels", "300", "--rounds", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    threads = torch.get_num_threads()
    try:
        point_transformer_v3.main()
    finally:
        torch.set_num_threads(threads)
    result, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert 100 < result["voxels"] < 900 and result["difference"] < 1e-4
    assert set(result["shares"]) == {"convolution", "attention"} and 0 < sum(result["shares"].values()) < 1
    for name in ("forward", "step"):
        assert f"| {name} | {result[name]['transcription']:.2f} | {result[name]['ours']:.2f} |" in printed


def test_large_scene_is_measured(monkeypatch, capsys, tmp_path):
    small = SMALL | {"in_channels": 9, "grid_size": 0.02}
    monkeypatch.setitem(large_scene.PRESETS, "concerto_small", small)
    monkeypatch.setattr(large_scene, "POINTS_PER_ROOM", 400)
    output = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["large_scene.py", "--points", "900", "--output", str(output)])
    threads = torch.get_num_threads()
    try:
        large_scene.main()
    finally:
        torch.set_num_threads(threads)
    result = json.loads(output.read_text())
    assert result["features"] == [900, 24] and result["peak_gb"] >= result["before_gb"] > 0
    assert "900 points: features of 24 channels" in capsys.readouterr().out
