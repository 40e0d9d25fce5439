"""Tuner of prompt tokens."""

from torch import nn

from hf_any3d.tuners.prompt_tokens.layer import PromptTokensLayer
from hf_any3d.tuners.targets import layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner


class PromptTokensModel(EncoderTuner):
    """Tuner that `get_peft_model(model, PromptTokensConfig())` creates."""

    prefix = "prompt_tokens_"
    tuner_layer_cls = PromptTokensLayer
    # A layer along the batch attends over the clouds at one token's place, where prompts would be tokens of their own.
    attention_axes = ("tokens", "patches")

    def wrap(self, target: nn.Module) -> PromptTokensLayer:
        """Wrap a frozen layer in one with prompts."""
        stack = layer_stack(self.model)
        return PromptTokensLayer(target, stack.stage_of(target).width, is_flat=stack.attention_axis == "patches")
