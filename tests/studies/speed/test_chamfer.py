"""The benchmark of the Chamfer distance: its sides agree, and bytes are counted correctly."""

import json
import sys

import pytest
import torch

from studies.speed import chamfer


def test_all_sides_compute_the_same_distance():
    x, y = torch.rand(3, 40, 3), torch.rand(3, 50, 3)
    expected = pytest.approx(chamfer.exactly(x, y), rel=1e-5)
    sides = (chamfer.usual, chamfer.by_trees, chamfer.chamfer_distance)
    assert [float(side(x, y)) for side in sides] == [expected] * 3


def test_only_the_usual_form_saves_the_distance_matrix():
    x, y = torch.rand(2, 100, 3, requires_grad=True), torch.rand(2, 100, 3)
    matrix = 2 * 100 * 100 * 4
    clouds = {cloud.untyped_storage().data_ptr() for cloud in (x, y)}
    usual = chamfer.saved_bytes(lambda: chamfer.usual(x, y), clouds)
    assert usual >= matrix > 20 * chamfer.saved_bytes(lambda: chamfer.chamfer_distance(x, y), clouds)
    assert chamfer.peak_bytes(lambda: chamfer.usual(x, y).backward()) >= 2 * matrix


def test_benchmark_prints_and_writes_the_same_figures(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(chamfer, "SHAPES", [(6, 8, 32), (1, 9000, 9000)])
    output = tmp_path / "figures.json"
    words = ["chamfer.py", "--repeats", "1", "--largest", "5000", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    threads = torch.get_num_threads()
    try:
        chamfer.main()
    finally:
        torch.set_num_threads(threads)
    results = json.loads(output.read_text())["results"]
    assert [result["shape"] for result in results] == [[6, 8, 32]]
    assert results[0]["sides"]["ours"]["error"] < 1e-5
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 + len(results[0]["sides"]) and len({line.count("|") for line in lines}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
