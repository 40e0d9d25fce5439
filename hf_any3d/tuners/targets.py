"""Where PEFT methods take hold of a model with a frozen encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_any3d.modeling.encoders import FrozenEncoderMixin


def encoder_owner(model: nn.Module) -> nn.Module:
    """The module inside `model` that owns the frozen encoder.

    Raises:
        ValueError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, FrozenEncoderMixin) and "encoder" in module._modules:
            return module
    raise ValueError(
        f"{type(model).__name__} has no frozen encoder that reads point tokens; guided adapters fit Any2Point models"
    )


def trainable_module_names(model: nn.Module) -> list[str]:
    """Names of everything beside the encoder that has parameters: what any PEFT method trains in full and saves.

    `LoraConfig(modules_to_save=trainable_module_names(model), …)` compares fairly with a guided adapter.
    """
    owner = encoder_owner(model)
    parts = [(name, part) for name, part in owner.named_children() if name != "encoder"]
    if model is not owner:
        parts += [(name, part) for name, part in model.named_children() if part is not owner]
    return [name for name, part in parts if next(part.parameters(), None) is not None]


def encoder_linear_pattern(model: nn.Module) -> str:
    """A regular expression of all linear layers in the encoder's layers, for `target_modules` of LoRA and the like."""
    return encoder_module_pattern(model, lambda module: isinstance(module, (nn.Linear, Conv1D)))


def encoder_module_pattern(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> str:
    """A regular expression of the modules in the encoder's layers that are `wanted`.

    Raises:
        ValueError: If the layers have none.
    """
    owner = encoder_owner(model)
    first = owner.family.layers_of(owner.encoder)[0]
    names = sorted(name for name, module in _bare_modules(first) if wanted(module))
    if not names:
        raise ValueError(
            f"the layers of {type(owner.encoder).__name__} have no module of the kind; name them yourself"
        )
    choice = "|".join(map(re.escape, names))
    return rf"(.*\.)?encoder\.{re.escape(owner.family.layers)}\.\d+\.({choice})"


def _bare_modules(parent: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules below `parent` by name; for one that has an adapter already, the one inside, without the adapter."""
    for name, module in parent.named_children():
        if isinstance(module, BaseTunerLayer):
            yield prefix + name, module.get_base_layer()
        else:
            yield prefix + name, module
            yield from _bare_modules(module, f"{prefix}{name}.")


def encoder_layer_pattern(model: nn.Module, numbers: Iterable[int] | int | None) -> str:
    """A regular expression of whole layers of the encoder.

    Args:
        model: A model with a frozen encoder.
        numbers: Which layers, counted from 0; None for all.

    Raises:
        ValueError: If a layer does not exist.
    """
    owner = encoder_owner(model)
    count = len(owner.family.layers_of(owner.encoder))
    numbers = range(count) if numbers is None else [numbers] if isinstance(numbers, int) else list(numbers)
    if not all(0 <= number < count for number in numbers):
        raise ValueError(f"layers_to_transform={list(numbers)}; expected numbers from 0 to {count - 1}")
    choice = "|".join(map(str, numbers))
    return rf"(.*\.)?encoder\.{re.escape(owner.family.layers)}\.({choice})"
