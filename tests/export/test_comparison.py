"""The comparison detects typical errors of exporters."""

import pytest
import torch

from hf_any3d.export.onnx import compare
from tests.errors import raises
from tests.tiny_encoders import adapted_model


@pytest.fixture(scope="module")
def model():
    made = adapted_model("bert", num_layers=1)
    torch.nn.init.normal_(made.get_base_model().classifier.modules_to_save["default"].out.weight, std=2.0)
    return made


def logits(model, points):
    with torch.no_grad():
        return model(points=points).logits


@pytest.mark.slow
def test_the_same_function_agrees(model):
    assert compare(model, lambda points: logits(model, points)) == 0


def test_sampled_indices_that_became_constants_are_noticed(model):
    traced = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"disagrees with the model on 1 clouds of 69 points: logits differ by "):
        compare(model, lambda points: logits(model, points[:, traced]))


def test_a_batch_that_became_a_constant_is_noticed(model):
    with pytest.raises(ValueError, match="disagrees with the model on 1 clouds"):
        compare(model, lambda points: logits(model, points[:1].expand(2, -1, -1)))


def test_small_differences_are_measured_and_large_or_undefined_ones_refused(model):
    assert compare(model, lambda points: logits(model, points) + 3e-5) == pytest.approx(3e-5, rel=0.1)
    for error in (1e-2, float("nan")):
        with raises(ValueError, naming="logits differ by"):
            compare(model, lambda points, error=error: logits(model, points) + error)
