"""The benchmark of the Chamfer distance: its sides agree, and it counts what it says it counts."""

import json
import sys

import pytest
import torch

from tests.examples.conftest import load_program


@pytest.fixture(scope="module")
def bench():
    return load_program("benchmarks/chamfer")


def test_all_sides_measure_the_same_distance(bench):
    x, y = torch.rand(3, 40, 3), torch.rand(3, 50, 3)
    expected = pytest.approx(bench.exactly(x, y), rel=1e-5)
    assert [float(side(x, y)) for side in (bench.usual, bench.by_trees, bench.chamfer_distance)] == [expected] * 3


def test_bytes_are_those_of_the_matrix_in_the_usual_form_only(bench):
    x, y = torch.rand(2, 100, 3, requires_grad=True), torch.rand(2, 100, 3)
    matrix = 2 * 100 * 100 * 4
    assert bench.saved_bytes(bench.usual, x, y) >= matrix > 20 * bench.saved_bytes(bench.chamfer_distance, x, y)
    assert bench.peak_bytes(lambda: bench.usual(x, y).backward()) >= 2 * matrix


def test_program_prints_a_table_and_writes_the_same_figures(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "SHAPES", [(6, 8, 32), (1, 9000, 9000)])
    output = tmp_path / "figures.json"
    words = ["chamfer.py", "--repeats", "1", "--largest", "5000", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    threads = torch.get_num_threads()
    try:
        bench.main()
    finally:
        torch.set_num_threads(threads)
    results = json.loads(output.read_text())["results"]
    assert [result["shape"] for result in results] == [[6, 8, 32]]
    assert results[0]["sides"]["ours"]["error"] < 1e-5
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 + len(results[0]["sides"]) and len({line.count("|") for line in lines}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
