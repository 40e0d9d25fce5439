"""The audio encoder of ImageBind (arXiv 2305.05665), which transformers lacks."""

from hf_any3d.modeling.imagebind_audio.configuration_imagebind_audio import ImageBindAudioConfig
from hf_any3d.modeling.imagebind_audio.modeling_imagebind_audio import (
    ImageBindAudioModel,
    ImageBindAudioPreTrainedModel,
)

__all__ = ["ImageBindAudioConfig", "ImageBindAudioModel", "ImageBindAudioPreTrainedModel"]
