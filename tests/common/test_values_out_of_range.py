"""Numbers that no one can mean are refused by their name: they would empty an answer, or turn it round."""

from math import nan
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

import hf_any3d
from hf_any3d import ActConfig, ActForPointCloudClassification, PointCloudProcessor, PointTransformerV3Processor
from hf_any3d.data import transforms
from hf_any3d.evaluation import (
    classification,
    detection,
    layouts,
    reconstruction,
    segmentation,
    statistics,
    voting,
    zero_shot,
)
from hf_any3d.modeling import point_ops
from hf_any3d.modeling.act import ActForSemanticSegmentation
from hf_any3d.modeling.layers import boxes, unknown_score
from hf_any3d.modeling.layers.heads import ClassificationHead
from hf_any3d.modeling.layers.losses import point_loss
from hf_any3d.training.arguments import DataArguments, ModelArguments
from hf_any3d.training.few_scans.request import FewScans, FewScansArguments, FewScansDataArguments
from tests.cli.conftest import run
from tests.common.models import case_of
from tests.errors import raises
from tests.tiny_act import tiny_act

CLOUD = torch.rand(1, 20, 3, generator=torch.manual_seed(0))
BOX = np.array([[0, 0, 0, 1, 1, 1, 0.0]])
FOUND = {"boxes": BOX, "labels": np.array([0]), "scores": np.array([0.9])}
CALLS = {
    "thresholds": [
        lambda value: detection.score_detections([FOUND], [FOUND], thresholds=[value]),
        lambda value: detection.detection_metrics([FOUND], [FOUND], thresholds=(0.25, value)),
        lambda value: layouts.score_layouts([], [], thresholds=[value]),
    ],
    "radius": [lambda value: point_ops.ball_query(CLOUD, CLOUD, value, 2)],
    "grid_size": [
        lambda value: point_ops.grid_sample(CLOUD[0], value),
        lambda value: PointTransformerV3Processor(grid_size=value),
    ],
    "edge": [lambda value: point_ops.voxel_cells(CLOUD, value)],
    "shift": [lambda value: point_ops.voxel_cells(CLOUD, 0.1, value)],
    "eps": [lambda value: point_ops.three_nearest_interpolate(CLOUD, CLOUD, CLOUD, value)],
    "min_squared_norm": [
        lambda value: point_ops.farthest_point_sample(CLOUD, 4, min_squared_norm=value),
        lambda value: PointCloudProcessor(min_squared_norm=value),
    ],
    "patch_size": [lambda value: point_ops.patch_table([10, 3], value)],
    "threshold": [
        lambda value: point_ops.reconstruction_scores(CLOUD, CLOUD, value),
        lambda value: reconstruction.CompareWithClouds(threshold=value),
        lambda value: boxes.DetectionRule(threshold=value),
    ],
    "tolerance": [lambda value: boxes.points_in_boxes(CLOUD[0], torch.tensor(BOX).float(), value)],
    "limit": [lambda value: boxes.non_maximum_suppression(torch.eye(2), torch.ones(2), value)],
    "share": [lambda value: unknown_score.conformal_level(torch.rand(9), value)],
    "temperature": [lambda value: ClassificationHead(4, 2).calibrate(value)],
    "lovasz_weight": [lambda value: point_loss(torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long), value)],
    "right": [lambda value: statistics.wilson_interval(value, 10)],
    "votes": [lambda value: voting.vote_logits(None, None, value)],
    "num_points": [
        lambda value: PointCloudProcessor(num_points=value),
        lambda value: PointCloudProcessor()(CLOUD[0], num_points=value),
    ],
    "block_size": [lambda value: PointCloudProcessor(block_size=value)],
    "clip": [lambda value: transforms.Jitter(clip=value)],
    "max_ratio": [lambda value: transforms.RandomDropout(max_ratio=value)],
    "p": [lambda value: transforms.RandomFlip(p=value)],
    "unlike": [lambda value: learning(unlike=value)],
    "strength": [lambda value: learning(strength=value)],
    "copies": [lambda value: learning(copies=value)],
    "max_train_samples": [lambda value: learning(max_train_samples=value)],
    "head_widths": [lambda value: ActConfig(head_widths=(value,))],
    "segmentation_layers": [lambda value: ActForSemanticSegmentation(small(segmentation_layers=[value]))],
    "output_layers": [lambda value: tiny_act(hf_any3d.ActModel)(CLOUD.repeat(1, 20, 1), output_layers=[value])],
}


def small(**settings):
    return ActConfig(
        num_groups=8, group_size=8, hidden_size=24, num_attention_heads=4, num_hidden_layers=2, **settings
    )


def learning(**settings):
    return FewScans.from_settings({"dataset_name": "shapes", **settings})


@pytest.mark.parametrize("value", [-5, nan])
@pytest.mark.parametrize("name", CALLS)
def test_a_negative_number_is_refused_by_its_name(name, value):
    for call in CALLS[name]:
        with raises((ValueError, TypeError), naming=name):
            call(value)


