"""Outcomes of the runner for inputs that crash, hang, consume memory and run code."""

import mmap
import os
import signal
import time

import numpy as np
import pytest

from tests.fuzz import Target, canary, run, runner


def read(folder):
    assert not list(folder.iterdir())


def refuse(folder):
    raise ValueError("some.ply: refused")


def fail(folder):
    raise KeyError("points")


def crash(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(folder):
    os._exit(0)


def work_for_ever(folder):
    while True:
        pass


def wait_for_ever(folder):
    time.sleep(1000)


def work_too_long(folder):
    start = time.process_time()
    while time.process_time() - start < 0.5:
        pass


def ask_for_memory(folder):
    np.zeros(1 << 40, np.uint8)


def hold_memory(folder):
    # New memory, not memory that this process has freed before.
    held = mmap.mmap(-1, 36 << 20)
    held.write(bytes(36 << 20))
    raise ValueError("some.ply: refused")


def touch(folder):
    canary(folder).touch()


def start_a_program(folder):
    os.system("true")
    raise ValueError("some.ply: refused")


OUTCOMES = {
    read: "accepted",
    refuse: "refused",
    fail: "uncaught",
    crash: "uncaught",
    leave: "uncaught",
    work_for_ever: "slow",
    wait_for_ever: "slow",
    work_too_long: "slow",
    ask_for_memory: "big",
    hold_memory: "big",
    touch: "executed",
    start_a_program: "executed",
}


class Script(Target):
    name, seconds, megabytes, refusals = "script", 0.3, 32, (ValueError,)

    def __init__(self, *acts):
        self.acts = acts or (refuse,)

    def make(self, generator, folder):
        return self.acts[int(generator.integers(len(self.acts)))]

    def attempt(self, case, folder):
        case(folder)


@pytest.mark.slow
@pytest.mark.parametrize("act", OUTCOMES, ids=lambda act: act.__name__)
def test_an_input_gets_its_outcome_and_the_next_ones_are_read_all_the_same(act, monkeypatch):
    monkeypatch.setattr(runner, "_PATIENCE", 4 if act is wait_for_ever else runner._PATIENCE)
    report = run(Script(act, refuse), 5)
    assert sum(report.counts.values()) == 5
    assert set(report.counts) == {OUTCOMES[act], "refused"}
    if OUTCOMES[act] not in ("accepted", "refused"):
        assert {outcome for _, outcome, _ in report.failures} == {OUTCOMES[act]}
        assert "--only" in report.explain() and "also" not in report.explain(len(report.failures))
        assert f"--- also {report.failures[0][0]} {OUTCOMES[act]}" in report.explain(0)


def test_inputs_follow_from_name_and_number_alone(tmp_path):
    class Numbers(Script):
        def attempt(self, case, folder):
            (tmp_path / "seen").open("a").write(f"{self.drawn}\n")

        def make(self, generator, folder):
            self.drawn = generator.integers(1 << 60)

    run(Numbers(), 3)
    run(Numbers(), 2, first=1)
    seen = (tmp_path / "seen").read_text().split()
    assert seen[1:3] == seen[3:] and len(set(seen)) == 3
