"""The check for machines with a GPU, tried on the CPU."""

import json

import pytest
import torch

from tests.gpu_check.__main__ import BUDGETS, main
from tests.gpu_check.run import Run


@pytest.mark.slow
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

    found["sections"]["speed"]["rows"][0]["ok"] = False
    stored.write_text(json.dumps(found))
    capsys.readouterr()
    assert main([*arguments, "speed", "parity"]) == 0
    printed = capsys.readouterr().out
    assert "speed:\n" in printed and "parity: has passed before" in printed


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
