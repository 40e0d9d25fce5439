"""Runs over many files that are killed, or meet a full disk, at any write end with the files of one that was not."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hf_any3d.cli import app
from tests.faults.killing import MODES, run_child
from tests.faults.test_files import Program, interrupt_everywhere, same_content

NUM_FILES = 5


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_run_has_every_row_once(mode, tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(NUM_FILES):
        points = np.random.default_rng(number).normal(size=(20, 3)).astype(np.float32)
        np.save(tmp_path / "scans" / f"{number}.npy", points)

    def run(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        os.chdir(folder)  # relative names are those of every run
        app(["data", "convert", "../scans", "--output", "out"], prog_name="hf-any3d", standalone_mode=False)

    def holds(folder: Path) -> None:
        table = folder / "out" / "results.jsonl"
        for line in table.read_text().splitlines()[:-1] if table.exists() else ():
            assert Path(folder, json.loads(line)["output"]).is_file()

    ending = run_child(lambda: run(tmp_path / "warm"), tmp_path / "warm")
    assert ending.how == "done", ending.output
    interrupt_everywhere("run", Program(run, holds, every=3), tmp_path, mode, same_files)


def same_files(place: Path, whole: Path) -> None:
    for lock in place.rglob(".*.lock"):  # left by a killed holder, and not locked
        lock.unlink()
    same_content(place, whole)
    rows = [json.loads(line) for line in (place / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [f"../scans/{number}.npy" for number in range(NUM_FILES)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_nobody_may_write_to_is_named(tmp_path):
    (tmp_path / "scan.xyz").write_text("0 0 0\n1 1 1\n")
    (tmp_path / "closed").mkdir(mode=0o500)
    words = ["data", "convert", str(tmp_path / "scan.xyz"), "--output", str(tmp_path / "closed" / "out")]
    ending = run_child(lambda: app(words, prog_name="hf-any3d", standalone_mode=False), tmp_path)
    assert ending.how == "failed" and str(tmp_path / "closed") in ending.output
