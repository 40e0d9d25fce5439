"""Features of files and arrays."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.pipelines import PointCloudFeatureExtractionPipeline
from tests.errors import raises
from tests.tiny_encoders import HIDDEN, adapted_model, clouds, tiny_scene_model

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


@pytest.mark.slow
def test_many_clouds_return_a_list_for_any_batch_size(saved, tmp_path):
    extract = pipeline("point-cloud-feature-extraction", model=saved[0])
    inputs = [cloud.numpy() for cloud in clouds(3)]
    np.save(tmp_path / "cloud.npy", inputs[1])
    answers = extract([inputs[0], str(tmp_path / "cloud.npy"), inputs[2]], batch_size=2)
    assert all(agrees(a, expected_of(saved[1], c)) for a, c in zip(answers, inputs, strict=True))


def test_models_with_a_head_may_be_given_as_objects(saved):
    cloud = clouds(1)[0].numpy()
    for model in (saved[1], saved[1].get_base_model(), tiny_scene_model()):
        extract = pipeline("point-cloud-feature-extraction", model=model, feature_extractor=PROCESSOR)
        assert agrees(extract(cloud), expected_of(model, cloud))


def test_unknown_argument_is_refused(saved):
    with raises(TypeError, naming="top_k"):
        pipeline("point-cloud-feature-extraction", model=saved[0])(clouds(1)[0], top_k=2)
