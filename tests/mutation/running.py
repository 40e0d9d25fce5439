"""Apply changes one by one and run the tests that enter the changed function, until one of them fails."""

from __future__ import annotations

import compileall
import contextlib
import gc
import importlib
import io
import json
import os
import py_compile
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.mutation.mutants import ROOT, Mutant, package_of

# Tests that enter the function are run from the quickest on, for so many recorded seconds: first those of the folder
# that mirrors the source, which notice most, then others. Of what is left, each file's quickest come last: a hundred
# quick tests of one kind see less than a few slower ones of as many kinds.
SECONDS_NEAR, SECONDS_ELSEWHERE, SECONDS_BY_TURNS = 12.0, 8.0, 15.0
# These are seconds of a core that runs the recorded tests in this time. A slower one gets more, so that a change is
# tried on as many tests on every machine.
SECONDS_OF_THE_SUITE = 1800.0
# It enters no function: it reads the source.
_ARGUMENTS = "tests/test_house_rules.py::test_no_argument_is_swallowed"
# Reading a test file takes about half a second.
FILES_AT_MOST = 12
# A change may make a loop endless: a run is given this many times its recorded seconds, and a start. Both are seconds
# of a processor, so that a busy machine ends no run; for one that sleeps, so many times as many by the clock.
SLOWER, START, BY_THE_CLOCK = 4.0, 20.0, 20.0
# Libraries that most tests of some folder need; imported once, not by every process.
_LIBRARIES = ("datasets", "peft", "scipy.spatial", "transformers.pipelines", "transformers.trainer", "accelerate")
_LIBRARIES += ("torch._dynamo", "matplotlib.figure", "typer.testing", "fastapi.testclient", "h5py")


def read_recording(file: Path) -> list[dict[str, Any]]:
    """The tests that passed when they were recorded, the quickest first."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    return sorted((row for row in rows if row["passed"]), key=lambda row: row["seconds"])


Rounds = list[tuple[list[str], float]]
"""Tests that are run one after the other, and the seconds that they took when they were recorded."""


def choose_tests(mutant: Mutant, rows: list[dict[str, Any]]) -> Rounds:
    """Tests to try a change on, in three rounds, each with the seconds that they took when they were recorded.

    The first round has the tests of the folder that mirrors the source, the second one others, both from the quickest
    on; the third one has those that did not fit, of all files by turns. What a fixture of a
    whole file enters is recorded with the first test only, so the other tests of the files that enter the function
    follow. Code outside of functions, and functions that are entered on import alone, are tried on the tests that
    enter any function of their file, else of their folder. Such code and numbers are also tried on the tests that
    compare numbers and defaults of modules with stored ones, dropped arguments on the one that asks whether functions
    read theirs.
    """
    mark = f"{mutant.path}::{mutant.function}"
    hits = [row for row in rows if any(_is_within(name, mark, mutant) for name in row["entered"])]
    for place in (f"{mutant.path}::", f"{Path(mutant.path).parent.as_posix()}/"):
        hits = hits or [row for row in rows if any(name.startswith(place) for name in row["entered"])]
    files = {row["test"].partition("::")[0] for row in hits}
    hit = {row["test"] for row in hits}
    others = [row for row in rows if row["test"].partition("::")[0] in files and row["test"] not in hit]
    near = _mirrored(mutant, [*hits, *others])
    places = {row["test"] for row in near}
    far = [row for row in hits if row["test"] not in places]
    if mutant.kind.endswith("="):
        far = [*(row for row in rows if row["test"] == f"{_ARGUMENTS}[{mutant.path}]"), *far]
    slowness = max(1.0, sum(row["seconds"] for row in rows) / SECONDS_OF_THE_SUITE)
    rounds = [_within(near, slowness * SECONDS_NEAR), _within(far, slowness * SECONDS_ELSEWHERE)]
    tried, most = {test for tests, _ in rounds for test in tests}, slowness * SECONDS_BY_TURNS
    left = [row for row in (*near, *far) if row["test"] not in tried and row["seconds"] <= most]
    rounds.append(_within(_by_turns(left), most))
    return [chosen for chosen in rounds if chosen[0]]


def _by_turns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first test of each file, then the second of each, and so on."""
    turns: Counter[str] = Counter()
    numbered = []
    for row in rows:
        file = row["test"].partition("::")[0]
        numbered.append((turns[file], row))
        turns[file] += 1
    return [row for _, row in sorted(numbered, key=lambda pair: pair[0])]


