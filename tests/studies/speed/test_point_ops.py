"""The benchmark of the point operations prints and writes the same results."""

import json
import sys

import torch

from studies.speed import point_ops


def test_benchmark_prints_a_table_and_writes_the_same_rows(monkeypatch, capsys, tmp_path):
    output = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["point_ops.py", "--repeats", "1", "--largest", "2048", "--output", str(output)])
    threads = torch.get_num_threads()
    try:
        point_ops.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(output.read_text())["rows"]
    assert [row["shape"] for row in rows] == ["1×1024 → 128", "1×2048, 512 queries"]
    assert rows[0]["mismatch"] == 0 and rows[1]["mismatch"] < 0.02
    printed = capsys.readouterr().out
    assert all(f"| {row['shape']} |" in printed for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
