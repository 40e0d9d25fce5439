"""The axis that an encoder knows, and the stored metric of the packaged one."""

import pytest
import torch

from hf_any3d import (
    AutoModelForPointCloudClassification,
    PointFeaturesConfig,
    PointFeaturesForPointCloudClassification,
)
from hf_any3d.modeling.point_encoders.packaged_metric import in_metric, packaged_metric
from tests.common.case import varied_clouds
from tests.errors import raises
from tests.tiny_features import tiny_features

SETTINGS = {"features": ["encoder"], "copies": 3, "copy_scale": [1.0, 1.0], "copy_jitter": 0.0}


def lying(clouds: torch.Tensor) -> torch.Tensor:
    """Clouds with Y up as a file with Z up has them."""
    x, y, z = clouds.unbind(-1)
    return torch.stack([x, -z, y], dim=-1)


@torch.no_grad()
def test_clouds_are_turned_to_the_axis_of_the_packaged_encoder_after_copies_are_made():
    clouds = varied_clouds(2, 300)
    upright = PointFeaturesForPointCloudClassification(PointFeaturesConfig(**SETTINGS)).eval()
    expected = upright.base_model(clouds).pooler_output
    model = PointFeaturesForPointCloudClassification(PointFeaturesConfig(**SETTINGS, up_axis="z")).eval()
    assert model.config.encoder_up_axis == "y"
    torch.testing.assert_close(model.base_model(lying(clouds)).pooler_output, expected, atol=1e-4, rtol=1e-4)
    still = PointFeaturesForPointCloudClassification(
        PointFeaturesConfig(**SETTINGS, up_axis="z", encoder_up_axis=None)
    ).eval()
    assert not torch.allclose(still.base_model(lying(clouds)).pooler_output, expected, atol=1e-2)


def test_encoders_of_others_are_given_clouds_as_they_are():
    assert tiny_features(PointFeaturesForPointCloudClassification, up_axis="z").config.encoder_up_axis is None
    assert PointFeaturesConfig(features=["descriptors"]).encoder_up_axis is None
    with raises(ValueError, naming="encoder_up_axis='w'"):
        PointFeaturesConfig(encoder_up_axis="w")


@torch.no_grad()
def test_the_encoder_is_compared_in_a_metric_that_is_saved_with_the_model(tmp_path):
    clouds = varied_clouds(4, 300)
    model = PointFeaturesForPointCloudClassification(PointFeaturesConfig(**SETTINGS)).eval()
    raw, stored = model.base_model(clouds).pooler_output, packaged_metric()
    model.set_metric(stored["matrix"])
    zeros = {"weight": torch.ones(2, 288), "bias": torch.zeros(2)}
    model.set_head(**zeros, mean=stored["mean"], scale=stored["scale"])
    features = model.base_model(clouds).pooler_output
    expected = in_metric((raw - stored["mean"]) / stored["scale"], stored["matrix"])
    torch.testing.assert_close(features, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(features.norm(dim=1), torch.full((4,), 288**0.5))
    model.save_pretrained(tmp_path)
    again = AutoModelForPointCloudClassification.from_pretrained(tmp_path)
    assert again.config.metric and torch.equal(again(clouds).logits, model(clouds).logits)
    # Without it, features are standardized alone.
    model.set_metric(None)
    assert not model.config.metric and model.base_model.metric is None


@pytest.mark.parametrize("features", [["descriptors", "encoder"], ["descriptors"]])
def test_only_features_of_the_encoder_have_a_metric(features):
    model = PointFeaturesForPointCloudClassification(PointFeaturesConfig(features=features, copies=1))
    with raises(ValueError, naming="matrix"):
        model.set_metric(torch.eye(288))
    with raises(ValueError, naming="metric=True"):
        PointFeaturesConfig(features=features, metric=True)
