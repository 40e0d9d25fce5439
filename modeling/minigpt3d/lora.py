"""Where MiniGPT-3D's LoRA lives, and the names of tensors around it.

LoRA is part of the model, described in its config, and not a PEFT adapter around the model. It is trained together
with norms, queries and projections, of which none is worth anything without the others; and the language model and the
Q-Former have ranks, scales and dropouts of their own, for which PEFT wants two adapters. So the model builds both when
it is built, every tensor has one name in every stage, and what a stage trained is a part of the state dict. The layers
are PEFT's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import initialization as init


class LoraMixin:
    """For models that build LoRA layers into their parts."""

    # (part, arguments of peft.LoraConfig) -> None. PEFT's classes, which models know nothing of:
    # `hf_any3d.registration` fills this in.
    inject_lora: ClassVar[Callable[[nn.Module, Mapping[str, Any]], None]]


def reset_lora(model: nn.Module) -> None:
    """Begin LoRA layers that nothing was loaded into: without effect, as PEFT begins them.

    Language models would start them like their other layers, and so with an effect.
    """
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            init.kaiming_uniform_(parameter, a=5**0.5)
        elif ".lora_B." in name:
            init.zeros_(parameter)


def lora_dropouts(model: nn.Module) -> list[nn.Module]:
    """The dropout layers of LoRA, and no others."""
    return [module for name, module in model.named_modules() if ".lora_dropout." in name]


def names_in(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """What tensors are called in a model that has LoRA where the model that they come from had none.

    Args:
        model: The model.
        names: Names of tensors of the same model, with or without LoRA.

    Returns:
        For each name the one in `model`; those that it has no tensor for keep theirs.
    """
    own = {*dict(model.named_parameters()), *dict(model.named_buffers())}

    def find(name: str) -> str:
        layer, _, kind = name.rpartition(".")
        wrapped = f"{layer}.base_layer.{kind}"
        return wrapped if name not in own and wrapped in own else name

    return {name: find(name) for name in names}
