"""MiniGPT-3D's LoRA layers and the names of their tensors.

LoRA is part of the model and its config, not a PEFT adapter around the model. It is trained together with norms,
queries and projections, none of which is useful without the others; and the language model and the Q-Former have
different ranks, scales and dropouts, for which PEFT would need two adapters. So the model builds both on construction,
tensors have the same names in all training stages, and the weights that a stage trains are part of the state dict. The
layers are PEFT's own.
"""

from __future__ import annotations

from collections.abc import Iterable

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, initialization as init


def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Merge LoRA into the weights of its layers, in place: the same outputs, computed faster.

    Args:
        model: A `MiniGPT3DForConditionalGeneration`.

    Returns:
        The model. Its config has no LoRA, and it is saved with all weights, which are no longer those of its
        pretrained parts.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model.store_parts()
    model.config.text_lora = model.config.qformer_lora = None
    return model


def reset_lora(model: nn.Module) -> None:
    """Initialise LoRA layers that were not loaded as PEFT does, so that they have no effect.

    Language models would initialise them like their other layers, which would have an effect.
    """
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            init.kaiming_uniform_(parameter, a=5**0.5)
        elif ".lora_B." in name:
            init.zeros_(parameter)


def names_in(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Map names of tensors to those in a model with LoRA.

    Args:
        model: The model.
        names: Names of tensors of the same model, with or without LoRA.

    Returns:
        The name in `model` for each name; unknown names are unchanged.
    """
    own = {*dict(model.named_parameters()), *dict(model.named_buffers())}

    def find(name: str) -> str:
        layer, _, kind = name.rpartition(".")
        wrapped = f"{layer}.base_layer.{kind}"
        return wrapped if name not in own and wrapped in own else name

    return {name: find(name) for name in names}
