"""PPT, a PEFT method for point transformers: tokens of further patches as prompts, and MLPs that all blocks share."""

from hf_any3d.tuners.ppt.config import PPTConfig
from hf_any3d.tuners.ppt.layer import PPTLayer
from hf_any3d.tuners.ppt.model import PPTModel
from hf_any3d.tuners.tuners_utils import register_method

__all__ = ["PPTConfig", "PPTLayer", "PPTModel"]

register_method(PPTConfig, PPTModel)
