"""Run a target's inputs in child processes that may die, and count the outcomes."""

import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.fuzz.target import Target, canary

FAILURES = ("uncaught", "slow", "big", "executed")
_PATIENCE = 12  # allowed wall time of an input, in multiples of its CPU time
_HEADROOM = 125  # percent of the allowed memory that may be requested, so that readers that refuse then are seen too
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Report:
    """The outcomes of a target's inputs.

    Attributes:
        name: of the target.
        counts: outcome -> number of inputs.
        failures: the input's number, its outcome and details.
        seconds: CPU time of all children.
    """

    name: str
    counts: Counter = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, -1)
    largest: tuple[float, int] = (0.0, -1)

    def add(self, number: int, outcome: str, text: str = "", seconds: float = 0.0, megabytes: float = 0.0) -> None:
        """Count one input."""
        self.counts[outcome] += 1
        self.slowest = max(self.slowest, (seconds, number))
        self.largest = max(self.largest, (megabytes, number))
        if outcome in FAILURES:
            self.failures.append((number, outcome, text))

    def __str__(self) -> str:
        counts = ", ".join(f"{self.counts[name]} {name}" for name in ("accepted", "refused", *FAILURES))
        return (
            f"{self.name}: {sum(self.counts.values())} inputs, {counts}; {self.seconds:.1f} s of CPU, slowest "
            f"{self.slowest[0]:.2f} s (input {self.slowest[1]}), largest {self.largest[0]:.0f} MB "
            f"(input {self.largest[1]})"
        )

    def explain(self, most: int = 5) -> str:
        """Describe the first failures and how to reproduce them, and number the others."""
        lines = [str(self)]
        for number, outcome, text in self.failures[:most]:
            lines += [f"--- {outcome}: python -m tests.fuzz {self.name!r} --only {number}", text]
        if others := [f"{number} {outcome}" for number, outcome, _ in self.failures[most:]]:
            lines.append(f"--- also {', '.join(others)}")
        return "\n".join(lines)


def generator_of(target: Target, number: int) -> np.random.Generator:
    """Return the random generator of one input."""
    return np.random.default_rng([zlib.crc32(target.name.encode()), number])


def run(target: Target, inputs: int, *, first: int = 0, most_failures: int = 200) -> Report:
    """Try inputs `first` to `first + inputs - 1` of a target.

    Args:
        target: what to try.
        inputs: number of inputs.
        first: the number of the first.
        most_failures: stop after this many failures.
    """
    report = Report(target.name)
    with tempfile.TemporaryDirectory(prefix="any3d-fuzz-") as scratch:
        prepared = Path(scratch, "prepared")
        prepared.mkdir()
        target.prepare(prepared)
        number, stop = first, first + inputs
        while number < stop and len(report.failures) < most_failures:
            number = _batch(target, number, min(stop, number + target.batch), Path(scratch), report)
    return report


def _batch(target: Target, number: int, stop: int, scratch: Path, report: Report) -> int:
    """Read inputs in one child until it finishes or dies; return the number of the next input."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads
        pid = os.fork()
    if not pid:
        try:
            os.close(reading)
            _child(target, range(number, stop), scratch, os.fdopen(writing, "w", buffering=1))
        finally:
            os._exit(1)
    os.close(writing)
    lines, dead, start = b"", "", number
    began, cpu = time.monotonic(), 0.0
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            if select.select([pipe], [], [], 0.25)[0]:
                piece = pipe.read(1 << 16)
                if not piece:
                    break
                *whole, lines = (lines + piece).split(b"\n")
                for line in whole:
                    report.add(**json.loads(line))
                    number += 1
                if whole:
                    began, cpu = time.monotonic(), _cpu_seconds(pid)
                continue
            if _cpu_seconds(pid) - cpu > target.seconds + 0.5:
                dead = f"killed after more than {target.seconds} s of CPU"
            elif time.monotonic() - began > _PATIENCE * target.seconds and not _waits_for_a_core(pid):
                dead = f"killed after {_PATIENCE * target.seconds} s"
            if dead:
                _kill_tree(pid)
                break
    _, status, usage = os.wait4(pid, 0)
    report.seconds += usage.ru_utime + usage.ru_stime
    if number < stop and (dead or status or number == start):
        what = dead or f"the process ended unexpectedly: {_describe_status(status)}"
        report.add(number, "slow" if dead else "uncaught", what)
        number += 1
    shutil.rmtree(scratch / "input", ignore_errors=True)
    return number


def _describe_status(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


def _child(target: Target, numbers: range, scratch: Path, out) -> None:
    faulthandler.disable()
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    # Disable the signal handlers of the test runner.
    for number in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    events: list[str] = []
    sys.addaudithook(lambda event, _: events.append(event) if event in target.forbidden else None)
    warnings.resetwarnings()
    warnings.simplefilter("error" if target.strict_warnings else "ignore")
    warnings.simplefilter("ignore", UserWarning)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (target.megabytes * _HEADROOM << 20) // 100
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        folder = scratch / "input"
        folder.mkdir()
        case, trace = target.make(generator_of(target, number), folder), ""
        events.clear()
        start = _used_seconds()
        outcome, text = _attempt(target, case, folder)
        seconds = _used_seconds() - start
        # The peak of children persists for all later inputs, so they must stay within the limit themselves.
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        megabytes = max(grown, children - base / 1024)
        if events or canary(folder).exists():
            outcome, trace = "executed", f"{events or canary(folder).name}; {text}"
        elif seconds > target.seconds:
            outcome, trace = "slow", f"{seconds:.1f} s of CPU; {text}"
        elif megabytes > target.megabytes:
            outcome, trace = "big", f"{megabytes:.0f} MB; {text}"
        elif outcome in FAILURES:
            trace = text
        if trace:
            trace += f"\ninput {number}: {target.describe(case)}"
        shutil.rmtree(folder)
        line = {"number": number, "outcome": outcome, "text": trace, "seconds": seconds, "megabytes": megabytes}
        out.write(json.dumps(line) + "\n")
        if outcome == "big":
            break  # the peak persists; the next inputs get a new child
    out.flush()
    os._exit(0)


def _attempt(target: Target, case, folder: Path) -> tuple[str, str]:
    try:
        target.attempt(case, folder)
        return "accepted", ""
    except target.refusals as error:
        try:
            target.check_refusal(error, case, folder)
            return "refused", ""
        except AssertionError:
            return "uncaught", f"a poor refusal, {error!r}:\n{traceback.format_exc(limit=-4)}"
    except MemoryError:
        return "big", traceback.format_exc(limit=-6)
    except BaseException:
        return "uncaught", traceback.format_exc(limit=-8)


def _used_seconds() -> float:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(int(child)))]


def _waits_for_a_core(pid: int) -> bool:
    """Return whether the input is running or waiting for a core, rather than hanging."""
    for member in _family(pid):
        try:
            if Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()[0] in "RD":
                return True
        except OSError:
            continue
    return False


def _cpu_seconds(pid: int) -> float:
    total = 0
    for member in _family(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))  # user and system time, own and of children that have ended
    return total / _TICKS


def _kill_tree(pid: int) -> None:
    for member in reversed(_family(pid)):
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue
