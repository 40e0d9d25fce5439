"""The run of all benchmarks: failures are named and stop nothing, and an interrupted run is continued."""

import json
import subprocess

import pytest

from studies.speed import bench
from tests.errors import raises

FIGURES = {"fast": {"value": 2.0}, "slow": {"value": 3.0}}


@pytest.fixture
def programs(monkeypatch):
    """Three programs, one of which fails; returns the names of those that were run."""
    ran = []

    def run(words, **options):
        name = words[2].rpartition(".")[2]
        ran.append(name)
        if name == "wrong":
            return subprocess.CompletedProcess(words, 1, "", "Traceback\nfeatures differ by 1.0e-01\n")
        with open(words[words.index("--output") + 1], "w") as file:
            json.dump(FIGURES[name], file)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(bench.subprocess, "run", run)
    found = {name: bench.Benchmark(f"{name} --rounds 1", lambda result: {"ours": result["value"]}) for name in FIGURES}
    found["wrong"] = bench.Benchmark("wrong", dict)
    monkeypatch.setattr(bench, "BENCHMARKS", found)
    return ran


@pytest.fixture
def committed(tmp_path):
    path = tmp_path / "committed.json"
    path.write_text(json.dumps({"benchmarks": {"slow": {"ratios": {"ours": 2.0}}}}))
    return path


def test_ratios_are_compared_with_the_committed_ones(programs, committed, capsys):
    bench.main(["--only", "fast", "slow", "--against", str(committed)])
    printed = capsys.readouterr().out
    assert "| fast | ours | 2.00 | – | – |" in printed and "| slow | ours | 3.00 | 2.00 | +50% (!) |" in printed


def test_sides_that_disagree_are_an_error_and_stop_nothing(programs, committed, tmp_path, capsys):
    output = tmp_path / "bench.json"
    names = ["wrong", "fast", "slow"]
    with raises(SystemExit, naming="failed: wrong"):
        bench.main(["--only", *names, "--against", str(committed), "--output", str(output)])
    written = json.loads(output.read_text())
    assert list(written["benchmarks"]) == names and written["machine"]["torch"]
    assert "| wrong | failed: features differ by 1.0e-01 |" in capsys.readouterr().out
    with raises(SystemExit, naming="failed: wrong"):
        bench.main(["--only", *names, "--against", str(committed), "--output", str(output), "--resume"])
    assert programs == [*names, "wrong"]
