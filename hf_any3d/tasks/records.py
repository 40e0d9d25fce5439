"""Record of a task, `about.py` of its package, which declares it; it imports nothing that takes time."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """Task of the models with one kind of head.

    Attributes:
        auto_class: Class that opens any of them, of `hf_any3d.integration.auto` or of transformers.
        kind: What messages call such a model.
        command: The command of `hf-any3d` that runs it.
        pipeline: Class of `pipeline.py` in the package; None for tasks without a pipeline.
        name: Name of the pipeline.
        settings: Dataclass of `settings.py`: what the task can be asked for.
        answers: Class of `answer.py`, by which doors show answers; None for a task with doors of its own.
        help: What its command does, in the words of help; empty where the command is written by hand.
        also: Commands whose models it takes, too.
        models: Types of the models that it takes; empty for all with its head.
        rows: What a run of its command is called in the description of the run; None if it has no runs.
        route: Path in the service; None if it has none. Tasks with the same path share its settings.
        question: What its page asks.
        heading: What stands above the answer on its page.
        package: That of the record; the registry fills it in.
    """

    auto_class: str
    kind: str
    command: str
    pipeline: str | None = None
    name: str = ""
    settings: Any = None
    answers: str | None = None
    help: str = ""
    also: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    rows: str | None = None
    route: str | None = None
    question: str = ""
    heading: str = ""
    package: str = ""

    def takes(self, model: Any) -> bool:
        """Return whether it takes a model of this type."""
        return not self.models or model.config.model_type in self.models

    def pipeline_class(self) -> type:
        """Return the class of the pipeline; importing it takes seconds."""
        return getattr(importlib.import_module(f"{self.package}.pipeline"), str(self.pipeline))

    def answers_class(self) -> Any:
        """Return the class by which answers are shown, of `hf_any3d.tasks.answers.Answers`."""
        return getattr(importlib.import_module(f"{self.package}.answer"), str(self.answers))
