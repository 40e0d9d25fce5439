"""The check for machines with a GPU, tried on the CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu_check.__main__ import BUDGETS, main
from tests.gpu_check.run import Run

ROOT = Path(__file__).resolve().parents[1]


def test_the_program_runs_every_section_and_repeats_only_what_has_failed(tmp_path, capsys):
    arguments = ["--device", "cpu", "--small", "--output", str(tmp_path), "--sections"]
    status = main([*arguments, *BUDGETS])
    assert status == 0, capsys.readouterr().out
    (stored,) = tmp_path.glob("*.json")
    found = json.loads(stored.read_text())
    assert list(found["sections"]) == list(BUDGETS)
    assert all(section["rows"] for section in found["sections"].values())
    table = stored.with_suffix(".md").read_text()
    assert "| submanifold_convolution 6-5 bfloat16 | yes |" in table and "**no**" not in table

    found["sections"]["graphs"]["rows"][0]["ok"] = False
    stored.write_text(json.dumps(found))
    capsys.readouterr()
    assert main([*arguments, "graphs", "parity"]) == 0
    printed = capsys.readouterr().out
    assert "graphs:\n" in printed and "parity: has passed before" in printed


def test_a_failed_check_hides_no_other_and_time_runs_out():
    run = Run(torch.device("cpu"), small=True, seconds=60)
    run.check("bad", lambda: 1 / 0)
    run.check("wrong", lambda: {"ok": False})
    run.check("good", lambda: {"error": 0.5})
    run.seconds = -1
    run.check("late", lambda: {})
    assert [row["ok"] for row in run.rows] == [False, False, True, False]
    assert run.rows[0]["note"].startswith("ZeroDivisionError") and run.rows[3]["note"].startswith("not reached")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_machine_without_a_gpu_gets_one_error(capsys):
    assert main([]) == 1
    assert capsys.readouterr().err.startswith("error: no CUDA device is available")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="triton for CUDA is for Linux")
def test_a_kernel_compiles_for_a_gpu_that_is_not_there(tmp_path):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gpu_check.compile", "--capability", "80", "--only", "sample first$"]
    done = subprocess.run(
        command, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(
        r"ok +farthest_point_sample first: _sample_kernel 0, 80: \d+ bytes shared, reg .*\n", done.stdout
    )


def test_all_sections_together_take_under_ten_minutes():
    assert sum(BUDGETS.values()) < 600
