"""PointGST, a PEFT method for frozen encoders of point tokens: adapters between eigenvectors of graphs."""

from hf_any3d.tuners.pointgst.config import PointGSTConfig
from hf_any3d.tuners.pointgst.layer import PointGSTLayer
from hf_any3d.tuners.pointgst.model import PointGSTModel
from hf_any3d.tuners.tuners_utils import register_method

__all__ = ["PointGSTConfig", "PointGSTLayer", "PointGSTModel"]

register_method(PointGSTConfig, PointGSTModel)
