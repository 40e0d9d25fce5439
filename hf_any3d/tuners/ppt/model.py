"""Tuner of PPT."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_any3d.modeling.act import ActModel
from hf_any3d.tuners.ppt.config import PPTConfig
from hf_any3d.tuners.ppt.layer import PPTLayer
from hf_any3d.tuners.targets import check_later_layers, encoder_layer_pattern, encoder_owner, layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner


class PPTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, PPTConfig())` creates."""

    prefix = "ppt_"
    tuner_layer_cls = PPTLayer

    def default_targets(self, peft_config: PPTConfig) -> str:
        """Return a regular expression of all blocks."""
        return encoder_layer_pattern(self.model, None)

    def _prepare_adapter_config(self, peft_config: PPTConfig, model_config: Any) -> PPTConfig:
        super()._prepare_adapter_config(peft_config, model_config)
        _check_patches(self.model)
        check_later_layers(self.model, lambda name: bool(self._check_target_module_exists(peft_config, name)), first=0)
        return peft_config

    def wrap(self, target: nn.Module) -> PPTLayer:
        """Wrap a frozen block in one with further tokens."""
        return PPTLayer(target, layer_stack(self.model).stage_of(target).width)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the layers of its config, as most have no tensors by which a state would choose them."""
        kwargs.pop("state_dict", None)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def adapter_settings(self, adapter_name: str, peft_config: PPTConfig, target: nn.Module) -> dict[str, Any]:
        """Return the block that owns the MLPs."""
        blocks = (layer for layer in layer_stack(self.model).layers if isinstance(layer, PPTLayer))
        return {"first": next((layer for layer in blocks if adapter_name in layer.ppt_patches), None)}


def _check_patches(model: nn.Module) -> None:
    if not isinstance(encoder_owner(model), ActModel) or hasattr(type(model), "teacher_features"):
        raise ValueError(
            f"PPT embeds further patches of each cloud, which the encoder of {type(model).__name__} cannot do; "
            "expected a model that gives whole clouds to ACT's point transformer, such as "
            "ActForPointCloudClassification"
        )
