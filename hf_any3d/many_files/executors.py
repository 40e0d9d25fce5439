"""Executors of the work on many files: processes of this machine, or of a cluster of Ray.

A process opens its models once and answers many shards. Only names go to it: it reads the files of its shard itself,
and writes its results itself or returns them. Memory is that of the processes, whatever the number of files.
"""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from typing import Any

from hf_any3d.many_files.work import Shard, Work
from hf_any3d.utils.devices import check_device
from hf_any3d.utils.messages import one_line, without_remarks
from hf_any3d.utils.threads import available_processors

# Seconds in which Ray starts another process for one that ended, on this or another machine.
_REPLACED_SECONDS = 120

OBJECT_STORE_BYTES = 200 * 2**20
"""Size of Ray's object store on a machine where Ray is not running yet; names and results need little."""


@dataclass(frozen=True)
class Workers:
    """Processes of a run, and the CPUs, threads of torch, and GPUs of each; with 0.5 two share one.

    Without a number it is this process, in a cluster one on each CPU, or on each GPU if they use GPUs.
    """

    count: int | None = None
    cpus: float = 1
    gpus: float = 0

    def number_in(self, resources: Mapping[str, float], shards: int) -> int:
        """Return the number of processes in a cluster for a number of shards."""
        # A quotient such as 3 / 0.1 may be slightly less than the whole number that it stands for.
        most = int(resources.get("CPU", 0) / self.cpus + 1e-6)
        if self.gpus:
            most = min(most, int(resources.get("GPU", 0) / self.gpus + 1e-6))
        if most < 1:
            has = f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
            raise ValueError(f"a worker takes {self.cpus:g} CPUs and {self.gpus:g} GPUs; expected at most {has}")
        # More processes than shards would open their models for nothing.
        return min(self.count or most, most, shards)


def import_ray() -> Any:
    """Import Ray."""
    # Read when Ray is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError("work on many files at once needs Ray: pip install 'hf-any3d[ray]'") from error
    return ray


def start() -> Any:
    """Return Ray, connected to a cluster: the one that runs, that of RAY_ADDRESS, or a new one on this machine."""
    ray = import_ray()
    if not ray.is_initialized():
        # Ray would fill the terminal with its own lines between those of the program.
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
        try:
            # The cluster that RAY_ADDRESS names, or one that runs on this machine; it has settings of its own.
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **quiet)
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    return ray


def limit_threads(cpus: float) -> None:
    """Leave the other processes of this machine their processors, if this one has loaded torch."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(max(1, int(cpus)))


class _Process:
    """The work in a process of its own; opened with the first shard, where an error reaches the program."""

    def __init__(self, work: Work, cpus: float):
        self.work = work
        self.cpus = cpus
        self.answer: Callable[[Shard], Iterable[Any]] | None = None

    def results(self, shard: Shard) -> Iterator[Any]:
        """Yield the results of a shard as they come."""
        if self.answer is None:
            self.answer = self.work.open()
            # Only now, as opening the model has imported torch.
            limit_threads(self.cpus)
        yield from self.answer(shard)

    def run(self, shard: Shard) -> list[Any]:
        """Return the results of a shard."""
        return list(self.results(shard))

    def is_there(self) -> bool:
        """Answer, so that another process knows that this one runs."""
        return True


@dataclass(frozen=True)
class LocalExecutor:
    """Runs work in this process, or in several others of this machine; one that dies ends the run."""

    workers: Workers = field(default_factory=Workers)

    def __post_init__(self):
        if self.workers.gpus and self.count() > 1:
            raise ValueError(
                f"gpus is {self.workers.gpus:g} for {self.workers.count} processes of this machine; expected one "
                "process, or engine 'ray', which gives each its own"
            )

    def placed(self, device: str | None) -> tuple[LocalExecutor, str | None]:
        """Return the executor for work with a model, and the device of the model; None is the fastest one."""
        check_device(device)
        return self, device

    def count(self, shards: int | None = None) -> int:
        """Return the number of processes."""
        count = self.workers.count or 1
        return count if shards is None else min(count, shards)

    def run(self, work: Work, shards: Sequence[Shard]) -> Iterator[Any]:
        """Yield the results of all shards: in their order from one process, from several as they come."""
        # No second process for one: errors and breakpoints stay in the program.
        if self.count() == 1:
            answer = work.open()
            for shard in shards:
                yield from answer(shard)
            return
        # Each process would start threads for all processors.
        cpus = available_processors() // self.count()
        processes = [_WorkerProcess(work, cpus) for _ in range(self.count(len(shards)))]
        try:
            yield from _results_as_they_come(processes, shards)
        finally:
            # At the end they wait for a shard; after an error some are at work.
            for process in processes:
                process.end()


def _results_as_they_come(processes: Sequence[_WorkerProcess], shards: Sequence[Shard]) -> Iterator[Any]:
    """Give each process a shard at a time, and yield the results one by one."""
    waiting = deque(shards)
    busy = {process.connection: process for process in processes}
    for process in processes:
        # There are no more processes than shards, so each has one to begin with.
        process.begin(waiting.popleft())
    while busy:
        for connection in wait(list(busy)):
            process = busy[connection]
            kind, content = process.next_message()
            if kind == _RESULT:
                yield content
            elif waiting:
                process.begin(waiting.popleft())
            else:
                del busy[connection]


_RESULT, _ERROR, _DONE = "result", "error", "done"
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class _WorkerProcess:
    """Another process of this machine, and the connection to it; it does one shard after the other."""

    def __init__(self, work: Work, cpus: float):
        # Not forked: threads and locks of libraries that this process has loaded would not survive.
        context = multiprocessing.get_context("spawn")
        connection, there = context.Pipe()
        self.connection: Any = connection
        self.process = context.Process(target=_serve, args=(there, work, cpus), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        there.close()  # so that the end of the process is the end of what comes from it

    def begin(self, shard: Shard) -> None:
        """Let the process begin a shard."""
        with _killed_is_an_error():
            self.connection.send(shard)

    def next_message(self) -> tuple[str, Any]:
        """Wait for a result of the shard, or its end; an error of the work is raised."""
        with _killed_is_an_error():
            kind, content = self.connection.recv()
        if kind == _ERROR:
            error, trace = content
            raise error from ChildProcessError(trace)
        return kind, content

    def end(self) -> None:
        """End the process, at once."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C for a moment; a process that begins inside goes on doing so, while Python starts in it, too."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say what signals mean
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _killed_is_an_error() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise ChildProcessError(
            "one of the processes was killed, as when there is too little memory; expected fewer, or engine 'ray', "
            "which replaces it. The same call continues this run"
        ) from None


