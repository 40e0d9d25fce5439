"""LoRA layers inside a part of a model, by PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration, NormedPhiConfig

# Where a LoRA goes whose settings name no modules.
TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[NormedPhiConfig.model_type] = ["query_key_value", "dense"]


def inject_lora(part: nn.Module, settings: Mapping[str, Any]) -> None:
    """Put LoRA layers into a part of a model, in place.

    Args:
        part: The part.
        settings: Arguments of `peft.LoraConfig`.
    """
    inject_adapter_in_model(LoraConfig(**settings), part)


def merge_lora(model: MiniGPT3DForConditionalGeneration) -> MiniGPT3DForConditionalGeneration:
    """Add LoRA to the weights of its layers, in place: the same answers, faster, from plain layers.

    Returns:
        The model, whose config then speaks of no LoRA; it is saved whole, since its weights are no part's any more.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model.store_parts()
    model.config.text_lora = model.config.qformer_lora = None
    return model
