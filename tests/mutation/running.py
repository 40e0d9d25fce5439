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
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.mutation.mutants import ROOT, Mutant, package_of

# Tests that enter the function are run for so many recorded seconds from the quickest on, first those of the folder
# that mirrors the source, which notice most. Reading a test file takes about half a second.
SECONDS, FILES_AT_MOST = 30.0, 24
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


def choose_tests(mutant: Mutant, rows: list[dict[str, Any]]) -> tuple[list[str], float]:
    """Tests to try a change on, and the seconds that they took when they were recorded.

    What a fixture of a whole file enters is recorded with the first test only, so the other tests of the files that
    enter the function follow. Code outside of functions, and functions that are entered on import alone, are tried on
    the tests that enter any function of their file, else of their folder.
    """
    mark = f"{mutant.path}::{mutant.function}"
    hits = [row for row in rows if any(_is_within(name, mark, mutant) for name in row["entered"])]
    for place in (f"{mutant.path}::", f"{Path(mutant.path).parent.as_posix()}/"):
        hits = hits or [row for row in rows if any(name.startswith(place) for name in row["entered"])]
    entering, files = {row["test"] for row in hits}, {_file_of(row) for row in hits}
    hits += [row for row in rows if _file_of(row) in files and row["test"] not in entering]
    folder = f"tests/{Path(mutant.path.removeprefix('hf_any3d/')).parent.as_posix()}/"
    chosen, seconds, read = [], 0.0, set()
    for row in sorted(hits, key=lambda row: not row["test"].startswith(folder)):
        fits = seconds + row["seconds"] <= SECONDS or not chosen  # one at least, however long it takes
        if fits and (_file_of(row) in read or len(read) < FILES_AT_MOST):
            chosen.append(row["test"])
            read.add(_file_of(row))
            seconds += row["seconds"]
    return chosen, seconds


def _file_of(row: dict[str, Any]) -> str:
    return row["test"].partition("::")[0]


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
            start, file = time.monotonic(), copy / mutant.path
            source = file.read_text(encoding="utf-8")
            while True:
                tests, seconds = choose_tests(mutant, rows)
                limit = START + SLOWER * seconds
                file.write_text(mutant.apply(source), encoding="utf-8")
                outcome, test = _run_forked(tests, limit, hub, port) if tests else ("untested", None)
                file.write_text(source, encoding="utf-8")
                if test is None or test in trusted or test not in tests:
                    break
                if _run_forked(tests[: tests.index(test) + 1], limit, hub, port) == ("survived", None):
                    trusted.add(test)
                    break
                # It fails after these tests whatever the sources are, and would notice everything.
                rows = [row for row in rows if row["test"] != test]
            facts = {"mutant": mutant.name, "line": mutant.line, "kind": mutant.kind, "outcome": outcome, "test": test}
            yield {**facts, "tests": len(tests), "seconds": round(time.monotonic() - start, 1)}


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


def summarize(results: list[dict[str, Any]], accepted: dict[str, str]) -> str:
    """The share of changes that were noticed, and the survivors without a reason."""
    # Workers, which import this module, import the project only from their copies.
    from hf_any3d.evaluation.classification import wilson_interval

    counts: dict[str, int] = defaultdict(int)
    for row in results:
        counts[row["outcome"]] += 1
    noticed = counts["killed"] + counts["timeout"]
    low, high = wilson_interval(noticed, len(results))
    share = f"{100 * noticed / len(results):.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
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
