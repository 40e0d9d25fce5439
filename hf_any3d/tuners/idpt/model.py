"""Tuner of IDPT."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from hf_any3d.tuners.idpt.config import IDPTConfig
from hf_any3d.tuners.idpt.layer import Arrival, IDPTLayer
from hf_any3d.tuners.targets import check_added_tokens, check_later_layers, encoder_layer_pattern, layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner


class IDPTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, IDPTConfig())` creates."""

    prefix = "idpt_"
    tuner_layer_cls = IDPTLayer

    def default_targets(self, peft_config: IDPTConfig) -> str:
        """Return a regular expression of the layers from the first prompt on."""
        check_added_tokens(self.model, "IDPT")
        count, numbers = len(layer_stack(self.model).layers), self._prompt_layers(peft_config)
        kept = range(min(numbers), count) if peft_config.keep_prompts else numbers
        return encoder_layer_pattern(self.model, kept)

    def _prepare_adapter_config(self, peft_config: IDPTConfig, model_config: Any) -> IDPTConfig:
        super()._prepare_adapter_config(peft_config, model_config)
        numbers = self._prompt_layers(peft_config)
        if peft_config.keep_prompts:
            is_adapted = partial(self._check_target_module_exists, peft_config)
            check_later_layers(self.model, lambda name: bool(is_adapted(name)), numbers[0])
        return peft_config

    def _prompt_layers(self, peft_config: IDPTConfig) -> list[int]:
        """Return the numbers of the layers that make prompts."""
        count, numbers = len(layer_stack(self.model).layers), peft_config.prompt_layers
        numbers = [count - 1] if numbers is None else [numbers] if isinstance(numbers, int) else sorted(set(numbers))
        if wrong := [number for number in numbers if not 0 <= number < count]:
            raise ValueError(f"prompt_layers={wrong}; expected numbers from 0 to {count - 1}")
        return numbers

    def wrap(self, target: nn.Module) -> IDPTLayer:
        """Wrap a frozen layer in one with prompts."""
        check_added_tokens(self.model, "IDPT")
        stack = layer_stack(self.model)
        return IDPTLayer(target, stack.stage_of(target).width, stack.is_open)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the layers of its config, as most have no tensors by which a state would choose them."""
        kwargs.pop("state_dict", None)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def adapter_settings(self, adapter_name: str, peft_config: IDPTConfig, target: nn.Module) -> dict[str, Any]:
        """Return what a layer knows of earlier ones, and whether it makes a prompt."""
        layers, numbers = list(layer_stack(self.model).layers), self._prompt_layers(peft_config)
        own = next(number for number, layer in enumerate(layers) if layer is target)
        wrapped = [each for each in layers[:own] if isinstance(each, IDPTLayer) and adapter_name in each.idpt_arrival]
        earlier = tuple(number for number in numbers if number < own) if peft_config.keep_prompts else ()
        arrival = Arrival(wrapped[0] if wrapped else None, earlier, peft_config.keep_prompts)
        return {"arrival": arrival, "makes_prompt": own in numbers}
