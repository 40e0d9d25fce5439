"""Shared classes of point encoders that are aligned with text: OpenShape, Uni3D and PatchAlign3D."""

from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import (
    TEXT_TOWER,
    AlignedEncoderConfig,
)
from hf_any3d.modeling.point_encoders.aligned_encoders.modeling_aligned_encoders import (
    AlignedClassifier,
    AlignedEncoder,
    AlignedEncoderOutput,
    AlignedPreTrainedModel,
    AlignedSegmenter,
    AlignedTextsMixin,
    AlignedZeroShotClassifier,
    TextAlignment,
    Tokens,
)

__all__ = [
    "TEXT_TOWER",
    "AlignedClassifier",
    "AlignedEncoder",
    "AlignedEncoderConfig",
    "AlignedEncoderOutput",
    "AlignedPreTrainedModel",
    "AlignedSegmenter",
    "AlignedTextsMixin",
    "AlignedZeroShotClassifier",
    "TextAlignment",
    "Tokens",
]
