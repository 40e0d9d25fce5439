"""Puts guided adapters into a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_any3d.tuners.encoder_tuner import EncoderTuner
from hf_any3d.tuners.guided_adapter.config import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter.layer import GuidedAdapterLayer
from hf_any3d.tuners.targets import encoder_layer_pattern, layer_stack


class GuidedAdapterModel(EncoderTuner):
    """The tuner that `get_peft_model(model, GuidedAdapterConfig())` makes.

    Raises:
        ValueError: If the model has no layers that are told where point tokens are.
    """

    prefix = "guided_adapter_"
    tuner_layer_cls = GuidedAdapterLayer

    def default_targets(self, peft_config: GuidedAdapterConfig) -> str:
        """Whole layers."""
        if not layer_stack(self.model).views:
            raise ValueError(
                f"the layers of {type(self.model).__name__} are not told where tokens are, which a guided adapter "
                "lives on; expected another method"
            )
        pattern = encoder_layer_pattern(self.model, peft_config.layers_to_transform)
        peft_config.layers_to_transform = None
        return pattern

    def wrap(self, target: nn.Module) -> GuidedAdapterLayer:
        """Put a frozen layer into one with adapters behind it."""
        stack = layer_stack(self.model)
        return GuidedAdapterLayer(target, stack.branch, stack.hidden_size, stack.views)

    def adapter_settings(self, adapter_name: str, peft_config: GuidedAdapterConfig) -> dict[str, Any]:
        """The layer whose attention the next one shares."""
        if not peft_config.share_attention:
            return {"attention_owner": None}
        layers = (module for module in self.model.modules() if isinstance(module, GuidedAdapterLayer))
        return {"attention_owner": next((a for a in layers if adapter_name in a.guided_adapter_attention), None)}

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, GuidedAdapterLayer):
            child.remove_hook()
        super()._replace_module(parent, child_name, new_module, child)

    def _check_merge_allowed(self) -> None:
        raise ValueError("a guided adapter cannot be merged into the encoder; use unload() to remove it")
