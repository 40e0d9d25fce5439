"""Tuner of PPT."""

from typing import Any

from torch import nn

from hf_any3d.tuners.ppt.config import PPTConfig
from hf_any3d.tuners.ppt.layer import PPTLayer
from hf_any3d.tuners.targets import layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner, check_embeds_patches, check_later_layers


class PPTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, PPTConfig())` creates."""

    prefix = "ppt_"
    tuner_layer_cls = PPTLayer
    mixes_tokens = True
    layers_have_tensors = False

    def check_layers(self, peft_config: PPTConfig, names: list[str], adapted: list[bool]) -> None:
        """Check that the model embeds patches of whole clouds, and that all blocks are adapted."""
        check_embeds_patches(self.model, "PPT", in_blocks=True)
        check_later_layers(names, adapted, 0)

    def wrap(self, target: nn.Module) -> PPTLayer:
        """Wrap a frozen block in one with further tokens."""
        return PPTLayer(target, layer_stack(self.model).stage_of(target).width)

    def adapter_settings(self, adapter_name: str, peft_config: PPTConfig, target: nn.Module) -> dict[str, Any]:
        """Return the block that owns the MLPs."""
        # The first block that was wrapped: all share its MLPs.
        blocks = (layer for layer in layer_stack(self.model).layers if isinstance(layer, PPTLayer))
        return {"earlier": next((layer for layer in blocks if adapter_name in layer.configs), None)}
