"""Configuration of prompt tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from hf_any3d.modeling.config_checks import Ranges
from hf_any3d.tuners.layers_config import EncoderLayersConfig
from hf_any3d.tuners.peft_type import PROMPT_TOKENS


@dataclass
class PromptTokensConfig(EncoderLayersConfig):
    """Learned tokens beside the point tokens in each layer of a frozen encoder (arXiv 2203.12119, "deep").

    Every layer has prompts of its own, which leave the sequence behind it, so that the point tokens and their places
    stay what they are. Prompts have no place in space: like the class token they stand in the middle of every view,
    for encoders that attend by places, and get no position otherwise. By default tokenizer, class token, output norm
    and head are trained and saved with them.
    """

    ranges: ClassVar[Ranges] = EncoderLayersConfig.ranges | {"num_prompts": (1, 16_384)}

    num_prompts: int = field(default=10, metadata={"help": "Prompts of each layer."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PROMPT_TOKENS
