"""Pipelines with saved ACT models."""

import pytest
import torch
from transformers import pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.act import ActForPartSegmentation, ActForPointCloudClassification, ActForSemanticSegmentation
from tests.tiny_act import clouds, tiny_act

NAMES = {0: "chair", 1: "desk", 2: "lamp"}


def opened(task: str, model: torch.nn.Module, directory):
    model.save_pretrained(directory)
    PointCloudProcessor(num_points=60).save_pretrained(directory)
    return pipeline(task, model=str(directory))


def processed() -> torch.Tensor:
    return PointCloudProcessor(num_points=60)(list(clouds(3)), return_tensors="pt")["points"]


@torch.no_grad()
def test_classification_equals_the_model(tmp_path):
    model = tiny_act(ActForPointCloudClassification, id2label=NAMES)
    classify = opened("point-cloud-classification", model, tmp_path)
    expected = model(processed()).logits.softmax(dim=-1)
    for found, scores in zip(classify(list(clouds(3)), batch_size=2), expected, strict=True):
        assert found[0]["label"] == NAMES[scores.argmax().item()]
        assert found[0]["score"] == pytest.approx(scores.max().item(), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("model_class", [ActForPointCloudClassification, ActForSemanticSegmentation])
def test_features_are_those_of_the_base_model(tmp_path, model_class):
    model = tiny_act(model_class)
    extract = opened("point-cloud-feature-extraction", model, tmp_path)
    assert type(extract.model).__name__ == "ActModel"
    expected = model.act(processed())
    for number, found in enumerate(extract(list(clouds(3)))):
        torch.testing.assert_close(torch.from_numpy(found["pooled"]), expected.pooler_output[number])
        torch.testing.assert_close(torch.from_numpy(found["tokens"]), expected.last_hidden_state[number, -12:])
        assert found["centers"].shape == (12, 3)
        assert ("class_token" in found) == (model_class is ActForPointCloudClassification)


@pytest.mark.parametrize("model_class", [ActForSemanticSegmentation, ActForPartSegmentation])
def test_segmentation_labels_every_point(tmp_path, model_class):
    segment = opened("point-cloud-segmentation", tiny_act(model_class), tmp_path)
    assert type(segment.model) is model_class
    parts = model_class is ActForPartSegmentation
    found = segment(clouds(1, 150)[0], **({"category": "lamp"} if parts else {}))
    assert found["labels"].shape == (150,) and set(found["labels"]) <= ({2, 3, 4} if parts else {0, 1, 2})
