"""The guided adapter, a PEFT method for frozen encoders of point tokens."""

from peft.utils import register_peft_method

from hf_any3d.tuners.guided_adapter.config import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter.layer import GuidedAdapterLayer
from hf_any3d.tuners.guided_adapter.model import GuidedAdapterModel

__all__ = ["GuidedAdapterConfig", "GuidedAdapterLayer", "GuidedAdapterModel"]

register_peft_method(name="guided_adapter", config_cls=GuidedAdapterConfig, model_cls=GuidedAdapterModel)
