"""Prompt tokens (deep visual prompt tuning), a PEFT method for frozen encoders of point tokens."""

from hf_any3d.tuners.prompt_tokens.config import PromptTokensConfig
from hf_any3d.tuners.prompt_tokens.layer import PromptTokensLayer
from hf_any3d.tuners.prompt_tokens.model import PromptTokensModel
from hf_any3d.tuners.tuners_utils import register_method

__all__ = ["PromptTokensConfig", "PromptTokensLayer", "PromptTokensModel"]

register_method(PromptTokensConfig, PromptTokensModel)
