"""Executors of the work on many files: processes of this machine, or of a cluster of Ray.

A process opens its models once and answers many shards. Only names go to it: it reads the files of its shard itself,
and writes its results itself or returns them. Memory is that of the processes, whatever the number of files.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any

from hf_any3d.many_files.work import Shard, Work
from hf_any3d.utils.threads import available_processors

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
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
        if "RAY_ADDRESS" not in os.environ:
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        ray.init(**options)
    return ray


def limit_threads(cpus: float) -> None:
    """Leave the other processes of this machine their processors, if this one has loaded torch."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(max(1, int(cpus)))


class _Process:
    """The work in a process of its own; opened with the first shard, where an error reaches the program."""

    def __init__(self, work: Work, cpus: float):
        self.work, self.cpus = work, cpus
        self.answer: Callable[[Shard], Iterable[Any]] | None = None

    def run(self, shard: Shard) -> list[Any]:
        if self.answer is None:
            self.answer = self.work.open()
            # Only now, as opening the model has imported torch.
            limit_threads(self.cpus)
        return list(self.answer(shard))


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
        return self, device

    def count(self, shards: int | None = None) -> int:
        """Return the number of processes."""
        count = self.workers.count or 1
        return count if shards is None else min(count, shards)

    def run(self, work: Work, shards: Sequence[Shard]) -> Iterator[Any]:
        """Yield the results of all shards, in their order."""
        # No second process for one: errors and breakpoints stay in the program.
        if self.count() == 1:
            answer = work.open()
            for shard in shards:
                yield from answer(shard)
            return
        count = self.count(len(shards))
        # Not forked: threads and locks of libraries that this process has loaded would not survive.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, context, _begin, (work, available_processors() // self.count())) as processes:
            try:
                for results in processes.map(_run, shards):
                    yield from results
            except BrokenProcessPool:
                raise ChildProcessError(
                    f"one of {count} processes was killed, as when there is too little memory; expected fewer, or "
                    "engine 'ray', which replaces it. The same call continues this run"
                ) from None
            finally:
                # Otherwise leaving the block would wait for all shards that are left.
                processes.shutdown(cancel_futures=True)


_process: _Process | None = None  # in a process of the local executor


def _begin(work: Work, cpus: float) -> None:
    global _process
    _process = _Process(work, cpus)


def _run(shard: Shard) -> list[Any]:
    assert _process is not None
    return _process.run(shard)


@dataclass(frozen=True)
class RayExecutor:
    """Runs work in processes of a cluster of Ray, by default a new one on this machine.

    A process that ends is replaced, and its shards are done again: results that were written must be written so that
    doing it twice is doing it once.
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
        """Yield the results of all shards, in their order; an error of the work ends the run."""
        ray, workers = start(), self.workers
        kind = ray.remote(_Process).options(
            num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=-1, max_task_retries=1
        )
        # A process has one shard at a time, so that its end is due to no other.
        idle = [kind.remote(work, workers.cpus) for _ in range(self.count(len(shards)))]
        waiting = deque(enumerate(shards))
        running: dict[Any, tuple[int, Shard, Any]] = {}
        done: dict[int, list[Any]] = {}
        for number in range(len(shards)):
            while number not in done:
                while idle and waiting:
                    process, (place, shard) = idle.pop(), waiting.popleft()
                    running[process.run.remote(shard)] = place, shard, process
                (reference,), _ = ray.wait([*running])
                place, shard, process = running.pop(reference)
                done[place] = _results(ray, work, shard, process, reference)
                idle.append(process)
            yield from done.pop(number)


def _results(ray: Any, work: Work, shard: Shard, process: Any, reference: Any) -> list[Any]:
    """Wait for the results of a shard; a file at which processes end even if they have no other gets an error."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Ray would add its own traceback to the message.
        raise error.cause from None
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
        if len(shard.files) == 1:
            name = shard.files[0]
            error = f"{name}: processes ended while they had it; it may need more memory than there is"
            return list(work.given_up(shard, error))
    singles = [Shard(f"{shard.name}-{number:03d}", (name,)) for number, name in enumerate(shard.files)]
    return [one for single in singles for one in _results(ray, work, single, process, process.run.remote(single))]


EXECUTORS: dict[str, type[LocalExecutor] | type[RayExecutor]] = {"local": LocalExecutor, "ray": RayExecutor}
