"""PointGST, a PEFT method for frozen encoders of point tokens: adapters between eigenvectors of graphs."""

from peft.utils import register_peft_method

from hf_any3d.tuners.pointgst.config import PointGSTConfig
from hf_any3d.tuners.pointgst.layer import PointGSTLayer
from hf_any3d.tuners.pointgst.model import PointGSTModel

__all__ = ["PointGSTConfig", "PointGSTLayer", "PointGSTModel"]

register_peft_method(name="pointgst", config_cls=PointGSTConfig, model_cls=PointGSTModel)
