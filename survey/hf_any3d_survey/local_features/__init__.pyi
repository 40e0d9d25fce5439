"""Public names for type checkers, written by `python -m docs.tools.stubs`."""

from hf_any3d_survey.local_features.configuration_local_features import LocalFeaturesConfig as LocalFeaturesConfig
from hf_any3d_survey.local_features.modeling_local_features import (
    LocalFeaturesForPointCloudSegmentation as LocalFeaturesForPointCloudSegmentation,
    LocalFeaturesModel as LocalFeaturesModel,
    LocalFeaturesPreTrainedModel as LocalFeaturesPreTrainedModel,
)
from hf_any3d_survey.local_features.network import LocalFeaturesOutput as LocalFeaturesOutput
