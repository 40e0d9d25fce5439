"""Prompt tokens (deep visual prompt tuning), a PEFT method for frozen encoders of point tokens."""

from peft.utils import register_peft_method

from hf_any3d.tuners.prompt_tokens.config import PromptTokensConfig
from hf_any3d.tuners.prompt_tokens.layer import PromptTokensLayer
from hf_any3d.tuners.prompt_tokens.model import PromptTokensModel

__all__ = ["PromptTokensConfig", "PromptTokensLayer", "PromptTokensModel"]

register_peft_method(name="prompt_tokens", config_cls=PromptTokensConfig, model_cls=PromptTokensModel)
