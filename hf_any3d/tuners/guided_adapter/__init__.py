"""The guided adapter, a PEFT method for frozen encoders of point tokens."""

from hf_any3d.tuners.guided_adapter.config import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter.layer import GuidedAdapterLayer
from hf_any3d.tuners.guided_adapter.model import GuidedAdapterModel
from hf_any3d.tuners.tuners_utils import register_method

__all__ = ["GuidedAdapterConfig", "GuidedAdapterLayer", "GuidedAdapterModel"]

register_method(GuidedAdapterConfig, GuidedAdapterModel)