def _mirrored(mutant: Mutant, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those tests that are in the folder that mirrors the source's, or the next one above it that has some."""
    folder = Path("tests") / mutant.path.removeprefix("hf_any3d/")
    while folder.parts[1:]:
        folder = folder.parent
        near = [row for row in rows if Path(row["test"].partition("::")[0]).parent == folder]
        if near:
            return near
    return []


def _within(rows: list[dict[str, Any]], most: float) -> tuple[list[str], float]:
    """The first of some tests that together take a time, from a number of files, and that time."""
    chosen, seconds, files = [], 0.0, set()
    for row in rows:
        file = row["test"].partition("::")[0]
        fits = seconds + row["seconds"] <= most or not chosen  # one at least, however long it takes
        if fits and (file in files or len(files) < FILES_AT_MOST):
            chosen.append(row["test"])
            files.add(file)
            seconds += row["seconds"]
    return chosen, seconds


def _is_within(name: str, mark: str, mutant: Mutant) -> bool:
    if not mutant.function:
        return name.startswith(f"{mutant.path}::")
    return name == mark or mark.startswith(f"{name}.") or name.startswith(f"{mark}.")


def try_mutants(mutants: list[Mutant], rows: list[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
    """Try each change in a process of its own, forked from this one, which imports the libraries once.

    Args:
        mutants: The changes.
        rows: See `read_recording`.
        number: Of this worker among several.

    Yields:
        For each change its name, line and kind, the outcome ("killed", "timeout", "survived" or "untested"), the test
        that failed, and the seconds. A test that fails on the unchanged sources too is left out from then on.
    """
    trusted: set[str] = set()
    with _copy_of_checkout(number) as copy:
        hub, port = _warm_up(copy)
        for mutant in mutants:
            start = time.monotonic()
            while True:
                rounds = choose_tests(mutant, rows)
                outcome, test = _try(mutant, rounds, copy, hub, port)
                if test is None or test in trusted:
                    break
                if _passes_unchanged(test, rounds, hub, port):
                    trusted.add(test)
                    break
                # It fails after these tests whatever the sources are, and would notice everything.
                rows = [row for row in rows if row["test"] != test]
            yield {
                "mutant": mutant.name,
                "line": mutant.line,
                "kind": mutant.kind,
                "outcome": outcome,
                "test": test,
                "tests": sum(len(tests) for tests, _ in rounds),
                "seconds": round(time.monotonic() - start, 1),
            }


def _try(mutant: Mutant, rounds: Rounds, copy: Path, hub: Any, port: int) -> tuple[str, str | None]:
    """Apply a change, run its tests and take it back; the outcome, and the test that failed."""
    outcome, test = "untested", None
    file = copy / mutant.path
    source = file.read_text(encoding="utf-8")
    file.write_text(mutant.apply(source), encoding="utf-8")
    try:
        for tests, seconds in rounds:
            outcome, test = _run_forked(tests, START + SLOWER * seconds, hub, port)
            if outcome != "survived":
                break
    finally:
        file.write_text(source, encoding="utf-8")
    return outcome, test


def _passes_unchanged(test: str, rounds: Rounds, hub: Any, port: int) -> bool:
    """Whether a test passes without a change, after the same tests as with it."""
    for tests, seconds in rounds:
        if test in tests:
            before = tests[: tests.index(test) + 1]
            return _run_forked(before, START + SLOWER * seconds, hub, port) == ("survived", None)
    return True  # no test, but a file that could not be read, or a process that ended


@contextlib.contextmanager
def _copy_of_checkout(number: int) -> Iterator[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix=f"mutants-{number}-") as folder:
        for name in filter(None, listed.split("\0")):
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file() or (ROOT / name).is_symlink():
                shutil.copy2(ROOT / name, target, follow_symlinks=False)
        compile_by_content(Path(folder))
        yield Path(folder)


def compile_by_content(folder: Path) -> None:
    """Compile a folder's sources to bytecode that holds a digest of its source.

    Python takes such bytecode for a file of the same content only and writes the next one in the same form, so a
    change is never hidden by what was compiled before it, nor outlives itself. Time and size, which it compares
    otherwise, can be those of the last change.
    """
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder, quiet=2, invalidation_mode=mode)


def _warm_up(copy: Path) -> tuple[Any, int]:
    """Import the libraries, but nothing of this project beside the tests' own hub; that hub and its port."""
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "hf_any3d")]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
    import tests.conftest as conftest

    if not Path(conftest.__file__).is_relative_to(copy):
        raise RuntimeError(f"{conftest.__file__}: imported from outside of the copy {copy}")
    conftest.pytest_unconfigure = lambda config: None
    port = conftest._hub._server.server_port
    conftest._hub.close()  # a thread does not outlive a fork; every child opens the hub anew
    import torch

    for name in _LIBRARIES:
        importlib.import_module(name)
    torch.set_num_threads(1)
    # Children share what is not looked at: garbage collection would copy every object's page.
    gc.collect()
    gc.freeze()
    return conftest._hub, port


