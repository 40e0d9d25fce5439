"""Tuner of side-tuning."""

from typing import Any

from torch import nn

from hf_any3d.tuners.side_tuning.config import SideTuningConfig
from hf_any3d.tuners.side_tuning.layer import SideTuningLayer
from hf_any3d.tuners.targets import layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner, EncoderTunerConfig


class SideTuningModel(EncoderTuner):
    """Tuner that `get_peft_model(model, SideTuningConfig())` creates."""

    prefix = "side_tuning_"
    tuner_layer_cls = SideTuningLayer

    def wrap(self, target: nn.Module) -> SideTuningLayer:
        """Wrap a frozen layer in one with a step of the side network."""
        stack = layer_stack(self.model)
        place = stack.stage_of(target)
        is_last = target is stack.layers[-1]
        return SideTuningLayer(
            target,
            place.width,
            is_last,
            # Tokens are pooled before the first layer of every stage but the first.
            is_pooled=place.is_first and place.number > 0,
            ends_stage=place.is_last and not is_last and getattr(self.model, "reads_stages", False),
        )

    def adapter_settings(self, adapter_name: str, peft_config: SideTuningConfig, target: nn.Module) -> dict[str, Any]:
        """Return the layer whose state is continued."""
        layers = (layer for layer in layer_stack(self.model).layers if isinstance(layer, SideTuningLayer))
        wrapped = [layer for layer in layers if adapter_name in layer.configs]
        # PEFT wraps the layers in their order, so the last one wrapped is the one before.
        return {"earlier": wrapped[-1] if wrapped else None}

    def check_layers(self, peft_config: EncoderTunerConfig, names: list[str], adapted: list[bool]) -> None:
        """Check that the last layer is adapted, and after the first adapted one the first of each stage."""
        stack = layer_stack(self.model)
        for number, layer in enumerate(stack.layers):
            is_last = number == len(names) - 1
            if not adapted[number] and (is_last or any(adapted[:number]) and stack.stage_of(layer).is_first):
                what = (
                    "the encoder's last layer, to whose output the side network adds its own"
                    if is_last
                    else "the first layer of a stage, where the side network is pooled"
                )
                raise ValueError(
                    f"target_modules={peft_config.target_modules!r} leaves out "
                    f"{names[number]}, {what}; add it to the layers"
                )
