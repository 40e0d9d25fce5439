"""Tuner of side-tuning."""

from typing import Any

from torch import nn

from hf_any3d.tuners.side_tuning.config import SideTuningConfig
from hf_any3d.tuners.side_tuning.layer import SideTuningLayer
from hf_any3d.tuners.targets import layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner, EncoderTunerConfig


class SideTuningModel(EncoderTuner):
    """Tuner that `get_peft_model(model, SideTuningConfig())` creates.

    Raises:
        ValueError: If the model has no pretrained layers, the last one is not among those to adapt, or tokens differ
            from layer to layer in number and width.
    """

    prefix = "side_tuning_"
    tuner_layer_cls = SideTuningLayer

    def wrap(self, target: nn.Module) -> SideTuningLayer:
        """Wrap a frozen layer in one with a step of the side network."""
        stack = layer_stack(self.model)
        return SideTuningLayer(target, stack.hidden_size, is_last=target is stack.layers[-1])

    def adapter_settings(self, adapter_name: str, peft_config: SideTuningConfig, target: nn.Module) -> dict[str, Any]:
        """Return the layer whose state is continued."""
        layers = (layer for layer in layer_stack(self.model).layers if isinstance(layer, SideTuningLayer))
        wrapped = [layer for layer in layers if adapter_name in layer.side_tuning_down]
        return {"previous": wrapped[-1] if wrapped else None}

    def _prepare_adapter_config(self, peft_config: EncoderTunerConfig, model_config: Any) -> EncoderTunerConfig:
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        stack = layer_stack(self.model)
        if stack.attention_axis == "patches":
            raise ValueError(
                f"{type(self.model).__name__} pools its tokens between stages; expected layers with tokens of one "
                "number and width for a side network; use another method"
            )
        last = next(name for name, module in self.model.named_modules() if module is stack.layers[-1])
        if not self._check_target_module_exists(peft_config, last):
            raise ValueError(
                f"target_modules={peft_config.target_modules!r} leaves out {last}, the encoder's last layer, to whose "
                "output the side network adds its own; expected it among the layers"
            )
        return peft_config
