"""BitFit, a PEFT method that trains the biases of an encoder's layers."""

from peft.utils import register_peft_method

from hf_any3d.tuners.bitfit.config import BitFitConfig
from hf_any3d.tuners.bitfit.layer import BitFitLayer
from hf_any3d.tuners.bitfit.model import BitFitModel

__all__ = ["BitFitConfig", "BitFitLayer", "BitFitModel"]

register_peft_method(name="bitfit", config_cls=BitFitConfig, model_cls=BitFitModel)