def _run_forked(tests: list[str], limit: float, hub: Any, port: int) -> tuple[str, str | None]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        spent = sum(os.times()[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent + limit) + 1, resource.RLIM_INFINITY))
        try:
            _run_tests(tests, writing, hub, port)
        finally:
            os._exit(1)
    os.close(writing)
    ended = _wait(child, BY_THE_CLOCK * limit)
    with open(reading, encoding="utf-8") as pipe:
        told = pipe.read()
    if not ended:
        return "timeout", None
    report = json.loads(told) if told else {"failed": "the process ended"}
    return ("killed", report["failed"]) if report["failed"] else ("survived", None)


def _wait(child: int, limit: float) -> bool:
    """Wait for a process; end it, and all that it started, after `limit` seconds. Whether it ended by itself."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run_tests(tests: list[str], writing: int, hub: Any, port: int) -> None:
    import pytest

    class FirstFailure:
        failed: str | None = None

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.outcome == "failed":
                FirstFailure.failed = FirstFailure.failed or report.nodeid

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.outcome == "failed":
                FirstFailure.failed = FirstFailure.failed or f"{report.nodeid} (collection)"

    hub.__init__(port)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main(["-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", *tests], [FirstFailure()])
    if code not in (0, 1) and FirstFailure.failed is None:
        FirstFailure.failed = f"pytest ended with {int(code)}"
    os.write(writing, json.dumps({"failed": FirstFailure.failed}).encode())
    os.close(writing)


def _interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's interval of a share, for 95 %."""
    if not total:
        return 0.0, 1.0
    z, share = 1.96, count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return middle - reach, middle + reach


def summarize(results: list[dict[str, Any]], accepted: dict[str, str]) -> str:
    """The share of changes that were noticed, and the survivors without a reason."""
    counts: dict[str, int] = defaultdict(int)
    for row in results:
        counts[row["outcome"]] += 1
    noticed = counts["killed"] + counts["timeout"]
    low, high = _interval(noticed, len(results))
    share = f"{100 * noticed / max(len(results), 1):.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    lines = [f"{len(results)} changes: {noticed} noticed ({share})"]
    lines += [f"    {outcome}: {count}" for outcome, count in sorted(counts.items())]
    packages: dict[str, list[bool]] = defaultdict(list)
    for row in results:
        packages[package_of(row["mutant"].partition("::")[0])].append(row["outcome"] in ("killed", "timeout"))
    lines += [f"    {package}: {sum(seen)} of {len(seen)}" for package, seen in sorted(packages.items())]
    for row in results:
        if row["outcome"] in ("survived", "untested"):
            reason = accepted.get(row["mutant"])
            lines.append(f"{row['outcome']}, line {row['line']}: {row['mutant']}" + f"\n    {reason}" * bool(reason))
    return "\n".join(lines)
