"""Tasks of adapters: class names, problem type, unknown scores and heads, as each adapter was trained with them.

A model has one config, which losses, pipelines, evaluation, cards and exported files read. With adapters of several
tasks, `TaskSwitch` lets it say at any time what the active one was trained with, or without one, what the model had
before its first. The functions here read tasks from configs, and build the heads that they need.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.hooks import ModelWarning
from hf_any3d.modeling.pretrained_parts.contents import read_json
from hf_any3d.modeling.pretrained_parts.loading import class_of_saved
from hf_any3d.modeling.pretrained_parts.task_settings import (
    Absent,
    Task,
    as_stored,
    described,
    is_of_task,
    set_task,
    task_of,
)

if TYPE_CHECKING:
    from hf_any3d.modeling.pretrained_parts.task_switch import TaskSwitch

SWITCH = "adapter_tasks"
"""Attribute of a model with adapters that has its `TaskSwitch`."""
# In `auto_mapping` of a PeftConfig, the one of its fields for what PEFT does not know.
_RECORD = "task"


def record_of(model: PreTrainedModel) -> dict[str, Any]:
    """Return what an adapter's own config records of its task, for doors that read no other file; see `PeftConfig`."""
    settings = model.config.to_dict() if _heads(model) else {}
    return {_RECORD: {name: value for name, value in settings.items() if is_of_task(name)}} if settings else {}


def recorded_task(model: PreTrainedModel, adapter: Any) -> Task | None:
    """Return the task that the config of an adapter records, a PeftConfig or a dictionary; None without a record."""
    mapping = adapter.get("auto_mapping") if isinstance(adapter, Mapping) else getattr(adapter, "auto_mapping", None)
    record = mapping.get(_RECORD) if isinstance(mapping, Mapping) else None
    if not isinstance(record, Mapping):
        return None
    with stored_settings(ADAPTER_CONFIG_NAME):
        settings = {name: value for name, value in record.items() if is_of_task(name)}
        return task_of(type(model.config).from_dict(model.config.to_dict() | settings))


def stored_task(model: PreTrainedModel, name: str | os.PathLike, hub: Mapping[str, Any]) -> Task | None:
    """Return the task of a stored adapter: that of the config.json beside it, or the record; None without both.

    Raises:
        ValueError: It was trained with another kind of model; names both.
    """
    recorded = read_json(name, CONFIG_NAME, hub)
    adapter = read_json(name, ADAPTER_CONFIG_NAME, hub) or {}
    if recorded is None:
        return recorded_task(model, adapter)
    with stored_settings(name):
        kind = recorded["model_type"]
        if kind != model.config.model_type:
            raise ValueError(f"{name}: the adapter of a {kind}; expected one of a {model.config.model_type}")
        config = type(model.config).from_dict(recorded)
    saved_class = class_of_saved(type(model), config)
    # A model without a head takes what was trained below one.
    if issubclass(saved_class, type(model)) or issubclass(type(model), saved_class) or model.base_model is model:
        return task_of(config)
    # What was trained below no head, or without it, fits below any.
    if not issubclass(saved_class, type(model.base_model)) and adapter.get("modules_to_save"):
        raise ValueError(
            f"{name}: the adapter of a {saved_class.__name__}; the model is a {type(model).__name__}: open the "
            "adapter by its directory, with the model that it was trained with"
        )
    return None


def warn_of_unknown_names(
    model: PreTrainedModel, name: str | os.PathLike | None, trained: Collection[str] | None
) -> None:
    """Warn of an adapter with a head of its own whose classes are unknown.

    Args:
        model: The model.
        name: Directory or repository of the adapter; None for tensors.
        trained: The `modules_to_save` of the adapter.
    """
    endings = tuple(trained or ())
    if any(head.endswith(endings) for head in _heads(model) if head != "unknown_score"):
        warnings.warn(
            f"{name or 'tensors'}: the adapter has a head, and nothing says its classes, so those of the model stay, "
            f"{described(task_of(model.config))}; put its {CONFIG_NAME} beside it, or set model.config.id2label",
            ModelWarning,
            stacklevel=4,
        )


