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
    mixes_tokens = True
    needs_positions = True

    def wrap(self, target: nn.Module) -> GuidedAdapterLayer:
        """Wrap a frozen layer in one with adapters."""
        stack = layer_stack(self.model)
        return GuidedAdapterLayer(target, stack.branch, stack.stage_of(target).width, stack.views)

    def adapter_settings(
        self, adapter_name: str, peft_config: GuidedAdapterConfig, target: nn.Module
    ) -> dict[str, Any]:
        """Return the layer whose attention is shared: the first one that is adapted, of each stage."""
        # Every layer has an attention of its own then.
        if not peft_config.share_attention:
            return {}
        stack = layer_stack(self.model)
        # Layers of a stage have equal widths, which shared weights need.
        stage = stack.stage_of(target).number
        adapted = (layer for layer in stack.layers if adapter_name in getattr(layer, "guided_adapter_attention", ()))
        return {"earlier": next((layer for layer in adapted if stack.stage_of(layer).number == stage), None)}
