"""Tuner of IDPT."""

from typing import Any

from torch import nn

from hf_any3d.tuners.idpt.config import IDPTConfig
from hf_any3d.tuners.idpt.layer import IDPTLayer
from hf_any3d.tuners.idpt.module import PROMPT_MODULES
from hf_any3d.tuners.targets import encoder_layer_pattern, layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner, check_later_layers, tokens_of


class IDPTModel(EncoderTuner):
    """Tuner that `get_peft_model(model, IDPTConfig())` creates."""

    prefix = "idpt_"
    tuner_layer_cls = IDPTLayer
    mixes_tokens = True
    layers_have_tensors = False
    needs_positions = True
    attention_axes = ("tokens",)

    def default_targets(self, peft_config: IDPTConfig) -> str:
        """Return a regular expression of the layers from the first prompt on."""
        # Prompts that go on have to be carried through all later layers; others end where they are made.
        count = len(layer_stack(self.model).layers)
        numbers = self._prompt_layers(peft_config)
        return encoder_layer_pattern(self.model, range(min(numbers), count) if peft_config.keep_prompts else numbers)

    def check_layers(self, peft_config: IDPTConfig, names: list[str], adapted: list[bool]) -> None:
        """Check that all layers to which prompts go are adapted, and that tokens have so many neighbors."""
        if peft_config.keep_prompts:
            check_later_layers(names, adapted, min(self._prompt_layers(peft_config)))
        tokens = tokens_of(self.model)
        if PROMPT_MODULES[peft_config.prompt_module] and peft_config.neighbors > tokens:
            raise ValueError(
                f"neighbors={peft_config.neighbors} of a token, and layers of {type(self.model).__name__} read "
                f"{tokens} tokens of a cloud; expected 1 to {tokens}, or prompt_module='mlp'"
            )

    def _prompt_layers(self, peft_config: IDPTConfig) -> list[int]:
        """Return the numbers of the layers that make prompts."""
        count = len(layer_stack(self.model).layers)
        asked = count - 1 if peft_config.prompt_layers is None else peft_config.prompt_layers
        numbers = [asked] if isinstance(asked, int) else list(dict.fromkeys(asked))
        if not numbers:
            raise ValueError(f"prompt_layers is empty; expected numbers from 0 to {count - 1}, or None for the last")
        wrong = [number for number in numbers if not isinstance(number, int) or not 0 <= number < count]
        if wrong:
            raise ValueError(f"prompt_layers={wrong}; expected numbers from 0 to {count - 1}")
        return sorted(numbers)

    def wrap(self, target: nn.Module) -> IDPTLayer:
        """Wrap a frozen layer in one with prompts."""
        stack = layer_stack(self.model)
        return IDPTLayer(target, stack.stage_of(target).width, stack.is_open)

    def adapter_settings(self, adapter_name: str, peft_config: IDPTConfig, target: nn.Module) -> dict[str, Any]:
        """Return what a layer knows of earlier ones, and whether it makes a prompt."""
        layers = list(layer_stack(self.model).layers)
        numbers = self._prompt_layers(peft_config)
        place = next(number for number, layer in enumerate(layers) if layer is target)
        # The position of the prompts belongs to the first layer that has one.
        wrapped = [layer for layer in layers[:place] if adapter_name in getattr(layer, "idpt_position", ())]
        arriving = tuple(number for number in numbers if number < place) if peft_config.keep_prompts else ()
        return {"earlier": next(iter(wrapped), None), "arriving": arriving, "makes_prompt": place in numbers}
