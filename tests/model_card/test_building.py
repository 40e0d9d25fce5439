"""Building model cards from a config and a report."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from hf_any3d import (
    Any2PointConfig,
    Any2PointForPointCloudClassification,
    PointFeaturesConfig,
    PointFeaturesForPointCloudClassification,
)
from hf_any3d.model_card import Subject, build_model_card
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.modeling.any2point import PointTokenizerConfig, PointTokenizerForPointCloudClassification

REPORT = RunReport(
    data={"name": "me/scans", "rows": {"train": 10, "validation": 3}, "augmentation": [], "on_hub": True},
    encoder={"name": "openai/clip-vit-base-patch32", "tower": "text", "layers": 12, "checksum": "sha256:12"},
    adapter={},
    trained_parameters=1000,
    total_parameters=50_000,
    seconds={"training": 61.4, "total": 70.0},
    peak_memory={"process": 2_000_000_000, "cuda": 3_500_000_000},
    metrics={"validation": {"accuracy": 0.8125, "mean_class_accuracy": 0.75, "loss": 0.5}},
    class_accuracy={},
    selection={"metric": "accuracy", "value": 0.8125, "step": 30},
    training={"seed": 7, "steps": 40, "precision": "bfloat16"},
)


def card(report: RunReport = REPORT, **config) -> ModelCard:
    settings = Any2PointConfig(id2label={0: "chair", 1: "lamp"}, **config)
    subject = Subject(Any2PointForPointCloudClassification, settings, report.adapter, report=report, num_points=512)
    return ModelCard(str(build_model_card(subject, "me/model")))  # parsed as the hub parses it


def test_metadata_are_complete_with_and_without_a_run():
    config = Any2PointConfig(id2label={0: "chair", 1: "lamp"})
    known = {
        "library_name": "hf_any3d",
        "pipeline_tag": "point-cloud-classification",
        "model_name": "model",
        "tags": ["hf_any3d", "any2point", "point-cloud", "3d"],
    }
    subject = Subject(Any2PointForPointCloudClassification, config, {}, report=None, num_points=512)
    assert ModelCard(str(build_model_card(subject, "me/model"))).data.to_dict() == known
    del known["model_name"]  # that of the results on the hub
    linked = {"base_model": "openai/clip-vit-base-patch32", "base_model_relation": "adapter"}
    found = card().data.to_dict()
    assert found.pop("metrics") == ["accuracy"] and found.pop("datasets") == ["me/scans"]
    assert [each["value"] for each in found.pop("model-index")[0]["results"][0]["metrics"]] == [0.8125, 0.75]
    assert found == known | linked


def test_text_lists_costs_results_and_classes():
    text = card().text
    for fact in ("81.2 %", "75.0 %", "1,000 of 50,000 (2.00 %)", "2,000 MB", "3,500 MB", "| seconds, training | 61 |"):
        assert fact in text, fact
    assert "Classes: chair, lamp." in text and "512 points" in text and "step 30" in text
    assert "PeftModel" not in text and "on hub" not in text and "augmentation" not in text


def test_a_tokenizer_that_started_from_weights_of_the_package_is_named():
    started = "that started from weights trained on generated shapes"
    assert f"reads the points through a trained tokenizer {started}" in card(tokenizer_weights="generated_shapes").text
    assert "started from" not in card().text
    for weights, origin in (("generated_shapes", "weights trained on generated shapes"), ("random", "random weights")):
        report = replace(REPORT, encoder={}, start={})
        config = PointTokenizerConfig(id2label={0: "chair", 1: "lamp"}, tokenizer_weights=weights)
        subject = Subject(PointTokenizerForPointCloudClassification, config, {}, report=report, num_points=512)
        assert f"without its encoder, started from {origin}." in build_model_card(subject, "me/model").text


@pytest.mark.parametrize(
    ("features", "weights", "is_control"),
    [(["encoder"], "random", True), (["encoder"], "packaged", False), (["descriptors"], "random", False)],
)
def test_features_of_random_weights_are_a_control(features, weights, is_control):
    config = PointFeaturesConfig(features=features, encoder_weights=weights, id2label={0: "chair", 1: "lamp"})
    subject = Subject(PointFeaturesForPointCloudClassification, config, {}, report=None, num_points=512)
    made = ModelCard(str(build_model_card(subject, "me/model")))
    assert ("control" in made.data.tags) == is_control
    assert ("a control: the point encoder has random weights" in made.text) == is_control


@pytest.mark.parametrize("metrics", [{}, {"test": {"loss": 1.0}}])
def test_runs_without_evaluation_have_a_card(metrics):
    made = card(replace(REPORT, metrics=metrics, selection={}))
    assert made.data.eval_results is None and "the last step" in made.text


def test_scores_on_a_known_dataset_are_listed_under_its_name():
    report = replace(REPORT, data={"name": "modelnet40", "on_hub": False, "hub_type": "modelnet40"})
    assert {r.dataset_type for r in card(report).data.eval_results} == {"modelnet40"}
