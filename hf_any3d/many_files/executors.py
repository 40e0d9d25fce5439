"""Executors of the work on many files: processes of this machine, or of a cluster of Ray.

A process opens its models once and answers many shards. Only names go to it: it reads the files of its shard itself,
and writes its results itself or returns them. Memory is that of the processes, whatever the number of files.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from hf_any3d.many_files.work import Attempts, Work
from hf_any3d.threads import available_processors

logger = logging.getLogger(__name__)

_USUAL_ERRORS = (FileNotFoundError, ImportError, OSError, TypeError, ValueError)
OBJECT_STORE_BYTES = 200 * 2**20
"""Size of Ray's object store on a machine where Ray is not running yet; names and results need little."""
SHARDS_IN_FLIGHT = 4
"""Shards that a process is given ahead: with two, short ones end before Ray hands out the next."""


@dataclass(frozen=True)
class Workers:
    """Processes of a run.

    Args:
        count: Their number; None for this process, in a cluster for one on each CPU, or on each GPU if they use GPUs.
        cpus: CPUs that each of them is given, the threads of torch.
        gpus: GPUs that each of them is given; 0.5 lets two share one.

    Raises:
        ValueError: A number out of range.
    """

    count: int | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self):
        if self.count is not None and self.count < 1:
            raise ValueError(f"workers is {self.count}; expected at least 1, or None")
        for name, value, least in (("cpus", self.cpus, 0.1), ("gpus", self.gpus, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")

    def number_in(self, resources: Mapping[str, float], shards: int) -> int:
        """Return the number of processes in a cluster for a number of shards.

        Raises:
            ValueError: The cluster has no room for one.
        """
        # A quotient such as 3 / 0.1 may be slightly less than the whole number that it stands for.
        most = int(resources.get("CPU", 0) / self.cpus + 1e-6)
        if self.gpus:
            most = min(most, int(resources.get("GPU", 0) / self.gpus + 1e-6))
        if most < 1:
            has = f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
            raise ValueError(
                f"a worker takes {self.cpus:g} CPUs and {self.gpus:g} GPUs; expected at most the {has} of the cluster"
            )
        return min(self.count or most, most, shards)


def import_ray() -> Any:
    """Import Ray.

    Raises:
        ImportError: It is not installed.
    """
    # Read when Ray is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
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


class Executor(Protocol):
    """Runs work on shards of files. Another one is a class like these, and a line in `EXECUTORS`."""

    def placed(self, device: str | None) -> tuple[Executor, str | None]:
        """Return the executor for work with a model, and the device of the model where `device` is wanted."""
        ...

    def count(self, shards: int) -> int:
        """Return the number of processes for a number of shards."""
        ...

    def run(self, work: Work, shards: Sequence[Mapping[str, Any]], *, in_order: bool = False) -> Iterator[Any]:
        """Yield the results of each shard once, as they are finished.

        Args:
            work: What is done with a shard.
            shards: Values of JSON.
            in_order: Yield in the order of the shards.
        """
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Runs work in this process, or in several others of this machine; one that dies ends the run.

    Raises:
        ValueError: Several processes that use GPUs: all would have the same one.
    """

    workers: Workers = field(default_factory=Workers)

    def __post_init__(self):
        if self.workers.gpus and self.count() > 1:
            raise ValueError(
                f"gpus is {self.workers.gpus:g} for {self.workers.count} processes of this machine; expected one "
                "process, or engine 'ray', which gives each its own"
            )

    def placed(self, device: str | None) -> tuple[LocalExecutor, str | None]:
        """Return this executor and the wanted device; None is the fastest one."""
        return self, device

    def count(self, shards: int | None = None) -> int:
        """Return the number of processes."""
        count = self.workers.count or 1
        return count if shards is None else min(count, shards)

    def run(self, work: Work, shards: Sequence[Mapping[str, Any]], *, in_order: bool = False) -> Iterator[Any]:
        """Yield the results of each shard, in their order; see `Executor`.

        Raises:
            ChildProcessError: A process was killed.
        """
        # No second process for one: errors and breakpoints stay in the program.
        if self.count() == 1:
            run = work.open()
            for shard in shards:
                yield from run(shard, Attempts())
            return
        count = self.count(len(shards))
        # Not forked: threads and locks of libraries that this process has loaded would not survive.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, context, _begin_process, (work, self.count())) as processes:
            try:
                for results in processes.map(_run_in_process, shards):
                    yield from results
            except BrokenProcessPool:
                raise ChildProcessError(
                    f"one of {count} processes was killed, as when there is too little memory"
                ) from None
            finally:
                # Otherwise leaving the block would wait for all shards that are left.
                processes.shutdown(cancel_futures=True)


# In a process of the local executor: its work, and the function that does it once the model is open.
_work: Work | None = None
_run_shard: Callable[[Mapping[str, Any], Attempts], Iterator[Any]] | None = None
_processes = 1


def _begin_process(work: Work, processes: int) -> None:
    global _work, _processes
    _work, _processes = work, processes


def _run_in_process(shard: Mapping[str, Any]) -> list[Any]:
    global _run_shard
    if _run_shard is None:  # here, where an error reaches the program
        assert _work is not None
        _run_shard = _work.open()
        # Only now, as opening the model has imported torch.
        limit_threads(available_processors() // _processes)
    return list(_run_shard(shard, Attempts()))


def limit_threads(cpus: float) -> None:
    """Leave the other processes of this machine their processors, if this one has loaded torch."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(max(1, int(cpus)))


@dataclass(frozen=True)
class RayExecutor:
    """Runs work in processes of a cluster of Ray, by default a new one on this machine.

    A process that ends is replaced, and its shards are done again: results that were written must be written so that
    doing it twice is doing it once.

    Raises:
        ImportError: Ray is not installed.
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
        """Return the number of processes; see `Executor`."""
        return self.workers.number_in(start().cluster_resources(), shards)

    def run(self, work: Work, shards: Sequence[Mapping[str, Any]], *, in_order: bool = False) -> Iterator[Any]:
        """Yield the results of each shard; see `Executor`.

        Raises:
            ValueError: An error of the work, which ends the run; OSError, ImportError and other errors likewise.
        """
        count = self.count(len(shards))
        # Text, so that no column gets a type of its own; a block a shard, so that all processes have work to the end.
        items = [{"shard": number, "value": json.dumps(shard)} for number, shard in enumerate(shards)]
        with tempfile.TemporaryDirectory(prefix="hf-any3d-attempts-") as attempts:
            for answer in _answers(work, items, count, self.workers, in_order, attempts):
                if "raised" in answer:
                    logger.debug("%s", answer["trace"])
                    raise restored_error(*answer["raised"])
                yield from answer["results"]


EXECUTORS: dict[str, type[LocalExecutor] | type[RayExecutor]] = {"local": LocalExecutor, "ray": RayExecutor}


def executor_of(engine: str, workers: Workers) -> Executor:
    """Return an executor by its name.

    Raises:
        ValueError: There is none of this name.
    """
    if engine not in EXECUTORS:
        raise ValueError(f"engine is {engine!r}; expected one of {', '.join(EXECUTORS)}")
    return EXECUTORS[engine](workers)


def _answers(
    work: Work, items: list[Any], count: int, workers: Workers, in_order: bool, attempts: str
) -> Iterator[dict[str, Any]]:
    import ray.data

    rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Process,
        fn_constructor_args=(work, workers.cpus, attempts),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    rows.context.execution_options.preserve_order = in_order
    rows.context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return (json.loads(row["answer"]) for row in rows.iter_rows())


def described_error(error: Exception) -> tuple[str, str]:
    """Return the type and the message of an error as text; the type is a usual one where it is derived from that."""
    # In the order of resolution, so that a FileNotFoundError does not become the OSError that it is, too.
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind in _USUAL_ERRORS]
    return kinds[0] if kinds else type(error).__name__, str(error)


def restored_error(kind: str, text: str) -> Exception:
    """Return the error that was described."""
    usual = {one.__name__: one for one in _USUAL_ERRORS}
    return usual[kind](text) if kind in usual else RuntimeError(f"{kind}: {text}")


class _Process:
    """A process of the pool.

    Errors are returned, as Ray would wrap them into several others and start a process again whose model cannot be
    opened.
    """

    def __init__(self, work: Work, cpus: float, attempts: str):
        self.work, self.cpus, self.attempts = work, cpus, Path(attempts)
        self.run: Callable[[Mapping[str, Any], Attempts], Iterator[Any]] | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Answer the one shard of a batch."""
        try:
            if self.run is None:
                self.run = self.work.open()
                limit_threads(self.cpus)
            # On each machine of its own: the folder of the program that started the run, or one like it.
            attempts = Attempts(self.attempts / f"{int(batch['shard'][0])}.json")
            answer = {"results": list(self.run(json.loads(str(batch["value"][0])), attempts))}
            attempts.finish()
        except Exception as error:
            # As text: errors may not be picklable, and Ray would wrap them in its own.
            answer = {"raised": described_error(error), "trace": traceback.format_exc()}
        return {"answer": [json.dumps(answer)]}
