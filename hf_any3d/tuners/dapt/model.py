"""Tuner of DAPT."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_any3d.tuners.dapt.config import DAPTConfig
from hf_any3d.tuners.dapt.layer import DAPTLayer
from hf_any3d.tuners.targets import check_added_tokens, check_later_layers, encoder_owner, layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner


class DAPTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, DAPTConfig())` creates."""

    prefix = "dapt_"
    tuner_layer_cls = DAPTLayer

    def default_targets(self, peft_config: DAPTConfig) -> str:
        """Return a regular expression of the layers."""
        check_added_tokens(self.model, "DAPT")
        return super().default_targets(peft_config)

    def _prepare_adapter_config(self, peft_config: DAPTConfig, model_config: Any) -> DAPTConfig:
        super()._prepare_adapter_config(peft_config, model_config)
        check_later_layers(self.model, lambda name: bool(self._check_target_module_exists(peft_config, name)))
        return peft_config

    def wrap(self, target: nn.Module) -> DAPTLayer:
        """Wrap a frozen layer in one with adapters."""
        check_added_tokens(self.model, "DAPT")
        owner = encoder_owner(self.model)
        stack = layer_stack(owner)
        place = stack.stage_of(target)
        norm = owner.get_submodule(stack.final_norm) if stack.final_norm and place.is_last else None
        return DAPTLayer(target, place.width, stack.is_open, place.is_first, norm)

    def adapter_settings(self, adapter_name: str, peft_config: DAPTConfig, target: nn.Module) -> dict[str, Any]:
        """Return the number of prompts that arrive at a layer."""
        layers = (layer for layer in layer_stack(self.model).layers if isinstance(layer, DAPTLayer))
        # PEFT wraps the layers in their order.
        return {"arriving": sum(adapter_name in layer.dapt_prompt for layer in layers if layer is not target)}

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, DAPTLayer):
            child.remove_hooks()
        super()._replace_module(parent, child_name, new_module, child)
