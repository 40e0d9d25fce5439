"""The service behind the routes: who is admitted, the queue of the model, and what happens at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from hf_any3d.modeling.layers.modes import batch_dependent_flags
from hf_any3d.pipelines import LayoutDetectionPipeline, LayoutTextPipeline
from hf_any3d.serving.batching import Batcher, Work
from hf_any3d.serving.limits import Refused, ServeLimits
from hf_any3d.serving.metrics import Metrics
from hf_any3d.serving.tasks import CHAT, FILE_PATH, SEGMENT_PATH, Route, routes_of
from hf_any3d.tasks.chat.batches import answer_conversations
from hf_any3d.tasks.detection.layout_chat import LayoutConversation, answer_layout

# Seconds after which a refused client may come again.
_LONGEST_WAIT = 60


class Service:
    """A model, its queue and its limits."""

    def __init__(
        self,
        name: str,
        task: str,
        pipe: Any,
        limits: ServeLimits | None = None,
        chat_template: str | None = None,
    ):
        self.name = name
        self.task = task
        self.pipe = pipe
        # Only processors of clouds read further columns of files.
        self.columns: Sequence[str] = getattr(getattr(pipe, "feature_extractor", None), "columns", ())
        self.chat_template = chat_template
        self.limits = limits or ServeLimits()
        self.metrics = Metrics()
        self.unfinished = 0  # requests whose head is there, until their answer is sent
        self.in_flight = 0  # those of them whose body is there, until they have an answer
        self.arriving_bytes = 0
        self.is_draining = False
        self.created = int(time.time())
        # The model's predictions may depend on the other clouds of a batch.
        depends = bool(batch_dependent_flags(pipe.model))
        self.batch = 1 if depends else self.limits.batch
        self.routes: dict[str, Route] = {}
        if task != CHAT:
            self.routes = {route.path: route for route in routes_of(task, pipe)}
        self.layouts = None
        if isinstance(pipe, LayoutDetectionPipeline):  # the same model writes texts
            self.layouts = LayoutTextPipeline(
                model=pipe.model, processor=pipe.processor, device=pipe.device, task=CHAT
            )
        self.batcher = Batcher(self._run, self.batch, self.limits.wait)
        # Looked up whenever somebody reads the figures
        self.metrics.in_flight.set_function(lambda: self.in_flight)
        self.metrics.queued.set_function(lambda: len(self.batcher))

    @property
    def paths(self) -> list[str]:
        """Paths of the routes that this model answers."""
        files = [FILE_PATH] if SEGMENT_PATH in self.routes else []
        return [*self.routes, *files, *(["/v1/chat/completions"] if self.has_chat else [])]

    @property
    def has_chat(self) -> bool:
        """True if the model continues conversations, or writes layouts as answers to its instructions."""
        return self.task == CHAT or self.layouts is not None

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request until its answer is sent; a server that is stopping refuses new ones."""
        if self.is_draining:
            self.metrics.refused.labels("draining").inc()
            raise Refused(503, "the server is stopping", "server_error", headers={"Retry-After": "5"})
        # Also requests whose body has not arrived: the end of the server waits for their answers.
        self.unfinished += 1
        try:
            yield
        finally:
            self.unfinished -= 1

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place among the unanswered requests, for one whose body is there."""
        if self.in_flight >= self.limits.queue:
            self.metrics.refused.labels("queue").inc()
            # How long the requests before it take, at the rate of recent batches.
            seconds = self.in_flight / self.batch * self.batcher.seconds_per_batch
            after = str(min(_LONGEST_WAIT, max(1, math.ceil(seconds))))
            text = f"{self.in_flight} requests are waiting, the maximum; try again in {after} s"
            raise Refused(429, text, "rate_limit_error", headers={"Retry-After": after})
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def submit(self, key: Hashable, content: Any, deadline: float) -> Future:
        """Put a cloud or conversation into the queue of the model."""
        return self.batcher.submit(Work(key, content, deadline))

    def close(self) -> None:
        """Finish the queue."""
        self.batcher.close()

    def _run(self, key: Any, contents: list[Any]) -> list[Any]:
        # How well requests are gathered shows in these two figures.
        self.metrics.batch_size.observe(len(contents))
        with self.metrics.batch_seconds.time():
            if self.task == CHAT:
                return answer_conversations(self.pipe, contents)
            # A layout is written alone, whatever else is waiting.
            if isinstance(key, LayoutConversation):
                assert self.layouts is not None
                return [answer_layout(self.layouts, contents[0])]
            path, settings = key
            return self.routes[path].run(settings, contents, self.batch)
