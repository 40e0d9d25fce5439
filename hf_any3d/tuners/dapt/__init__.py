"""DAPT, a PEFT method for frozen encoders of point tokens: adapters with a scale for each token, and their prompts."""

from peft.utils import register_peft_method

from hf_any3d.tuners.dapt.config import DAPTConfig
from hf_any3d.tuners.dapt.layer import DAPTLayer
from hf_any3d.tuners.dapt.model import DAPTModel

__all__ = ["DAPTConfig", "DAPTLayer", "DAPTModel"]

register_peft_method(name="dapt", config_cls=DAPTConfig, model_cls=DAPTModel)
