"""Work on Ray Data: shards of items go to a pool of processes, each of which is opened once and answers many shards.

Only names go through Ray's object store: a process reads the files of its shard itself and writes its results itself,
or returns them as text. Memory is that of the processes, whatever the number of files.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hf_any3d.atomic_files import read_json

logger = logging.getLogger(__name__)

_MOST_ENDED = 2
_USUAL_ERRORS = (FileNotFoundError, ImportError, OSError, TypeError, ValueError)
OBJECT_STORE_BYTES = 200 * 2**20
"""Size of Ray's object store on a machine where Ray is not running yet; names and results need little."""
SHARDS_IN_FLIGHT = 4
"""Shards that a process is given ahead: with two, short ones end before Ray hands out the next."""


class Work(Protocol):
    """The work of one process; it is pickled."""

    def open(self) -> Callable[[Mapping[str, Any], Attempts], Any]:
        """Open models and return the function that is called with each shard; both ends are JSON."""
        ...


class Attempts:
    """Record of the processes that had a shard before: a file at which two of them ended is left out.

    Ray starts a process again as often as it ends, so that a file that exhausts the memory, or at which a library
    faults, would stop a run for good. After one process has ended, the files of its shard are noted one at a time.

    Args:
        path: File with the state; None forgets it.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        known = (None if path is None else read_json(path)) or {"started": False, "now": None, "ended": {}}
        self.ended: dict[str, int] = known["ended"]
        if known["now"] is not None:
            self.ended[known["now"]] = self.ended.get(known["now"], 0) + 1
        self.is_careful = known["started"]
        """True if files must be processed one at a time, each after a call of `begin`."""
        self._note(None)

    def begin(self, file: str) -> str | None:
        """Note the file that is processed next; returns the error of one that must be left out."""
        if self.ended.get(file, 0) >= _MOST_ENDED:
            return f"{file}: {_MOST_ENDED} processes ended while they had it; it may need more memory than there is"
        if self.is_careful:
            self._note(file)
        return None

    def finish(self) -> None:
        """Forget a shard that is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _note(self, file: str | None) -> None:
        if self.path is not None:
            # Not flushed to disk, which takes long: it must outlive the process, not the machine.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(".tmp")
            unfinished.write_text(json.dumps({"started": True, "now": file, "ended": self.ended}), encoding="utf-8")
            os.replace(unfinished, self.path)


@dataclass(frozen=True)
class Workers:
    """Processes of a run.

    Args:
        count: Their number; None for one on each CPU of the cluster, or on each GPU if they use GPUs.
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
            raise ValueError(f"workers is {self.count}; expected at least 1, or None for as many as there are CPUs")
        for name, value, least in (("cpus", self.cpus, 0.1), ("gpus", self.gpus, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")

    def number_in(self, resources: Mapping[str, float], shards: int) -> int:
        """Return the number of processes in a cluster for a number of shards.

        Raises:
            ValueError: The cluster has no room for one.
        """
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
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
        if "RAY_ADDRESS" not in os.environ:
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        ray.init(**options)
    return ray


def distribute(
    work: Work, shards: Sequence[Mapping[str, Any]], workers: Workers, *, in_order: bool = False
) -> Iterator[tuple[int, Any]]:
    """Yield `(number of the shard, result)` for each shard once, as they are finished.

    A process that ends is replaced, and its shards are done again: results that were written must be written so that
    doing it twice is doing it once.

    Args:
        work: What is done with a shard.
        shards: Values of JSON.
        workers: The processes.
        in_order: Yield in the order of the shards.

    Raises:
        ValueError: An error of the work, which ends the run; OSError, ImportError and other errors likewise.
    """
    if not shards:
        return
    ray = start()
    count = workers.number_in(ray.cluster_resources(), len(shards))
    # Text, so that no column gets a type of its own; a block a shard, so that all processes have work until the end.
    items = [{"shard": number, "value": json.dumps(shard)} for number, shard in enumerate(shards)]
    with tempfile.TemporaryDirectory(prefix="hf-any3d-attempts-") as attempts:
        yield from _results(ray, work, items, count, workers, in_order, attempts)


def _results(
    ray: Any, work: Work, items: list[Any], count: int, workers: Workers, in_order: bool, attempts: str
) -> Iterator[tuple[int, Any]]:
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Process,
        fn_constructor_args=(work, attempts),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    rows.context.execution_options.preserve_order = in_order
    rows.context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for row in rows.iter_rows():
        answer = json.loads(row["answer"])
        if "raised" in answer:
            logger.debug("%s", answer["trace"])
            raise restored_error(*answer["raised"])
        yield int(row["shard"]), answer["result"]


def described_error(error: Exception) -> tuple[str, str]:
    """Return the type and the message of an error as text; the type is a usual one where it is derived from that."""
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

    def __init__(self, work: Work, attempts: str):
        self.work, self.run, self.attempts = work, None, Path(attempts)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Answer the one shard of a batch."""
        try:
            self.run = self.run or self.work.open()
            # On each machine of its own: the folder of the program that started the run, or one like it.
            attempts = Attempts(self.attempts / f"{int(batch['shard'][0])}.json")
            answer = {"result": self.run(json.loads(str(batch["value"][0])), attempts)}
            attempts.finish()
        except Exception as error:
            answer = {"raised": described_error(error), "trace": traceback.format_exc()}
        return {"shard": [int(batch["shard"][0])], "answer": [json.dumps(answer)]}
