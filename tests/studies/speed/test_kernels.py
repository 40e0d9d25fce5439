"""The benchmark of the fused operations measures every call of a step."""

import json
import sys

import torch

from hf_any3d.modeling.kernels import TABLE
from studies.speed import kernels


def test_benchmark_prints_and_writes_the_operations_of_a_step(monkeypatch, capsys, tmp_path):
    output = tmp_path / "figures.json"
    words = ["kernels.py", "--tiny", "--steps", "any2point", "--batch", "3", "--repeats", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    threads = torch.get_num_threads()
    try:
        kernels.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(output.read_text())["rows"]
    operations = [row["operation"] for row in rows]
    assert {"pooled_blocks", "normed_ensemble", "quick_gelu"} <= set(operations) <= TABLE.keys()
    assert next(row["calls"] for row in rows if row["operation"] == "pooled_blocks") == 3
    assert all(row["fused_bytes"] <= row["plain_bytes"] for row in rows if row["operation"] == "pooled_blocks")
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + len(rows)
