"""APPT, a PEFT method for frozen encoders of any modality: prompts made of the tokens of a cloud."""

from hf_any3d.tuners.appt.config import APPTConfig
from hf_any3d.tuners.appt.layer import APPTLayer
from hf_any3d.tuners.appt.model import APPTModel
from hf_any3d.tuners.tuners_utils import register_method

__all__ = ["APPTConfig", "APPTLayer", "APPTModel"]

register_method(APPTConfig, APPTModel)
