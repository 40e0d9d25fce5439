"""A queue that gathers requests which arrive together, and the thread that runs the model on them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

# Share of the last batch in the mean time of a batch.
_RECENT = 0.2


# Compared by identity: contents may be arrays, whose comparison has no single answer.
@dataclass(eq=False)
class Work:
    """One cloud or conversation in the queue; after its deadline, by `time.monotonic()`, it is not begun."""

    key: Hashable
    content: Any
    deadline: float
    future: Future = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Runs a function on batches of work, in one thread.

    A batch is complete when it has `max_batch` members, or when its oldest has waited `max_wait` seconds. Only work
    with equal keys is in a batch; the oldest work decides which key is next. Canceled work, and work beyond its
    deadline, is not begun.

    Args:
        run: Function of a key and a list of contents that returns a list of results; exceptions in it are the results
            of single contents.
        max_batch: Maximum size of a batch.
        max_wait: Seconds.

    Attributes:
        seconds_per_batch: Mean time of recent batches; 0 before the first.
    """

    def __init__(self, run: Callable[[Any, list[Any]], Sequence[Any]], max_batch: int, max_wait: float):
        self.run = run
        self.max_batch = max_batch
        self.max_wait = max_wait
        self.seconds_per_batch = 0.0
        self._waiting: deque[Work] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name="model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True if the thread runs."""
        return self._thread.is_alive()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, work: Work) -> Future:
        """Put work into the queue."""
        with self._changed:
            # The condition's lock guards the queue; whoever submits wakes the thread of the model.
            self._waiting.append(work)
            self._changed.notify_all()
        return work.future

    def close(self) -> None:
        """Finish what is in the queue, then stop the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        # After the lock is released, which the thread needs to finish the queue.
        self._thread.join()

    def _loop(self) -> None:
        while (batch := self._next_batch()) is not None:
            if not batch:
                continue
            start = time.monotonic()
            try:
                results = self.run(batch[0].key, [work.content for work in batch])
                results = [result for result, _ in zip(results, batch, strict=True)]
            except BaseException as error:  # the thread must outlive every error of a model
                results = [error] * len(batch)
            seconds = time.monotonic() - start
            mean = self.seconds_per_batch
            self.seconds_per_batch = (1 - _RECENT) * mean + _RECENT * seconds if mean else seconds
            for work, result in zip(batch, results, strict=True):
                if isinstance(result, BaseException):
                    work.future.set_exception(result)
                else:
                    work.future.set_result(result)

    def _next_batch(self) -> list[Work] | None:
        """Wait for a batch; None when the batcher is closed and everything is done."""
        with self._changed:
            while not self._waiting:
                if self._is_closed:
                    return None
                self._changed.wait()
            # The oldest one decides: its kind is gathered, and it waits no longer than `max_wait`.
            key = self._waiting[0].key
            ready = self._waiting[0].arrived + self.max_wait
            while not self._is_closed and sum(work.key == key for work in self._waiting) < self.max_batch:
                if (rest := ready - time.monotonic()) <= 0:
                    break
                self._changed.wait(rest)
            # Others keep their places, so that a frequent kind cannot starve a rare one.
            taken = [work for work in self._waiting if work.key == key][: self.max_batch]
            for work in taken:
                self._waiting.remove(work)
        # Outside of the lock: setting a result may run callbacks, which may submit.
        batch = []
        for work in taken:
            # From here on it cannot be canceled any more; one that was is skipped.
            if not work.future.set_running_or_notify_cancel():
                continue
            if time.monotonic() > work.deadline:
                work.future.set_exception(TimeoutError())
                continue
            batch.append(work)
        return batch
