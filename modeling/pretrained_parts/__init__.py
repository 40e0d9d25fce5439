"""Pretrained parts that are kept elsewhere: recorded, left out or stored when a model is saved, and opened again."""

from hf_any3d.modeling.pretrained_parts.adapter_doors import AdapterDoorsMixin, beside_adapter
from hf_any3d.modeling.pretrained_parts.bits import is_quantized, settle_bits
from hf_any3d.modeling.pretrained_parts.mixin import (
    HUB_ARGUMENTS,
    PretrainedPartsMixin,
    remember_weights,
    remembered_weights,
)
from hf_any3d.modeling.pretrained_parts.placing import encoder_loading, single_device
from hf_any3d.modeling.pretrained_parts.record import (
    EncoderConfigMixin,
    PartsConfigMixin,
    PretrainedPart,
    absolute_name,
)
from hf_any3d.modeling.pretrained_parts.tensors import own_modules, own_state, own_tensors, tensors_checksum

__all__ = [
    "HUB_ARGUMENTS",
    "AdapterDoorsMixin",
    "EncoderConfigMixin",
    "PartsConfigMixin",
    "PretrainedPart",
    "PretrainedPartsMixin",
    "absolute_name",
    "beside_adapter",
    "encoder_loading",
    "is_quantized",
    "own_modules",
    "own_state",
    "own_tensors",
    "remember_weights",
    "remembered_weights",
    "settle_bits",
    "single_device",
    "tensors_checksum",
]
