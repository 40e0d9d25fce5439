"""Record, save and load pretrained parts whose weights are kept elsewhere."""

from hf_any3d.modeling.pretrained_parts.adapter_loading import AdapterLoadingMixin, adapter_subfolder
from hf_any3d.modeling.pretrained_parts.loading_checks import (
    encoder_loading,
    is_quantized,
    set_quantization,
    single_device,
)
from hf_any3d.modeling.pretrained_parts.mixin import (
    HUB_ARGUMENTS,
    PretrainedPartsMixin,
    remember_weights,
    remembered_weights,
)
from hf_any3d.modeling.pretrained_parts.record import (
    EncoderConfigMixin,
    PartsConfigMixin,
    PretrainedPart,
    absolute_name,
)
from hf_any3d.modeling.pretrained_parts.tensors import own_modules, own_state, own_tensors, tensors_checksum

__all__ = [
    "HUB_ARGUMENTS",
    "AdapterLoadingMixin",
    "EncoderConfigMixin",
    "PartsConfigMixin",
    "PretrainedPart",
    "PretrainedPartsMixin",
    "absolute_name",
    "adapter_subfolder",
    "encoder_loading",
    "is_quantized",
    "own_modules",
    "own_state",
    "own_tensors",
    "remember_weights",
    "remembered_weights",
    "set_quantization",
    "single_device",
    "tensors_checksum",
]
