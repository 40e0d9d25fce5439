"""Pretrained encoders that encode point tokens: supported families, their positions, loading and freezing."""

from hf_any3d.modeling.encoders import families as _families  # noqa: F401  registers the families
from hf_any3d.modeling.encoders.discovery import discover
from hf_any3d.modeling.encoders.frozen_encoder import FrozenEncoderMixin, unfreeze
from hf_any3d.modeling.encoders.full_precision_attention import full_precision_attention
from hf_any3d.modeling.encoders.loading import ENCODER_DTYPES, build_encoder, encoder_settings, freeze, load_encoder
from hf_any3d.modeling.encoders.model_parts import (
    build_adapter,
    has_adapter,
    open_pretrained_part,
    refuse_adapter,
    restore_part,
    settle_adapter,
)
from hf_any3d.modeling.encoders.positions import (
    LayerPass,
    PositionTable,
    TokenPlaces,
    bidirectional_inputs,
    convolve_on_line,
    hidden_of,
)
from hf_any3d.modeling.encoders.prefix_attention import compute_prefix, prefix_attention, run_with_prefix
from hf_any3d.modeling.encoders.registry import (
    EncoderFamily,
    UnsupportedEncoder,
    composite_checkpoints,
    encoder_families,
    find_family,
    register_family,
    register_rule,
)
from hf_any3d.modeling.layers.adapted_layers import LayerStack

register_rule(discover)

__all__ = [
    "ENCODER_DTYPES",
    "EncoderFamily",
    "FrozenEncoderMixin",
    "LayerPass",
    "LayerStack",
    "PositionTable",
    "TokenPlaces",
    "UnsupportedEncoder",
    "compute_prefix",
    "prefix_attention",
    "bidirectional_inputs",
    "build_adapter",
    "build_encoder",
    "composite_checkpoints",
    "convolve_on_line",
    "discover",
    "encoder_families",
    "encoder_settings",
    "find_family",
    "freeze",
    "full_precision_attention",
    "has_adapter",
    "hidden_of",
    "load_encoder",
    "open_pretrained_part",
    "refuse_adapter",
    "register_family",
    "register_rule",
    "restore_part",
    "run_with_prefix",
    "settle_adapter",
    "unfreeze",
]
