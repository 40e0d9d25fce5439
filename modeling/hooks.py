"""Hooks into the package around these models: when one is opened by a name, saved or pushed.

`modeling` knows neither the hub nor model cards: `hf_any3d.integration.registration` passes `Hooks` that do to
`set_hooks`, and is imported by the first call of `hooks()`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_any3d.modeling.config_checks import name_fields, stored_settings


class ModelWarning(UserWarning):
    """Warning about a model, whatever its input."""


def _no_weights(name: str, revision: str | None) -> tuple[Path, str | None]:
    raise FileNotFoundError(f"{name}: no such directory, and revision {revision or 'main'} of it cannot be looked up")


@dataclass(frozen=True)
class Hooks:
    """Functions that are called when models are opened, adapted, saved and pushed; by default they do nothing.

    Args:
        check_name: Raise an error if a name must not, or cannot, be looked up on the hub. Given: the first argument of
            `from_pretrained`, and its keyword arguments.
        find_weights: Return the directory with config and weights of a repository, and its commit if it came from the
            hub. Given: its name, and a branch, tag or commit, or None for the main branch.
        describe: Describe a model where it has just been saved. Given: the model, or a PeftModel around it if an
            adapter was saved; the directory; the repository that the directory is about to be pushed to, or None.
        complete_adapter: Return the config of a new adapter with the modules that it leaves open. Given: the model,
            and the config.
        task_of: Return the task of the pipeline for a config.
        build: Called before a model is built.
        saving: Return a context in which weights are written. Given: the directory.
    """

    check_name: Callable[[Any, Mapping[str, Any]], None] = lambda *_: None
    find_weights: Callable[[str, str | None], tuple[Path, str | None]] = _no_weights
    describe: Callable[[Any, str | os.PathLike, str | None], None] = lambda *_: None
    complete_adapter: Callable[[Any, Any], Any] = lambda _, config: config
    task_of: Callable[[PreTrainedConfig], str | None] = lambda _: None
    build: Callable[[], None] = lambda: None
    saving: Callable[[str | os.PathLike], AbstractContextManager] = lambda _: nullcontext()


# What sets the hooks, by its name: this package imports nothing around it.
_REGISTRATION = "hf_any3d.integration.registration"
_hooks: Hooks | None = None


def set_hooks(functions: Hooks) -> None:
    """Set the functions that all models, configs and processors call from now on."""
    global _hooks
    _hooks = functions


def hooks() -> Hooks:
    """Return the functions that were set; where PEFT or SciPy is not installed, some that do nothing."""
    # Looked for before: what registers would be imported in vain up to the point where one of them is missing.
    if _hooks is None and all(map(importlib.util.find_spec, ("peft", "scipy"))):
        importlib.import_module(_REGISTRATION).register()
    return _hooks or Hooks()


class _Task(dict):
    """The task of a config, as `pipeline(model=…)` reads it; no task whose code is in the repository."""

    def __contains__(self, task: object) -> bool:
        return False


class _TaskOfConfig:
    """Attribute `custom_pipelines` of a config, where `pipeline` looks for a task before it asks the hub."""

    def __get__(self, config: PreTrainedConfig | None, owner: type) -> _Task:
        task = None if config is None else hooks().task_of(config)
        return _Task() if task is None else _Task({task: {}})


class LibrarySettingsMixin:
    """For configs and processors: names are checked, and the docstring of a config names all its fields."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if issubclass(cls, PreTrainedConfig):
            name_fields(cls)
            cls.custom_pipelines = _TaskOfConfig()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does; errors of impossible settings name the directory."""
        name = pretrained_model_name_or_path
        hooks().check_name(name, kwargs)
        with stored_settings(name):
            return super().from_pretrained(name, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from the contents of a stored file, without references to code, which nothing runs."""
        settings = dict(config_dict)
        settings.pop("auto_map", None)
        with stored_settings(kwargs.get("name_or_path")):  # that of an auto class
            return super().from_dict(settings, **kwargs)


class LibraryModelHook:
    """Mixin of model classes that runs the package's hook when a model is built, copied or unpickled."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Build an empty model."""
        hooks().build()
        return super().__new__(cls)
