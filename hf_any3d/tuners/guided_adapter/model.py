"""Puts guided adapters into a model."""

from __future__ import annotations

import re
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_any3d.modeling.encoders import FrozenEncoderMixin
from hf_any3d.tuners.guided_adapter.config import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter.layer import GuidedAdapterLayer


class GuidedAdapterModel(BaseTuner):
    """The tuner that `get_peft_model(model, GuidedAdapterConfig())` makes.

    Raises:
        ValueError: If the model has no frozen encoder that reads point tokens.
    """

    prefix = "guided_adapter_"
    tuner_layer_cls = GuidedAdapterLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: GuidedAdapterConfig, model_config: Any) -> GuidedAdapterConfig:
        owner = encoder_owner(self.model)
        if peft_config.target_modules is None:
            numbers = peft_config.layers_to_transform
            count = len(owner.family.layers_of(owner.encoder))
            numbers = range(count) if numbers is None else [numbers] if isinstance(numbers, int) else numbers
            if not all(0 <= number < count for number in numbers):
                raise ValueError(f"layers_to_transform={list(numbers)}; expected numbers from 0 to {count - 1}")
            choice = "|".join(map(str, numbers))
            peft_config.target_modules = rf"(.*\.)?encoder\.{re.escape(owner.family.layers)}\.({choice})"
            peft_config.layers_to_transform = None
        if peft_config.modules_to_save is None:
            peft_config.modules_to_save = trainable_module_names(self.model)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: GuidedAdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        attention_owner = None
        if peft_config.share_attention:
            layers = (module for module in self.model.modules() if isinstance(module, GuidedAdapterLayer))
            attention_owner = next((a for a in layers if adapter_name in a.guided_adapter_attention), None)
        if isinstance(target, GuidedAdapterLayer):
            target.update_layer(adapter_name, peft_config, attention_owner)
            return
        owner = encoder_owner(self.model)
        layer = GuidedAdapterLayer(
            target, owner.family.branch, owner.config.encoder_config.hidden_size, owner.config.num_views
        )
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, peft_config, attention_owner)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, GuidedAdapterLayer):
            child.remove_hook()
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise ValueError("a guided adapter cannot be merged into the encoder; use unload() to remove it")


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
    owner = encoder_owner(model)
    layers = owner.family.layers_of(owner.encoder)
    names = {name for name, module in layers[0].named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    choice = "|".join(re.escape(name) for name in sorted(names))
    return rf"(.*\.)?encoder\.{re.escape(owner.family.layers)}\.\d+\.({choice})"


__all__ = ["GuidedAdapterModel", "encoder_linear_pattern", "encoder_owner", "trainable_module_names"]