def _serve(connection: Any, work: Work, cpus: float) -> None:
    """Answer the shards that come through a connection, in a process of the local executor."""
    # Ctrl-C reaches all processes of a terminal; the first one says what it means for the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # The system ends it, even while a large library is being loaded, when no thread of Python runs.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    process = _Process(work, cpus)
    with without_remarks(), suppress(EOFError, ConnectionError):  # the first process has ended
        while True:
            shard = connection.recv()
            try:
                # One by one, so that a result is on disk as soon as it is there, and a kill loses no others.
                for result in process.results(shard):
                    connection.send((_RESULT, result))
                connection.send((_DONE, None))
            except Exception as error:
                # Sent as one that the other process can open: one of its words where it cannot be copied.
                try:
                    portable = copy.deepcopy(error)  # made anew of its arguments, as in the other process
                except Exception:
                    portable = RuntimeError(f"{type(error).__name__}: {one_line(error)}")
                connection.send((_ERROR, (portable, traceback.format_exc())))


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, even if killed; on every system."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclass(frozen=True)
class RayExecutor:
    """Runs work in processes of a cluster of Ray, by default a new one on this machine.

    A process that ends is replaced, and its shards are done again: results that were written must be written so that
    doing it twice is doing it once. One that cannot be replaced, as its machine is lost, ends the run.
    """

    workers: Workers = field(default_factory=Workers)

    def __post_init__(self):
        import_ray()

    def placed(self, device: str | None) -> tuple[RayExecutor, str]:
        """Return an executor that gives each process a GPU where there are GPUs or one is wanted, and the device.

        A process sees only the GPU that Ray gives it, so that the device has no number.
        """
        # An empty text where the cluster has no GPU.
        wanted = device or "cuda" * bool(start().cluster_resources().get("GPU"))
        if not wanted.startswith("cuda"):
            return self, device or "cpu"
        return replace(self, workers=replace(self.workers, gpus=1)), "cuda"

    def count(self, shards: int) -> int:
        """Return the number of processes."""
        return self.workers.number_in(start().cluster_resources(), shards)

    def run(self, work: Work, shards: Sequence[Shard]) -> Iterator[Any]:
        """Yield the results of all shards as they come; an error of the work ends the run."""
        ray = start()
        workers = self.workers
        # Processes are replaced without end; a shard that ends two of them is then tried file by file.
        kind = ray.remote(_Process).options(
            num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=-1, max_task_retries=1
        )
        # A process has one shard at a time, so that its end is due to no other.
        idle = [kind.remote(work, workers.cpus) for _ in range(self.count(len(shards)))]
        waiting = deque(shards)
        running: dict[Any, tuple[Shard, Any]] = {}
        while waiting or running:
            while idle and waiting:
                process = idle.pop()
                shard = waiting.popleft()
                running[process.run.remote(shard)] = shard, process
            (reference,), _ = ray.wait([*running])
            shard, process = running.pop(reference)
            yield from _results(ray, work, shard, process, reference)
            idle.append(process)


def _results(ray: Any, work: Work, shard: Shard, process: Any, reference: Any) -> list[Any]:
    """Wait for the results of a shard; a file at which processes end even if they have no other is given up."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Ray would add its own traceback to the message.
        raise error.cause from None
    except _ends_of_processes(ray) as error:
        # Without a process, no file is at fault.
        _check_replaced(ray, process, error)
        if len(shard.files) == 1:
            name = shard.files[0]
            error = f"{name}: processes ended while they had it; it may need more memory than there is"
            return list(work.given_up(shard, error))
    # Each file alone, to find the one at which processes end.
    singles = [Shard(f"{shard.name}-{number:03d}", (name,)) for number, name in enumerate(shard.files)]
    return [one for single in singles for one in _results(ray, work, single, process, process.run.remote(single))]


def _ends_of_processes(ray: Any) -> tuple[type[Exception], ...]:
    """Return Ray's errors that are about a process or a machine, not about the work."""
    errors = ray.exceptions
    # A result that was not fetched yet is lost with the machine that computed it.
    return (
        errors.RayActorError,
        errors.OutOfMemoryError,
        errors.NodeDiedError,
        errors.WorkerCrashedError,
        errors.ObjectLostError,
    )


def _check_replaced(ray: Any, process: Any, error: Exception) -> None:
    """Wait until a process that ended is replaced; an error if it is not."""
    try:
        ray.get(process.is_there.remote(), timeout=_REPLACED_SECONDS)
    except (*_ends_of_processes(ray), ray.exceptions.GetTimeoutError):
        raise ChildProcessError(
            "a process of Ray ended and was not replaced, as when its machine is lost; expected a cluster with room "
            "for it. The same call continues this run"
        ) from error


EXECUTORS: dict[str, type[LocalExecutor] | type[RayExecutor]] = {"local": LocalExecutor, "ray": RayExecutor}