@pytest.mark.parametrize("name", ["thresholds", "limit", "share", "p", "max_ratio", "right"])
def test_a_share_in_percent_is_refused_by_its_name(name):
    for call in CALLS[name]:
        with raises(ValueError, naming=name):
            call(25)


@pytest.mark.parametrize("name", ["grid_size", "edge", "eps", "patch_size", "temperature", "num_points", "strength"])
def test_what_may_not_be_0_is_refused_by_its_name(name):
    for call in CALLS[name]:
        with raises(ValueError, naming=name):
            call(0)


def test_scores_of_a_diverged_model_are_refused_in_every_evaluation():
    scores = np.full((6, 3), nan)
    labels = np.array([0, 0, 0, 0, 1, 1])
    processor, points = PointCloudProcessor(), torch.zeros(1, 2, 4)
    for evaluate in (
        lambda: classification.compute_classification_metrics(EvalPrediction(scores, labels)),
        lambda: zero_shot.compute_zero_shot_metrics([1])(EvalPrediction(scores, labels)),
        lambda: segmentation.LabelPoints()(torch.full((1, 4, 3), nan), None),
        lambda: reconstruction.ComputeReconstructionMetrics()(EvalPrediction((scores, labels), labels)),
        lambda: point_ops.reconstruction_scores(CLOUD * nan, CLOUD),
        lambda: processor.post_process_object_detection(
            {"logits": torch.full((1, 2, 3), nan), "pred_boxes": points.new_zeros(1, 2, 7)}
        ),
        lambda: processor.post_process_object_detection(
            {"logits": torch.zeros(1, 2, 3), "pred_boxes": points.new_full((1, 2, 7), nan)}
        ),
    ):
        with raises(ValueError, naming="NaN"):
            evaluate()
    with raises(ValueError, naming="unseen"):
        zero_shot.zero_shot_scores(np.zeros((6, 3)), labels, [-1])


def test_lists_of_other_lengths_are_refused_by_their_name():
    case = case_of(hf_any3d.Detr3DForPointCloudObjectDetection)
    batch = case.labeled(2)
    for name, call in {
        "references": lambda: detection.score_detections([FOUND], []),
        "predictions": lambda: segmentation.part_ious([], [np.zeros(3)], [0], [[0]]),
        "categories": lambda: segmentation.part_ious([np.zeros(3)], [np.zeros(3)], [], [[0]]),
        "truths": lambda: layouts.score_layouts([], [None]),
        "labels": lambda: case.still()(**batch | {"labels": batch["labels"][:1]}),
    }.items():
        with raises(ValueError, naming=name):
            call()


def test_a_deviation_of_0_of_the_unknown_score_is_refused():
    config = SimpleNamespace(unknown=unknown_score.UnknownSettings(distance=[0.3, 0.0]))
    with raises(ValueError, naming="distance"):
        unknown_score.score_of_terms({"distance": torch.zeros(2)}, config)


def test_texts_for_numbers_and_booleans_are_refused_by_their_name(tmp_path):
    for name, value in {"views": "no", "one_sided": "false", "strength": "1", "folds": "5", "features": "xyz"}.items():
        with raises(ValueError, naming=name):
            learning(**{name: value})
    for settings in ({"views": "yes"}, {"allow_doubts": "no"}, {"copies": "4"}):
        with raises(ValueError, naming=next(iter(settings))):
            FewScans(FewScansArguments(**settings), FewScansDataArguments())
    assert learning(views=True, folds=5).arguments.folds == 5


def test_negative_numbers_of_training_are_refused_by_their_name():
    from hf_any3d.training.requests import build_arguments

    for kind, name in ((ModelArguments, "num_layers"), (DataArguments, "max_eval_samples")):
        with raises(ValueError, naming=name):
            build_arguments((kind,), {name: -1})


def test_labels_that_are_not_numbered_from_0_are_refused():
    with raises(ValueError, naming="id2label"):
        ActForPointCloudClassification(small(id2label={1: "chair", 2: "lamp"}))


def test_labels_in_a_set_have_no_order():
    """Each process has another one, so that rows of features would belong to other labels."""
    from hf_any3d.tasks.zero_shot_classification.pipeline import as_labels

    assert as_labels(["chair", "lamp"]) == as_labels({"chair": 1, "lamp": 2}) == ("chair", "lamp")
    for labels in ({"chair", "lamp"}, frozenset({"chair", "lamp"})):
        with raises(ValueError, naming="candidate_labels"):
            as_labels(labels)


@pytest.mark.usefixtures("libraries_as_they_were")
def test_a_file_name_that_is_no_utf_8_is_shown_escaped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = b"ch\xffair.ply"
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / name.decode("utf-8", "surrogateescape")).write_bytes(
        hf_any3d.example_file("chair.ply").read_bytes()
    )
    for words in (["predict", "scans"], ["show", "scans"]):
        done = run(*words, "--output", "page.html")
        assert done.code == 0, done.err
        assert "udcff" in (tmp_path / "page.html").read_text(encoding="utf-8")
        (tmp_path / "page.html").unlink()
