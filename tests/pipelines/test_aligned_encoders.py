"""Encoders aligned with texts in the pipelines: labels given as words, features, their own text tower."""

import pytest
import torch
from transformers import AutoConfig, pipeline

from hf_any3d import AutoModelForZeroShotPointCloudClassification, PointCloudProcessor
from hf_any3d.modeling.openshape import OpenShapeForZeroShotPointCloudClassification
from hf_any3d.modeling.recon import ReconForZeroShotPointCloudClassification
from hf_any3d.modeling.uni3d import Uni3DForZeroShotPointCloudClassification
from tests.tiny_aligned import tiny_aligned
from tests.tiny_recon import tiny_recon
from tests.tiny_text_towers import saved_text_tower

LABELS = ["chair", "lamp", "table"]


@pytest.fixture(
    params=[
        OpenShapeForZeroShotPointCloudClassification,
        Uni3DForZeroShotPointCloudClassification,
        ReconForZeroShotPointCloudClassification,
    ]
)
def saved(request, tmp_path):
    """A directory with a tiny encoder, aligned with a tiny CLIP, and its processor."""
    tower = saved_text_tower("clip")
    width = AutoConfig.from_pretrained(tower).projection_dim
    parts = {"text_tower": {"name_or_path": tower}}
    if request.param is ReconForZeroShotPointCloudClassification:
        model = tiny_recon(request.param, image_width=width, text_width=width, parts=parts)
        processor = PointCloudProcessor(num_points=64)
    else:
        model = tiny_aligned(request.param, projection_dim=width, parts=parts)
        processor = PointCloudProcessor(num_points=64, features=("xyz", "rgb"), default_rgb=(0.4, 0.4, 0.4))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.slow
def test_labels_are_given_as_words(saved):
    classify = pipeline("zero-shot-point-cloud-classification", model=saved)
    answers = classify("tests/files/chair.ply", candidate_labels=LABELS)
    assert sorted(answer["label"] for answer in answers) == LABELS
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)
    model = AutoModelForZeroShotPointCloudClassification.from_pretrained(saved)
    texts = model.encode_labels(LABELS)
    inputs = PointCloudProcessor.from_pretrained(saved)("tests/files/chair.ply")
    with torch.no_grad():
        logits = model(**inputs, text_embeds=texts).logits_per_point_cloud[0]
    expected = dict(zip(LABELS, logits.softmax(dim=-1).tolist(), strict=True))
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected, abs=1e-5)


def test_settings_that_make_no_model_are_refused():
    config = OpenShapeForZeroShotPointCloudClassification.config_class
    for settings, message in (
        ({"group_radius": 0.0}, "group_radius=0.0; expected"),
        ({"parts": {"tower": {}}}, "parts has 'tower'"),
    ):
        with pytest.raises(ValueError, match=message):
            config(**settings)