def _heads(model: PreTrainedModel) -> list[str]:
    """Return the names of what a model has beside its base model; some are not there, as unknown scores without."""
    if model.base_model is model:
        return []
    inside = model.base_model_prefix
    return [name for name in model._modules if name not in (inside, SWITCH)]


def heads_for(
    model: PreTrainedModel, name: object, task: Task, base: Task, trained: Collection[str] | None
) -> dict[str, nn.Module]:
    """Build the heads of a task that an adapter has trained, for its weights, if they differ from those of the model.

    Args:
        model: The model.
        name: Directory or repository of the adapter.
        task: The task.
        base: Another one, whose heads are there already.
        trained: The `modules_to_save` of the adapter.

    Returns:
        Heads without values by their names in the model; none if the heads of both tasks are alike.

    Raises:
        ValueError: The adapter has no head of its own, and that of the model is for another number of classes.
    """
    if model.base_model is model or _shape(task) == _shape(base):
        return {}
    config = copy.deepcopy(model.config)
    set_task(config, task)
    with torch.device("meta"):
        twin = type(model)(config)
    names, endings = _heads(twin), tuple(trained or ())
    heads: dict[str, nn.Module] = {}
    for path, module in twin.named_modules():
        is_inside = any(path.startswith(f"{above}.") for above in heads)
        if path.partition(".")[0] in names and path.endswith(endings) and not is_inside:
            heads[path] = _with_memory(module, _original(model, path), model)
    own, other = (len(each.get("id2label") or ()) for each in (task, base))
    if own != other and not heads.keys() - {"unknown_score"}:
        raise ValueError(
            f"{name}: the adapter has no head of its own and was trained for {described(task)}; the model has "
            f"{described(base)}: open the model that it was trained on"
        )
    return heads


def _original(model: PreTrainedModel, path: str) -> nn.Module | None:
    """Return a module of the model below its adapters; None if it has none there."""
    parent, _, name = path.rpartition(".")
    try:
        present = model.get_submodule(parent)._modules.get(name)
    except AttributeError:
        return None
    found = getattr(present, "original_module", present)
    return None if isinstance(found, Absent) else found


# Those that no module depends on.
_NAMES = ("id2label", "label2id", "problem_type", "label_colors")


def _shape(task: Task) -> Task:
    """Return what of a task the modules of the head depend on."""
    others = {name: as_stored(value) for name, value in task.items() if name not in _NAMES}
    unknown = task.get("unknown")
    if unknown is not None:
        others["unknown"] = (unknown.rows, unknown.bank_rows, unknown.width)
    return others | {"labels": len(task.get("id2label") or ())}


def _with_memory(module: nn.Module, like: nn.Module | None, model: PreTrainedModel) -> nn.Module:
    """Give a module of the meta device zeros where another one is, in its precision."""
    around = model if like is None or not any(True for _ in like.parameters()) else like
    weights = [weight for weight in around.parameters() if weight.is_floating_point()]
    module = module.to_empty(device=weights[0].device)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    if like is not None and any(True for _ in like.parameters()):
        module.to(weights[0].dtype)
    return module.train(model.training if like is None else like.training).requires_grad_(False)


