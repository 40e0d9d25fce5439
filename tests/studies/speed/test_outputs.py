"""Benchmarks run in small and write what they measure: sides that agree, and figures above zero."""

import json
import sys
from importlib import import_module

import pytest
import torch

from studies.speed import large_scene, point_transformer_v3
from tests.tiny_ptv3 import SMALL

PROGRAMS = {
    "kernels": (["--tiny", "--steps", "any2point", "--batch", "3", "--repeats", "1"], "rows"),
    "point_ops": (["--repeats", "1", "--largest", "2048"], "rows"),
    "readers": (["--rounds", "1", "--subdivisions", "1"], None),
    "data_throughput": (["--clouds", "20", "--points", "1100", "--workers", "0", "--passes", "1"], "measured"),
    "point_transformer_v3": (["--voxels", "300", "--rounds", "1"], "step"),
    "large_scene": (["--points", "900"], "features"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_prints_and_writes_its_figures(name, monkeypatch, capsys, tmp_path):
    small = SMALL | {"in_channels": 9, "grid_size": 0.02}
    monkeypatch.setitem(point_transformer_v3.PRESETS, "sonata", small)
    monkeypatch.setitem(large_scene.PRESETS, "concerto_small", small)
    monkeypatch.setattr(large_scene, "POINTS_PER_ROOM", 400)
    words, figure = PROGRAMS[name]
    output = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, *words, "--output", str(output)])
    threads = torch.get_num_threads()
    try:
        import_module(f"studies.speed.{name}").main()
    finally:
        torch.set_num_threads(threads)
    written = json.loads(output.read_text())
    assert written[figure] if figure else written
    assert capsys.readouterr().out.strip()
    differences = [row.get("difference", 0) for row in (written if isinstance(written, list) else [written])]
    assert max(differences) < 1e-4, "both sides compute the same"
