"""BitFit, a PEFT method that trains the biases of an encoder's layers."""

from hf_any3d.tuners.bitfit.config import BitFitConfig
from hf_any3d.tuners.bitfit.layer import BitFitLayer
from hf_any3d.tuners.bitfit.model import BitFitModel
from hf_any3d.tuners.tuners_utils import register_method

__all__ = ["BitFitConfig", "BitFitLayer", "BitFitModel"]

register_method(BitFitConfig, BitFitModel)
