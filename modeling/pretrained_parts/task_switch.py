"""The module by which PEFT and transformers tell a model which adapter is active; imported with PEFT."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.pretrained_parts.task_settings import (
    Absent,
    Task,
    described,
    have_one_meaning,
    set_task,
    task_of,
)


class TaskSwitch(ModulesToSaveWrapper):
    """Lets the config of a model say the task of the active adapter; see `adapter_tasks`.

    PEFT and transformers switch adapters in many ways, all of which end at the layers of a model: they call these
    methods of each module of this base class. This one wraps nothing, and has no tensors. A task is kept here only
    while it is not active: what is changed in the config until then belongs to the adapter that is.
    """

    adapter_layer_names: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel):
        nn.Module.__init__(self)
        # In a tuple, as torch would register the model as a part of its part.
        self._model = (model,)
        self.modules_to_save: Any = {}
        self._adapters: set[str] = set()
        self._active_adapter: Any = []
        self._disable_adapters = False
        self._asked: list[str] = []
        self._held: list[str | None] = []
        # Task of each adapter, and of the model without one, but for the one that the config says.
        self._tasks: dict[str | None, Task] = {}
        self._shown: str | None = None

    # Not that of the base class, which looks for all else in the wrapped module.
    __getattr__ = nn.Module.__getattr__

    @property
    def original_module(self) -> nn.Module:
        """Nothing, where other modules of this kind have what they wrap."""
        return Absent()

    @property
    def own(self) -> Task:
        """Task of the model without an adapter."""
        return self.task_of(None)

    def task_of(self, adapter_name: str | None) -> Task:
        """Return the task of an adapter, None for none; a new adapter has that of the model."""
        if adapter_name == self._shown:
            return task_of(self._configs()[0])
        return self._tasks.get(adapter_name) or self.task_of(None)

    def learn(self, adapter_name: str, task: Task) -> None:
        """Set the task of an adapter."""
        self._adapters.add(adapter_name)
        if adapter_name == self._shown:
            self._say(task)
        else:
            self._tasks[adapter_name] = task
        self._show()

    def end(self, adapter_name: str | None) -> None:
        """Let the config say from now on what an adapter was trained with, None for none: the model has no others."""
        task = self.task_of(adapter_name)
        self._say(task)

    def check_together(self, adapter_names: Collection[str]) -> None:
        """Raise a ValueError if adapters are of several tasks, of which a config has one; names two of them."""
        first, *others = list(dict.fromkeys(adapter_names)) or [None]
        for name in others:
            ours, theirs = self.task_of(first), self.task_of(name)
            if not have_one_meaning(ours, theirs):
                raise ValueError(
                    f"the adapter {first!r} is for {described(ours)}, {name!r} for {described(theirs)}, and a model "
                    "has one task at a time; choose one of them"
                )

    def check_rows(self, adapter_names: Iterable[str | None]) -> None:
        """Raise a ValueError if rows of a batch would have different numbers of logits; names two adapters."""
        first, *others = dict.fromkeys(adapter_names)
        for name in others:
            ours, theirs = self.task_of(first), self.task_of(name)
            if len(ours.get("id2label") or ()) != len(theirs.get("id2label") or ()):
                raise ValueError(
                    f"adapter_names: {first or 'no adapter'!r} is for {described(ours)}, {name or 'no adapter'!r} for "
                    f"{described(theirs)}; expected a batch for each"
                )

    @contextmanager
    def showing(self, adapter_name: str | None) -> Iterator[None]:
        """Let the config say for some time what an adapter was trained with, None for none."""
        self._held.append(adapter_name)
        self._show()
        try:
            yield
        finally:
            self._held.pop()
            self._show()

    # What PEFT and transformers call.

    def check_set_adapter(self, adapter_name: str | list[str]) -> str | None:
        """Remember which adapters are about to be active, as PEFT names only one to modules of this kind."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self.check_together(names)
        for path, module in self._model[0].named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                copies = [name for name in names if name in module.modules_to_save]
                if len(copies) > 1:
                    raise ValueError(
                        f"the adapters {', '.join(copies)} have each trained {path}, of which a model has one; choose "
                        "one of them"
                    )
        self._adapters.update(names)
        self._asked = names
        return names[0] if names else None

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Let the config say what adapters were trained with, of which there are several only of one task."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if names == self._asked[:1]:
            names = self._asked
        self.check_together(names)
        self._adapters.update(names)
        self._asked = []
        self._active_adapter = names
        self._show()

    def enable_adapters(self, enabled: bool) -> None:
        """Let the config say the task of the active adapter, or that of the model without one."""
        self._disable_adapters = not enabled
        self._show()

    def delete_adapter(self, adapter_name: str, new_active_adapters: list[str] | None) -> None:
        """Forget the task of an adapter."""
        if adapter_name == self._shown:
            self._say(self.task_of(None))
            self._shown = None
            self._tasks.pop(None, None)
        self._tasks.pop(adapter_name, None)
        self._adapters.discard(adapter_name)
        self._active_adapter = list(new_active_adapters or ())
        # PEFT leaves out modules that the deleted adapter did not train; those of the new one are to run.
        for name in self._active_adapter:
            for module in self._model[0].modules():
                if isinstance(module, ModulesToSaveWrapper) and module is not self and name in module.modules_to_save:
                    module.set_adapter(name)
        self._show()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Let the config say the task of what is left in the model."""
        names = adapter_names or self.active_adapters
        self.check_together(names)
        # PEFT leaves the modules that an adapter has trained in full.
        wrappers = [module for module in self._model[0].modules() if isinstance(module, ModulesToSaveWrapper)]
        stays = merge or any(name in wrapper.modules_to_save for wrapper in wrappers for name in names)
        self.end(names[0] if names and stays else None)
        return nn.Identity()

    def adapter_state_dict(self, adapter_name: str, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return no tensors."""
        return {}

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        """Return no names of tensors."""
        return {}

    def _configs(self) -> list[PreTrainedConfig]:
        """Return the configs of the model and of its base model, which may have one of its own."""
        model = self._model[0]
        configs = [model.config]
        inside = model.base_model.config
        if inside is not model.config and type(inside) is type(model.config):
            configs.append(inside)
        return configs

    def _say(self, task: Task) -> None:
        for config in self._configs():
            set_task(config, task)

    def _show(self) -> None:
        """Let the config say the task of the adapter that is active now."""
        wanted = next(iter(self.active_adapters), None)
        if self._disable_adapters:
            wanted = None
        if self._held:
            wanted = self._held[-1]
        if wanted == self._shown:
            return
        task = self.task_of(wanted)
        self._tasks[self._shown] = self.task_of(self._shown)
        self._tasks.pop(wanted, None)
        self._shown = wanted
        self._say(task)
