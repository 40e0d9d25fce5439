"""An HTTP service for a model: classification, features, segmentation and chat; only its routes need FastAPI."""

from hf_any3d.serving.limits import Refused, ServeLimits

__all__ = ["Refused", "ServeLimits"]
