"""Puts prompt tokens into a model."""

from __future__ import annotations

from torch import nn

from hf_any3d.tuners.encoder_tuner import EncoderTuner
from hf_any3d.tuners.prompt_tokens.config import PromptTokensConfig
from hf_any3d.tuners.prompt_tokens.layer import PromptTokensLayer
from hf_any3d.tuners.targets import encoder_layer_pattern, layer_stack


class PromptTokensModel(EncoderTuner):
    """The tuner that `get_peft_model(model, PromptTokensConfig())` makes.

    Raises:
        ValueError: If the model has no pretrained layers, or their attention runs over the clouds of a batch.
    """

    prefix = "prompt_tokens_"
    tuner_layer_cls = PromptTokensLayer

    def default_targets(self, peft_config: PromptTokensConfig) -> str:
        """Whole layers."""
        axis = layer_stack(self.model).attention_axis
        if axis != "tokens":
            raise ValueError(f"attention_axis={axis!r}: no token would see a prompt; expected 'tokens'")
        pattern = encoder_layer_pattern(self.model, peft_config.layers_to_transform)
        peft_config.layers_to_transform = None
        return pattern

    def wrap(self, target: nn.Module) -> PromptTokensLayer:
        """Put a frozen layer into one that reads prompts."""
        return PromptTokensLayer(target, layer_stack(self.model).hidden_size)

    def _check_merge_allowed(self) -> None:
        raise ValueError("prompt tokens cannot be merged into the encoder; use unload() to remove them")
