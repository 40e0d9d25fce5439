"""Tuner of DAPT."""

from typing import Any

from torch import nn

from hf_any3d.tuners.dapt.config import DAPTConfig
from hf_any3d.tuners.dapt.layer import DAPTLayer
from hf_any3d.tuners.targets import encoder_owner, layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner, check_later_layers


class DAPTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, DAPTConfig())` creates."""

    prefix = "dapt_"
    tuner_layer_cls = DAPTLayer
    mixes_tokens = True
    needs_positions = True
    attention_axes = ("tokens",)

    def check_layers(self, peft_config: DAPTConfig, names: list[str], adapted: list[bool]) -> None:
        """Check that all layers after the first adapted one are adapted."""
        check_later_layers(names, adapted, adapted.index(True) if True in adapted else len(names))

    def wrap(self, target: nn.Module) -> DAPTLayer:
        """Wrap a frozen layer in one with adapters."""
        owner = encoder_owner(self.model)
        stack = layer_stack(owner)
        place = stack.stage_of(target)
        # Scales of the final norm are stored with those of the last layer, and act by a hook on the norm.
        norm = owner.get_submodule(stack.final_norm) if stack.final_norm and place.is_last else None
        return DAPTLayer(target, place.width, stack.is_open, place.is_first, norm)

    def adapter_settings(self, adapter_name: str, peft_config: DAPTConfig, target: nn.Module) -> dict[str, Any]:
        """Return the number of prompts that arrive at a layer."""
        layers = (layer for layer in layer_stack(self.model).layers if isinstance(layer, DAPTLayer))
        # PEFT wraps the layers in their order.
        return {"arriving": sum(adapter_name in layer.configs for layer in layers if layer is not target)}
