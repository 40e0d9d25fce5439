"""The benchmark of Point Transformer V3 compares equal features, and prints what it writes."""

import json
import sys

import torch

from studies.speed import large_scene, point_transformer_v3
from tests.tiny_ptv3 import FIND3D, SMALL


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


def test_the_supervised_layout_reads_streets_and_both_sides_tell_their_peaks(monkeypatch, capsys, tmp_path):
    small = FIND3D | {"hidden_sizes": (8, 8), "decoder_hidden_sizes": (8,)}
    monkeypatch.setitem(point_transformer_v3.PRESETS, "supervised", small)
    monkeypatch.setattr(point_transformer_v3.segmentation_memory, "peak_of", lambda command: (len(command) * 1e3, 1.0))
    arguments = ["study", "--size", "supervised", "--scene", "street", "--points", "300", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--steps", "none", "--memory", "--output", str(tmp_path / "a.json")])
    threads = torch.get_num_threads()
    try:
        point_transformer_v3.main()
    finally:
        torch.set_num_threads(threads)
    result, printed = json.loads((tmp_path / "a.json").read_text()), capsys.readouterr().out
    assert result["scene"] == "street" and result["points"] == 300 and result["difference"] < 1e-4
    assert set(result["peaks"]) == {"model alone", "transcription", "ours"} and "| peak of a process, GB" in printed
    for side in ("transcription", "ours"):
        point_transformer_v3.run_once("supervised", "street", 300, side)


def test_steps_of_ours_can_be_timed_alone():
    row = {"size": "sonata", "voxels": 9, "difference": 0.0, "shares": {"convolution": 0.1, "attention": 0.2}}
    row |= {"peak_gb": 1.0, "forward": {"transcription": 3.0, "ours": 2.0}, "step": {"ours": 5.0}}
    assert point_transformer_v3.table(row).endswith("| forward | 3.00 | 2.00 | 1.50 |\n| step | – | 5.00 | – |")


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
