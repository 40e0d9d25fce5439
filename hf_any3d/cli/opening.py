"""The model of a command: found by its name, described by its configuration, and opened as a pipeline.

A command asks once, `model_for` or `found_model`, and hands the answer on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_any3d.cli.libraries import load_libraries, need_libraries
from hf_any3d.cli.progress import status
from hf_any3d.hub.models import CONFIG, download_config, find_model
from hf_any3d.hub.published_table import is_published
from hf_any3d.registry import MODEL_TYPES, TASKS, check_model_type, task_of_class
from hf_any3d.tasks.chat.about import TASK as CHAT_TASK
from hf_any3d.tasks.records import Task
from hf_any3d.utils.atomic_files import read_json_object
from hf_any3d.utils.devices import check_device
from hf_any3d.utils.messages import model_errors, print_line

CHAT = CHAT_TASK.name


@dataclass(frozen=True)
class FoundModel:
    """A model that a command was given, with the facts of its configuration.

    The configuration is read once, when it is first asked for. Of a model on the hub this file alone is downloaded; a
    published checkpoint is fetched and converted.

    Attributes:
        name: Directory or hub name.
        revision: Branch, tag or commit on the hub.
        note: Remark for whoever did not choose the model, such as that it is the packaged one.
    """

    name: str
    revision: str | None = None
    note: str = ""

    @cached_property
    def folder(self) -> Path | None:
        """The directory of the model, of a published checkpoint the converted one; None for a model on the hub."""
        if not is_published(self.name):
            return Path(self.name) if Path(self.name).is_dir() else None
        with status(f"fetching and converting {self.name}"):
            load_libraries()
            from hf_any3d.published import opened_directory

            return opened_directory(self.name, self.revision)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration; empty for an adapter alone."""
        if self.folder is None:
            with status(f"looking for {self.name} on the Hub"):
                return read_json_object(download_config(self.name, self.revision))
        file = self.folder / CONFIG
        return read_json_object(file) if file.is_file() else {}

    @property
    def architecture(self) -> str:
        """Name of the model's class, "" if its configuration names none."""
        return str((self.config.get("architectures") or [""])[0])

    @property
    def task(self) -> Task | None:
        """Record of the task that the class is for, None if the configuration names no model of this package."""
        if self.config.get("model_type") not in MODEL_TYPES:
            return None
        task = task_of_class(self.architecture)
        return None if task is None else TASKS[task]

    @property
    def labels(self) -> list[str]:
        """Names of the classes; none for a model without."""
        return [str(name) for name in (self.config.get("id2label") or {}).values()]

    @property
    def title(self) -> str:
        """The name that others are shown: that of a directory, not where it is."""
        return Path(self.name).resolve().name if Path(self.name).is_dir() else self.name

    def check(self, *commands: str) -> None:
        """Refuse a model that is for none of these commands; the error names its own one."""
        if self.task is not None and self.task.command not in commands:
            step = f"use hf-any3d {self.task.command}"
            if commands[0] == "zero-shot":
                step = f"--labels needs a zero-shot model; without --labels, {step}"
            raise ValueError(f"{self.name} is {self.task.kind}; {step}")
        # Models of transformers, and of newer versions of this package, are named in the error.
        if self.task is None and self.config.get("model_type") is not None:
            check_model_type(self.name, self.config["model_type"])

    def open(self, task: str, device: str | None) -> Any:
        """Return the pipeline of a task, see `open_pipeline`."""
        return open_pipeline(task, self.name, device)


def found_model(name: str, revision: str | None = None) -> FoundModel:
    """Return the model of a name, after checking what can be checked without the hub."""
    return FoundModel(find_model(name, revision), revision)


def model_for(name: str | None, *commands: str, revision: str | None = None) -> FoundModel:
    """Return the model of a name for one of these commands, before anything large is loaded.

    None stands for the packaged one, which classifies household objects, and whose encoder has features of any object.
    """
    if name is None:
        what = "classifier" if commands == ("predict",) else "encoder"
        note = f"using the bundled {what} of household objects; choose another model with --model"
        return FoundModel(packaged_classifier(), note=note)
    model = found_model(name, revision)
    model.check(*commands)
    return model


def packaged_classifier() -> str:
    """Return the directory of the classifier that comes with the package, without the imports of its pipeline."""
    return str(Path(__file__).parents[1] / "default_model")


def open_pipeline(task: str, model: str, device: str | None) -> Any:
    """Open a directory or hub repository as a pipeline, on the fastest device unless one is named.

    It may be one of `hf_any3d.tasks.direct`, which is open in half the time and whose model has no more than answers.
    """
    with status(f"loading {model}"):
        need_libraries()
        check_device(device)
        from hf_any3d.tasks.direct import open_direct

        pipe = open_direct(task, model, device)
    if pipe is None:
        pipe = open_with_transformers(task, model, device)
    return pipe


def open_with_transformers(task: str, model: str, device: str | None, template: str | None = None) -> Any:
    """Open a directory or hub repository as a pipeline of transformers."""
    with status(f"loading {model}"):
        load_libraries()
        from hf_any3d.integration import opening

        pipe = opening.open_pipeline(task, model, device)
    if task == CHAT:
        with model_errors(model):  # a wrong template name fails here, not at the first question
            pipe.processor.apply_chat_template([{"role": "user", "content": ""}], template)
    return pipe


def open_any_model(
    found: FoundModel, device: str | None, template: str | None, tasks: Sequence[str] = (), command: str | None = None
) -> tuple[str, Any]:
    """Open a model of any kind, or of some tasks, and say what was loaded; return its task and pipeline.

    With `command` it is opened for the task of this command, which takes such models, too.
    """
    model = found.name
    _ = found.config  # fetches and converts a published checkpoint, or asks for its license
    load_libraries()
    from hf_any3d.integration.registration import task_of

    with model_errors(model):
        task = task_of(model)
    if command is not None:
        own = TASKS[task].command
        able = {}
        for name, other in TASKS.items():
            if own in (other.command, *other.also):
                able[other.command] = name
        if command not in able:
            raise ValueError(f"{model}: --task {command}: such a model does {', '.join(able)}")
        task = able[command]
    if tasks and task not in tasks:
        raise ValueError(f"{model}: models for {task} cannot be served; expected one of {', '.join(tasks)}")
    if task != CHAT and template is not None:
        raise ValueError(f"--template {template}: {model} is not a chat model")
    pipe = open_with_transformers(task, model, device, template)
    size = sum(parameter.numel() for parameter in pipe.model.parameters())
    print_line(f"loaded {size:,} weights on {pipe.device} ({pipe.model.dtype})")
    return task, pipe
