"""ONNX files of models other than those of an adapted encoder; each export takes many seconds."""

import json

import pytest
import torch

from hf_any3d import PatchAlign3DForPointCloudClassification, PointFeaturesForPointCloudClassification
from hf_any3d.export import export_file
from tests.tiny_aligned import tiny_aligned
from tests.tiny_features import tiny_features

pytest.importorskip("onnxscript")


@pytest.mark.slow
def test_features_without_training_are_exported(tmp_path):
    model = tiny_features(PointFeaturesForPointCloudClassification, copies=2)
    exported = export_file(model, tmp_path / "model.onnx")
    assert exported.worst_difference < 1e-5


@pytest.mark.slow
def test_a_point_encoder_that_is_aligned_with_texts_is_exported(tmp_path):
    model = tiny_aligned(PatchAlign3DForPointCloudClassification, num_hidden_layers=1)
    torch.nn.init.normal_(model.classifier.out.weight, std=2.0)
    # It is kept only if its logits equal those of the model on clouds of other sizes.
    exported = export_file(model, tmp_path / "model.onnx")
    settings = json.loads(exported.settings.read_text())
    assert exported.worst_difference < 1e-5 and settings["encoder"] is None
    assert settings["input"]["min_points"] == model.config.num_groups
