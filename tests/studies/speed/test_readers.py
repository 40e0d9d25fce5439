"""The benchmark of readers: every format is read by both sides."""

import json
import sys

from studies.speed import readers


def test_both_readers_are_measured_for_each_format(monkeypatch, capsys, tmp_path):
    output = tmp_path / "readers.json"
    words = ["readers", "--rounds", "1", "--subdivisions", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    readers.main()
    rows = json.loads(output.read_text())
    assert list(rows) == list(readers.FORMATS)
    assert all(row["ours, ms"] > 0 and row["trimesh, MB"] > 0 for row in rows.values())
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [f".{name}" for name in rows]
