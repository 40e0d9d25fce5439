"""Pretrained parts of models, whose weights are kept in repositories of their own.

Such as Any2Point's encoder, the point transformer under an adapter, and MiniGPT-3D's language model:

1. The config records the part in `parts` as a `PretrainedPart`: repository, commit, checksum of its tensors.
2. It is opened from there (`sources.open_recorded`), or from the folder next to an adapter, and its checksum compared.
3. It is frozen, and its tensors are remembered (`remember_weights`).
4. Saving compares them (`changed_tensors`), without adapters. An unchanged part is left out; a changed one is stored
   with the model, and its record says so; a quantized one cannot be stored and is refused.

`PretrainedPartsMixin` does this for full models, `AdapterLoadingMixin` for repositories that hold only an adapter.
"""

from hf_any3d.modeling.pretrained_parts.adapter_loading import AdapterLoadingMixin, opens_from_adapter
from hf_any3d.modeling.pretrained_parts.loading import (
    HUB_ARGUMENTS,
    encoder_loading,
    is_quantized,
    set_quantization,
    single_device,
    unused_weights_expected,
)
from hf_any3d.modeling.pretrained_parts.mixin import PretrainedPartsMixin
from hf_any3d.modeling.pretrained_parts.record import (
    EncoderConfigMixin,
    PartsConfigMixin,
    PretrainedPart,
    absolute_name,
    check_revisions,
    part_property,
    source_property,
)
from hf_any3d.modeling.pretrained_parts.tensors import own_modules, own_state, remember_weights, tensors_checksum

__all__ = [
    "HUB_ARGUMENTS",
    "AdapterLoadingMixin",
    "EncoderConfigMixin",
    "PartsConfigMixin",
    "PretrainedPart",
    "PretrainedPartsMixin",
    "absolute_name",
    "check_revisions",
    "encoder_loading",
    "is_quantized",
    "opens_from_adapter",
    "own_modules",
    "own_state",
    "part_property",
    "remember_weights",
    "set_quantization",
    "single_device",
    "source_property",
    "tensors_checksum",
    "unused_weights_expected",
]
