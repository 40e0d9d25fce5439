"""Tuner of PPT."""

from typing import Any

from torch import nn

from hf_any3d.modeling.act import ActModel
from hf_any3d.tuners.ppt.config import PPTConfig
from hf_any3d.tuners.ppt.layer import PPTLayer
from hf_any3d.tuners.targets import encoder_owner, layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner, check_later_layers


class PPTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, PPTConfig())` creates."""

    prefix = "ppt_"
    tuner_layer_cls = PPTLayer
    layers_have_tensors = False

    def check_layers(self, peft_config: PPTConfig, names: list[str], adapted: list[bool]) -> None:
        """Check that the model embeds patches of whole clouds, and that all blocks are adapted."""
        if not isinstance(encoder_owner(self.model), ActModel) or hasattr(type(self.model), "teacher_features"):
            raise ValueError(
                f"PPT embeds further patches of each cloud, which the encoder of {type(self.model).__name__} cannot "
                "do; expected a model that gives whole clouds to ACT's point transformer, such as "
                "ActForPointCloudClassification"
            )
        check_later_layers(names, adapted, 0)

    def wrap(self, target: nn.Module) -> PPTLayer:
        """Wrap a frozen block in one with further tokens."""
        return PPTLayer(target, layer_stack(self.model).stage_of(target).width)

    def adapter_settings(self, adapter_name: str, peft_config: PPTConfig, target: nn.Module) -> dict[str, Any]:
        """Return the block that owns the MLPs."""
        blocks = (layer for layer in layer_stack(self.model).layers if isinstance(layer, PPTLayer))
        return {"earlier": next((layer for layer in blocks if adapter_name in layer.configs), None)}
