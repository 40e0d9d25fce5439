"""Features of point clouds that need no training, and a linear head on them: for tens of scans."""

from hf_any3d.modeling.point_features.configuration_point_features import PointFeaturesConfig
from hf_any3d.modeling.point_features.modeling_point_features import (
    PointFeaturesForPointCloudClassification,
    PointFeaturesModel,
    PointFeaturesPreTrainedModel,
)

__all__ = [
    "PointFeaturesConfig",
    "PointFeaturesForPointCloudClassification",
    "PointFeaturesModel",
    "PointFeaturesPreTrainedModel",
]
