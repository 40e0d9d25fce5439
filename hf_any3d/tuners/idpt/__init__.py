"""IDPT, a PEFT method for frozen encoders of point tokens: prompts that a module makes of each cloud's tokens."""

from peft.utils import register_peft_method

from hf_any3d.tuners.idpt.config import IDPTConfig
from hf_any3d.tuners.idpt.layer import IDPTLayer
from hf_any3d.tuners.idpt.model import IDPTModel

__all__ = ["IDPTConfig", "IDPTLayer", "IDPTModel"]

register_peft_method(name="idpt", config_cls=IDPTConfig, model_cls=IDPTModel)
