"""Tuner of APPT."""

from typing import Any

from torch import nn

from hf_any3d.tuners.appt.config import APPTConfig
from hf_any3d.tuners.appt.layer import APPTLayer
from hf_any3d.tuners.targets import layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner, check_later_layers, tokens_of


class APPTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, APPTConfig())` creates."""

    prefix = "appt_"
    tuner_layer_cls = APPTLayer
    mixes_tokens = True
    layers_have_tensors = False
    needs_positions = True
    attention_axes = ("tokens",)

    def check_layers(self, peft_config: APPTConfig, names: list[str], adapted: list[bool]) -> None:
        """Check that prompts have layers to go on to, and that positions are those of the same patches."""
        if peft_config.order_table and getattr(type(self.model), "hides_patches", False):
            raise ValueError(
                "order_table=True has a position for each patch of a cloud, and "
                f"{type(self.model).__name__} hides some of them from its layers; expected order_table=False"
            )
        check_later_layers(names, adapted, adapted.index(True) if True in adapted else len(names))

    def wrap(self, target: nn.Module) -> APPTLayer:
        """Wrap a frozen layer in one with prompts."""
        stack = layer_stack(self.model)
        layers = list(stack.layers)
        number = layers.index(target)
        return APPTLayer(target, stack.stage_of(target).width, number, number == len(layers) - 1)

    def adapter_settings(self, adapter_name: str, peft_config: APPTConfig, target: nn.Module) -> dict[str, Any]:
        """Return the number of the adapter's first layer, and the tokens of a cloud."""
        layers = list(layer_stack(self.model).layers)
        wrapped = [layer for layer in layers if isinstance(layer, APPTLayer) and adapter_name in layer.configs]
        # PEFT wraps the layers in their order.
        start = wrapped[0].number if wrapped else layers.index(target)
        return {"start": start, "tokens": tokens_of(self.model)}
