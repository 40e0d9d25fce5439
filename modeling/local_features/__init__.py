"""Numbers of the surroundings of each point, which need no training, and a small network on them: for a few tiles."""

from hf_any3d.modeling.local_features.configuration_local_features import LocalFeaturesConfig
from hf_any3d.modeling.local_features.modeling_local_features import (
    LocalFeaturesForPointCloudSegmentation,
    LocalFeaturesModel,
    LocalFeaturesOutput,
    LocalFeaturesPreTrainedModel,
)

__all__ = [
    "LocalFeaturesConfig",
    "LocalFeaturesForPointCloudSegmentation",
    "LocalFeaturesModel",
    "LocalFeaturesOutput",
    "LocalFeaturesPreTrainedModel",
]