@contextmanager
def borrowing(model: PreTrainedModel, heads: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put heads where those of the model are while an adapter is added, for which PEFT copies what it trains."""
    originals = {path: _original(model, path) for path in heads}
    for path, head in heads.items():
        _set_original(model, path, head)
    try:
        yield
    finally:
        for path, original in originals.items():
            _set_original(model, path, original)


def _set_original(model: PreTrainedModel, path: str, module: nn.Module | None) -> None:
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    wrapper = owner._modules.get(name)
    if hasattr(wrapper, "original_module"):
        # PEFT has frozen the borrowed one.
        cast(Any, wrapper).original_module = Absent() if module is None else module.requires_grad_(False)
    else:
        setattr(owner, name, module)


def replace_heads(model: PreTrainedModel, adapter_name: str, heads: Mapping[str, nn.Module]) -> None:
    """Give an adapter that a model has already other heads."""
    from peft.utils import ModulesToSaveWrapper  # takes a second

    for path, head in heads.items():
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        wrapper = owner._modules.get(name)
        if not isinstance(wrapper, ModulesToSaveWrapper):
            wrapper = ModulesToSaveWrapper(Absent() if wrapper is None else wrapper, adapter_name)
            setattr(owner, name, wrapper)
        before = wrapper.modules_to_save[adapter_name] if adapter_name in wrapper.modules_to_save else head
        head.requires_grad_(any(weight.requires_grad for weight in before.parameters()))
        wrapper.modules_to_save[adapter_name] = head
        wrapper._adapters.add(adapter_name)


def take_task(
    model: PreTrainedModel, name: object, adapter_name: str, task: Task, trained: Collection[str] | None
) -> None:
    """Give an adapter that a model has already a task, and heads of its sizes, whose weights are to be loaded.

    The arguments are those of `heads_for`, and the name of the adapter in the model.
    """
    from peft.utils import ModulesToSaveWrapper  # takes a second

    switch = ensured_switch(model)
    for path, wrapper in model.named_modules():
        # A score, say, that the adapter which was there before had.
        if isinstance(wrapper, ModulesToSaveWrapper) and not path.endswith((SWITCH, *(trained or ()))):
            wrapper.delete_adapter(adapter_name, None)
    replace_heads(model, adapter_name, heads_for(model, name, task, switch.task_of(adapter_name), trained))
    switch.learn(adapter_name, task)


def switch_of(model: nn.Module) -> TaskSwitch | None:
    """Return the switch of a model with adapters; None without one."""
    switch: Any = model._modules.get(SWITCH)
    # PEFT has put something else in its place where a tuner has unloaded itself.
    return switch if hasattr(switch, "showing") else None


def ensured_switch(model: PreTrainedModel) -> TaskSwitch:
    """Return the switch of a model that gets an adapter; a new one takes the task in its config for its own."""
    from hf_any3d.modeling.pretrained_parts.task_switch import TaskSwitch  # imports PEFT

    switch = switch_of(model)
    if switch is None:
        switch = TaskSwitch(model)
        others = [name for name in model._modules if name != SWITCH]
        model._modules[SWITCH] = switch
        # First of all, so that it refuses adapters of several tasks before a module has been switched.
        for name in others:
            model._modules[name] = model._modules.pop(name)
    return switch


@contextmanager
def added(model: PreTrainedModel, adapted: Any, name: object, adapter_name: str, task: Task | None) -> Iterator[None]:
    """Take an adapter back that could not be loaded; `adapted` has its methods, the model or one around it.

    Raises:
        ValueError: Its weights are of other sizes than its config.json says.
    """
    is_new = adapter_name not in getattr(adapted, "peft_config", {})
    try:
        yield
    except BaseException as error:
        if is_new and adapter_name in getattr(adapted, "peft_config", {}):
            adapted.delete_adapter(adapter_name)
        if isinstance(error, RuntimeError) and "mismatch" in str(error):
            where = "the model is" if task is None else f"its {CONFIG_NAME} is"
            raise ValueError(
                f"{name}: its weights are of other sizes; {where} for {described(task or task_of(model.config))}: "
                f"expected the {CONFIG_NAME} that it was saved with, whose id2label names all classes"
            ) from error
        raise


def showing(model: nn.Module, adapter_name: str | None) -> AbstractContextManager[None]:
    """Let the config of a model say for some time what one of its adapters was trained with, None for none."""
    switch = switch_of(model)
    return nullcontext() if switch is None else switch.showing(adapter_name)
