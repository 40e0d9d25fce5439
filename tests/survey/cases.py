"""Small models of `survey/`, for what the suites in tests/common ask of all."""

from functools import partial

from hf_any3d_survey.local_features import LocalFeaturesForPointCloudSegmentation, LocalFeaturesModel
from tests.common.case import Case
from tests.common.models import LABELS, _clouds, _point_labels
from tests.survey.tiny_local_features import CHANNELS, tiny_local_features

CASES = (
    Case(
        LocalFeaturesModel,
        partial(tiny_local_features, LocalFeaturesModel),
        _clouds(CHANNELS),
        None,
        "pooler_output",
        is_adapted=False,
    ),
    Case(
        LocalFeaturesForPointCloudSegmentation,
        partial(tiny_local_features, LocalFeaturesForPointCloudSegmentation),
        _clouds(CHANNELS),
        _point_labels(LABELS),
        "logits",
        "classifier",
        {"dropout": 0.0},
        is_adapted=False,
    ),
)
