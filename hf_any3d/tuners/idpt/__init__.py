"""IDPT, a PEFT method for frozen encoders of point tokens: prompts that a module makes of each cloud's tokens."""

from hf_any3d.tuners.idpt.config import IDPTConfig
from hf_any3d.tuners.idpt.layer import IDPTLayer
from hf_any3d.tuners.idpt.model import IDPTModel
from hf_any3d.tuners.tuners_utils import register_method

__all__ = ["IDPTConfig", "IDPTLayer", "IDPTModel"]

register_method(IDPTConfig, IDPTModel)
