"""What models and processors of local features cannot use is refused, by its name."""

import numpy as np
import pytest

from hf_any3d import LocalFeaturesForPointCloudSegmentation, LocalFeaturesProcessor
from hf_any3d.data.files import PointCloudData
from hf_any3d_survey.local_features.fitting import adapted
from tests.errors import raises
from tests.survey.tiny_local_features import tiny_local_features

POINTS = np.eye(3, dtype=np.float32)


def measured(**columns):
    """Check that a cloud has the column that a processor reads."""
    further = {name: np.asarray(values) for name, values in columns.items()}
    LocalFeaturesProcessor(columns=("wave",)).check_measured(PointCloudData(POINTS, further=further))


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: LocalFeaturesProcessor(optional=("rgb",)), "optional"),
        (lambda: measured(width=[1.0, 2, 3]), "'wave'"),
        (lambda: measured(wave=[np.nan] * 3), "'wave' has no value"),
    ],
)
def test_an_argument_is_refused(call, named):
    with raises(ValueError, naming=named):
        call()


def test_a_model_without_learned_rows_cannot_be_adapted():
    local = tiny_local_features(LocalFeaturesForPointCloudSegmentation)
    with raises(ValueError, naming="no training points"):
        adapted(local, np.zeros((2, 3), np.float32), ())
