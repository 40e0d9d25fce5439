"""Features of files and arrays."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.pipelines import PointCloudFeatureExtractionPipeline
from tests.tiny_encoders import HIDDEN, adapted_model, clouds

PROCESSOR = PointCloudProcessor(num_points=48, sampling="first")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier")
    model = adapted_model()
    model.save_pretrained(directory)
    PROCESSOR.save_pretrained(directory)
    return str(directory), model


@torch.no_grad()
def expected_of(model, cloud):
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.any2point(PROCESSOR(cloud)["points"])


def agrees(found, expected):
    assert found.keys() == {"pooled", "class_token", "tokens", "centers"}
    np.testing.assert_allclose(found["pooled"], expected.pooler_output[0], atol=1e-5)
    np.testing.assert_allclose(found["class_token"], expected.last_hidden_state[0, 0], atol=1e-5)
    np.testing.assert_allclose(found["tokens"], expected.last_hidden_state[0, 1:], atol=1e-5)
    np.testing.assert_allclose(found["centers"], expected.centers[0], atol=1e-6)
    return True


@pytest.mark.slow
def test_repository_of_a_classifier_returns_features(saved):
    extract = pipeline("point-cloud-feature-extraction", model=saved[0])
    assert type(extract) is PointCloudFeatureExtractionPipeline
    cloud = clouds(1, 60)[0].numpy()
    found = extract(cloud)
    assert found["tokens"].shape == (8, HIDDEN) and found["pooled"].shape == (2 * HIDDEN,)
    assert all(values.dtype == np.float32 for values in found.values())
    assert agrees(found, expected_of(saved[1], cloud))
