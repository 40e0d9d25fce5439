"""Run a program in a child process and interrupt it at its n-th file event.

A child is a fork of this process, which has imported everything, so that a run is fast. File events are Python's audit
events, and those of wrappers around writers outside Python.

    kill  SIGKILL before the event
    tear  from then on, a write that extends a file beyond some bytes kills the child
    full  from then on, such a write fails, as on a full disk
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_any3d.utils.atomic_files import claim

MODES = ("kill", "tear", "full")
ALL = os.environ.get("HF_ANY3D_FAULTS") == "all"
ROOM = 64
"""Largest size of a file once the disk is full."""
# Event -> whether its path must exist.
_ON_PATHS = {"os.remove": True, "os.rmdir": True, "os.rename": True, "os.mkdir": False}


@dataclass
class Ending:
    """Outcome of a child process.

    Args:
        how: "done", "failed" with a Python error, or "killed".
        events: Its file events, unless it was killed.
        output: What it printed.
    """

    how: str
    events: list[str]
    output: str


_counter: Counter | None = None  # of the child


def note(what: str) -> None:
    """Count an event other than those of files."""
    _counter.note(what, _counter.root)


class Counter:
    """Count file events below a folder, and interrupt the process at one of them."""

    def __init__(self, root: Path, at: int | None, mode: str):
        self.root, self.at, self.mode = os.path.realpath(root), at, mode
        self.seen: list[str] = []

    def note(self, what: str, path: Any) -> None:
        path = os.path.abspath(os.fsdecode(path))
        if path != self.root and not path.startswith(self.root + os.sep):
            return
        self.seen.append(f"{what} {os.path.relpath(path, self.root)}")
        if len(self.seen) - 1 == self.at:
            self.act()

    def act(self) -> None:
        if self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "tear":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def audit(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR):
                self.note("open", path)
        elif event in _ON_PATHS:
            path = _at(arguments[0], arguments[-1 if event != "os.rename" else 2])
            if os.path.lexists(path) == _ON_PATHS[event]:
                self.note(event, path)

    def watch(self) -> None:
        """Start counting; audit hooks cannot be removed."""
        import safetensors.torch
        import torch

        for module, name in ((torch, "save"), (safetensors.torch, "serialize_file")):
            setattr(module, name, self._watched(getattr(module, name), name))
        sys.addaudithook(self.audit)

    def _watched(self, function: Callable, name: str) -> Callable:
        def watched(content: Any, path: Any, *arguments: Any, **settings: Any) -> Any:
            if not isinstance(path, (str, os.PathLike)):
                return function(content, path, *arguments, **settings)
            self.note(f"before {name}", path)
            made = function(content, path, *arguments, **settings)
            self.note(f"after {name}", path)
            return made

        return watched


def run_child(work: Callable[[], Any], root: Path, at: int | None = None, mode: str = "kill") -> Ending:
    """Run `work` in a child.

    Args:
        work: The program.
        root: Only events below this folder count.
        at: Number of the event to interrupt; None for none.
        mode: The kind of interruption, one of `MODES`.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_as_child(work, Counter(root, at, mode), writing)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as pipe:
        output = pipe.read()
    _, status = os.waitpid(child, 0)
    lines = output.splitlines()
    events = [line.removeprefix("EVENT ") for line in lines if line.startswith("EVENT ")]
    rest = "\n".join(line for line in lines if not line.startswith("EVENT "))
    how = "killed" if os.WIFSIGNALED(status) else "done" if os.WEXITSTATUS(status) == 0 else "failed"
    return Ending(how, events, rest)


@contextmanager
def held_by_another(lock: Path) -> Iterator[int]:
    """Hold a lock in another process until it is killed, at the end at the latest; yield its process number."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            claim(lock, lock)
            os.write(writing, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"."
        yield child
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def fill(disk: Path, but: int) -> None:
    """Fill a disk with a file `ballast` except for some bytes."""
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - but))


def points(events: int, every: int, mode: str | None = None) -> list[int]:
    """Return the numbers of the events to try: all with HF_ANY3D_FAULTS=all, else every n-th.

    With a mode, the modes share those by turns, so that each event is tried in one mode, and each mode at least once.
    """
    if ALL:
        return list(range(events))
    turn, turns = (0, 1) if mode is None else (MODES.index(mode), len(MODES))
    return list(range(0, events, every))[turn::turns] or [turn * every % events]


def report(program: str, mode: str, tried: int, again: int) -> None:
    """Print a summary if all events were tried."""
    if ALL:
        print(
            f"\n{program}, {mode}: interrupted {tried} times, {again} of them twice in a row; 0 failures", flush=True
        )


def _run_as_child(work: Callable[[], Any], counter: Counter, writing: int) -> None:
    global _counter
    _counter, code = counter, 1
    try:
        for number in (1, 2):
            os.dup2(writing, number)
        sys.stdout = sys.stderr = open(writing, "w", encoding="utf-8")
        counter.watch()
        work()
        code = 0
    except SystemExit as ending:
        print(ending.code)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            print("\n".join(f"EVENT {event}" for event in counter.seen), flush=True)
        finally:
            # No cleanup, which would affect the parent.
            os._exit(code)


def _at(path: Any, folder: Any) -> str:
    """Resolve a path that may be relative to an open folder."""
    path = os.fsdecode(path)
    if os.path.isabs(path) or not isinstance(folder, int) or folder < 0:
        return path
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
