"""PPT, a PEFT method for point transformers: tokens of further patches as prompts, and MLPs that all blocks share."""

from peft.utils import register_peft_method

from hf_any3d.tuners.ppt.config import PPTConfig
from hf_any3d.tuners.ppt.layer import PPTLayer
from hf_any3d.tuners.ppt.model import PPTModel

__all__ = ["PPTConfig", "PPTLayer", "PPTModel"]

register_peft_method(name="ppt", config_cls=PPTConfig, model_cls=PPTModel)
