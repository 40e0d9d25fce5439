"""OpenShape (arXiv 2305.10764): point encoders aligned with CLIP."""

from hf_any3d.modeling.openshape.configuration_openshape import OpenShapeConfig
from hf_any3d.modeling.openshape.modeling_openshape import (
    OpenShapeForPointCloudClassification,
    OpenShapeForPointCloudSegmentation,
    OpenShapeForZeroShotPointCloudClassification,
    OpenShapeModel,
    OpenShapePreTrainedModel,
)

__all__ = [
    "OpenShapeConfig",
    "OpenShapeForPointCloudClassification",
    "OpenShapeForPointCloudSegmentation",
    "OpenShapeForZeroShotPointCloudClassification",
    "OpenShapeModel",
    "OpenShapePreTrainedModel",
]
