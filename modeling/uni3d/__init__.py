"""Uni3D (arXiv 2310.06773): point encoders aligned with EVA-CLIP."""

from hf_any3d.modeling.uni3d.configuration_uni3d import Uni3DConfig
from hf_any3d.modeling.uni3d.modeling_uni3d import (
    Uni3DForPointCloudClassification,
    Uni3DForPointCloudSegmentation,
    Uni3DForZeroShotPointCloudClassification,
    Uni3DModel,
    Uni3DPreTrainedModel,
)

__all__ = [
    "Uni3DConfig",
    "Uni3DForPointCloudClassification",
    "Uni3DForPointCloudSegmentation",
    "Uni3DForZeroShotPointCloudClassification",
    "Uni3DModel",
    "Uni3DPreTrainedModel",
]
