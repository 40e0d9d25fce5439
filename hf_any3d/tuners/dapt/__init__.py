"""DAPT, a PEFT method for frozen encoders of point tokens: adapters with a scale for each token, and their prompts."""

from hf_any3d.tuners.dapt.config import DAPTConfig
from hf_any3d.tuners.dapt.layer import DAPTLayer
from hf_any3d.tuners.dapt.model import DAPTModel
from hf_any3d.tuners.tuners_utils import register_method

__all__ = ["DAPTConfig", "DAPTLayer", "DAPTModel"]

register_method(DAPTConfig, DAPTModel)
