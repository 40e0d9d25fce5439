"""Modules that PEFT methods adapt (layers of a frozen encoder or point transformer), and those to train in full."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_any3d.modeling.encoders import LayerStack


def encoder_owner(model: nn.Module) -> nn.Module:
    """Return the module inside `model` that owns the pretrained layers."""
    for module in model.modules():
        # The class, not the module: adapters look up unknown attributes in the layer that they wrap.
        if hasattr(type(module), "layer_stack") and module.layer_stack is not None:
            return module
    raise ValueError(
        f"{type(model).__name__} has no frozen encoder for point tokens and no point transformer; expected a model "
        "with one of them"
    )


def layer_stack(model: nn.Module) -> LayerStack:
    """Return the pretrained layers inside `model`."""
    return cast(LayerStack, encoder_owner(model).layer_stack)


def trainable_module_names(model: nn.Module) -> list[str]:
    """Return the names of modules with weights that are not pretrained: to be trained in full with any PEFT method.

    With a frozen encoder of another modality these are tokenizer, class token, output norm and head; with a pretrained
    point transformer only the head; of a detector on one, decoder and heads. Other complete models inside, such as the
    teacher in pretraining, stay frozen.

    `LoraConfig(modules_to_save=trainable_module_names(model), …)` trains the same modules as a guided adapter.

    Raises:
        ValueError: The model has no pretrained layers that could be adapted, or several pretrained parts.
    """
    owner = encoder_owner(model)
    if owner is not model and owner is not getattr(model, "base_model", None):
        raise ValueError(
            f"{type(model).__name__} has several pretrained parts, so modules_to_save has no default; give "
            f"modules_to_save=[…] ([] for none), or adapt only its {type(owner).__name__}"
        )
    stack = layer_stack(owner)
    if stack.trained and model is owner:
        raise ValueError(
            f"modules_to_save has no default for a {type(model).__name__} without heads; give modules_to_save=[…] ([] "
            "for none), or adapt the model with its heads"
        )
    # What is beside the pretrained layers, such as tokenizer and class token, and then the heads around the owner.
    children = [(name, part) for name, part in owner.named_children() if name not in stack.pretrained]
    parts = [(name, model.get_submodule(name)) for name in stack.trained] or children
    if model is not owner:
        parts += [(name, part) for name, part in model.named_children() if not isinstance(part, PreTrainedModel)]
    # By their state: that of an unknown score is not trained, but stored with an adapter all the same.
    return [name for name, part in parts if part.state_dict()]


def with_default_modules(model: nn.Module, config: PeftConfig) -> PeftConfig:
    """Let a new adapter's config train the decoder and heads of a detector in full, unless it names modules itself.

    They are new, and an adapter without them would be of no use. Configs for other models are returned as they are.
    """
    # Loaded adapters say what they hold, and configs without the field cannot.
    if config.inference_mode or getattr(config, "modules_to_save", ()) is not None:
        return config
    owner = getattr(model, "base_model", model)
    stack = getattr(owner, "layer_stack", None)
    if owner is model or not isinstance(stack, LayerStack) or not stack.trained:
        return config
    config = copy.copy(config)
    vars(config)["modules_to_save"] = trainable_module_names(model)
    return config


def left_out_modules(model: PeftModel, adapter_name: str) -> list[str]:
    """Return the names of modules that are neither pretrained nor saved with an adapter.

    If there are none, pretrained weights and adapter together are the complete model. Otherwise the adapter works only
    with the exact base model that it was trained on.
    """
    base = model.get_base_model()
    owner = encoder_owner(base)
    modules = {**dict(base.named_modules()), **dict(owner.named_children())}
    # PEFT wraps modules that are trained in full and keeps one copy for each adapter.
    return [
        name
        for name in trainable_module_names(base)
        if adapter_name not in getattr(modules[name], "modules_to_save", ())
    ]


def encoder_linear_pattern(model: nn.Module) -> str:
    """Return a regular expression of all linear modules in the layers, for `target_modules` of LoRA and the like.

    Raises:
        ValueError: The model has no pretrained layers that could be adapted.
    """
    return encoder_module_pattern(model, lambda module: isinstance(module, (nn.Linear, Conv1D)))


def encoder_module_pattern(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> str:
    """Return a regular expression of the modules in the encoder's layers for which `wanted` is True."""
    stack = layer_stack(model)
    # Of all layers: some encoders have experts in all but the first ones.
    names = {name for layer in stack.layers for name, module in _bare_modules(layer) if wanted(module)}
    choice = "|".join(sorted(map(re.escape, names)))
    return rf"(.*\.)?{re.escape(stack.path)}\.\d+\.({choice})"


def _bare_modules(parent: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the modules below `parent` with their names; adapted modules without their adapters."""
    for name, module in parent.named_children():
        if isinstance(module, BaseTunerLayer):
            # An adapter that is there already must not hide what it wraps.
            yield prefix + name, module.get_base_layer()
        else:
            yield prefix + name, module
            yield from _bare_modules(module, f"{prefix}{name}.")


def encoder_layer_pattern(model: nn.Module, numbers: Iterable[int] | int | None) -> str:
    """Return a regular expression of complete layers of the encoder."""
    stack = layer_stack(model)
    if numbers is None:
        return rf"(.*\.)?{re.escape(stack.path)}\.\d+"  # for encoders of any depth
    count = len(stack.layers)
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    if not all(0 <= number < count for number in numbers):
        raise ValueError(f"layers_to_transform={list(numbers)}; expected numbers from 0 to {count - 1}")
    choice = "|".join(map(str, numbers))
    return rf"(.*\.)?{re.escape(stack.path)}\.({choice})"
