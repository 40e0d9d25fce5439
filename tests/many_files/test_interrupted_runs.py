"""Runs of `hf-any3d predict` in processes of their own, several of them, which are killed and interrupted."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

NUM_FILES = 240
COMMAND = [sys.executable, "-c", "from hf_any3d_command import main; main()", "predict", "scans", "--resume"]
COMMAND += ["--up-axis", "y"]  # of clouds of noise, each would have doubts of its own
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="lists processes by ps")


@pytest.fixture
def folder(tmp_path):
    """A folder with scans, each with one point that is left out."""
    (tmp_path / "scans").mkdir()
    generator = np.random.default_rng(0)
    for number in range(NUM_FILES):
        points = generator.normal(size=(3000, 3)).astype(np.float32)
        points[0] = np.nan
        np.save(tmp_path / "scans" / f"{number:03d}.npy", points)
    return tmp_path


@pytest.fixture
def start(folder) -> Iterator[Callable[..., subprocess.Popen]]:
    """A function that starts the command with two processes, in a group of its own as in a terminal."""
    started = []

    def made(*options: str) -> subprocess.Popen:
        words = [*COMMAND, "--output", "a.jsonl", "--workers", "2", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        texts = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # Tests that run in the background of a shell ignore Ctrl-C, and so would their processes.
        heed_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        one = subprocess.Popen(
            words, cwd=folder, env=environment, start_new_session=True, preexec_fn=heed_ctrl_c, **texts
        )
        started.append(one)
        return one

    yield made
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


def rows(folder) -> list[dict]:
    path = folder / "a.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for_rows(folder, process, more_than: int = 0) -> int:
    while process.poll() is None and len(rows(folder)) <= more_than:
        time.sleep(0.05)
    found = len(rows(folder))
    assert more_than < found < NUM_FILES, process.communicate()
    return found


def children_of(process: subprocess.Popen) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return list(map(int, found.stdout.split()))


def assert_all_end(processes: list[int]) -> None:
    end = time.monotonic() + 3
    while alive := [one for one in processes if os.path.exists(f"/proc/{one}")]:
        assert time.monotonic() < end, alive
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_and_interrupted_runs_keep_their_rows_and_end_as_one_that_was_not(folder, start):
    first = start()
    wait_for_rows(folder, first)
    children = children_of(first)
    assert len(children) >= 2
    # On a quick machine it would be done before the second one has begun.
    first.send_signal(signal.SIGSTOP)
    # A second run on the same table is refused, and disturbs nothing.
    second = start()
    refusal = second.communicate()[1]
    assert second.returncode == 1 and f"a.jsonl: process {first.pid} on" in refusal and "is writing there" in refusal
    first.kill()
    assert_all_end(children)
    kept = {row["file"] for row in rows(folder)}

    again = start()
    wait_for_rows(folder, again, len(kept))
    # Held until the signal is there.
    os.killpg(again.pid, signal.SIGSTOP)
    children = children_of(again)
    os.killpg(again.pid, signal.SIGINT)
    os.killpg(again.pid, signal.SIGCONT)
    _, text = again.communicate()
    assert again.returncode == 130 and "Traceback" not in text
    assert_all_end(children)
    before = {row["file"]: row for row in rows(folder)}
    assert before.keys() > kept

    last = start()
    out, text = last.communicate()
    assert last.returncode == 0 and out == f"a.jsonl: {NUM_FILES} files, {len(before)} already done, 0 failed\n"
    # Equal warnings are one line.
    warned = [line for line in text.splitlines() if line.startswith("warning")]
    assert len(warned) == 1 and warned[0].startswith(f"warning: {NUM_FILES - len(before)} files, such as ")
    found = rows(folder)
    assert [row["file"] for row in found] == [f"scans/{number:03d}.npy" for number in range(NUM_FILES)]
    assert all(row == before.get(row["file"], row) for row in found)
