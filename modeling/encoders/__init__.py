"""Pretrained encoders as readers of point tokens: which families, where their parts are, where weights come from."""

from hf_any3d.modeling.encoders import families as _families  # noqa: F401  registers the families
from hf_any3d.modeling.encoders import imagebind_audio as _imagebind_audio  # noqa: F401
from hf_any3d.modeling.encoders.adapter_repositories import AdapterRepositoryMixin
from hf_any3d.modeling.encoders.frozen_encoder import FrozenEncoderMixin, encoder_settings, freeze, load_encoder
from hf_any3d.modeling.encoders.position_table import PositionTable
from hf_any3d.modeling.encoders.registry import (
    EncoderFamily,
    UnsupportedEncoder,
    encoder_families,
    find_family,
    register_composite,
    register_family,
    select_tower,
)

__all__ = [
    "AdapterRepositoryMixin",
    "EncoderFamily",
    "FrozenEncoderMixin",
    "PositionTable",
    "UnsupportedEncoder",
    "encoder_families",
    "encoder_settings",
    "find_family",
    "freeze",
    "load_encoder",
    "register_composite",
    "register_family",
    "select_tower",
]
