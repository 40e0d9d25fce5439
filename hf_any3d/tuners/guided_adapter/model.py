"""Tuner of guided adapters."""

from typing import Any

from torch import nn

from hf_any3d.tuners.guided_adapter.config import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter.layer import GuidedAdapterLayer
from hf_any3d.tuners.targets import layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner


class GuidedAdapterModel(EncoderTuner):
    """Tuner that `get_peft_model(model, GuidedAdapterConfig())` creates."""

    prefix = "guided_adapter_"
    tuner_layer_cls = GuidedAdapterLayer

    def default_targets(self, peft_config: GuidedAdapterConfig) -> str:
        """Return a regular expression of the layers."""
        if not layer_stack(self.model).views:
            raise ValueError(
                f"the layers of {type(self.model).__name__} do not get the positions of tokens, which a guided "
                "adapter needs; use another method"
            )
        return super().default_targets(peft_config)

    def wrap(self, target: nn.Module) -> GuidedAdapterLayer:
        """Wrap a frozen layer in one with adapters."""
        stack = layer_stack(self.model)
        return GuidedAdapterLayer(target, stack.branch, stack.stage_of(target).width, stack.views)

    def adapter_settings(
        self, adapter_name: str, peft_config: GuidedAdapterConfig, target: nn.Module
    ) -> dict[str, Any]:
        """Return the layer whose attention is shared: the first one that is adapted, of each stage."""
        if not peft_config.share_attention:
            return {"attention_owner": None}
        stack = layer_stack(self.model)
        stage = stack.stage_of(target).number
        owners = (
            layer
            for layer in stack.layers
            if isinstance(layer, GuidedAdapterLayer)
            and adapter_name in layer.guided_adapter_attention
            and stack.stage_of(layer).number == stage
        )
        return {"attention_owner": next(owners, None)}

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, GuidedAdapterLayer):
            child.remove_hook()
        super()._replace_module(parent, child_name, new_module, child)
