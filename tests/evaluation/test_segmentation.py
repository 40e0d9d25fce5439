"""Segmentation scores against plain loops, and as metrics of evaluate and Trainer."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_any3d.evaluation.metrics import MeanIoU, PartIoU
from hf_any3d.evaluation.segmentation import (
    ComputePartMetrics,
    LabelPoints,
    category_miou,
    class_ious,
    compute_semantic_metrics,
    instance_miou,
    mean_iou,
    part_ious,
    point_confusion,
    shape_iou,
)
from tests.errors import raises

PARTS = [[0, 1], [2, 3, 4]]


@pytest.fixture
def scenes():
    """Six scenes of 40 points in five classes; class 4 is neither true nor predicted."""
    generator = np.random.default_rng(0)
    references = generator.integers(0, 4, (6, 40))
    predictions = np.where(generator.random((6, 40)) < 0.6, references, generator.integers(0, 4, (6, 40)))
    references[1, :7] = -100
    return predictions, references


@pytest.fixture
def objects():
    """Five objects of two categories; one lacks a part, another has no predictions of a part."""
    generator = np.random.default_rng(1)
    categories = np.array([0, 1, 1, 0, 1])
    references = np.stack([generator.choice(PARTS[c], 30) for c in categories])
    predictions = np.stack([generator.choice(PARTS[c], 30) for c in categories])
    references[2], predictions[2] = np.repeat([2, 3], 15), np.repeat([3, 2], [10, 20])
    references[0, :5] = -100
    return predictions, references, categories


def iou_by_loop(predictions, references, number):
    both = either = 0
    for said, true in zip(predictions.ravel().tolist(), references.ravel().tolist(), strict=True):
        if true == -100:
            continue
        both += said == number and true == number
        either += said == number or true == number
    return both / either if either else None


def objects_by_loop(predictions, references, categories):
    by_category = {}
    for said, true, category in zip(predictions, references, categories.tolist(), strict=True):
        ious = [iou_by_loop(said, true, part) for part in PARTS[category]]
        mean = sum(1.0 if iou is None else iou for iou in ious) / len(ious)
        by_category.setdefault(category, []).append(mean)
    every = [iou for ious in by_category.values() for iou in ious]
    means = [sum(ious) / len(ious) for ious in by_category.values()]
    return sum(every) / len(every), sum(means) / len(means)


def test_class_ious_agree_with_a_loop(scenes):
    with np.errstate(all="raise"):
        found = class_ious(point_confusion(*scenes, num_classes=5))
    expected = [iou_by_loop(*scenes, number) for number in range(5)]
    assert expected[4] is None and np.isnan(found[4])
    np.testing.assert_allclose(found[:4], expected[:4])
    assert mean_iou(point_confusion(*scenes, num_classes=5)) == pytest.approx(np.mean(expected[:4]))


def test_part_ious_agree_with_a_loop(objects):
    by_category = part_ious(*objects, PARTS)
    instance, category = objects_by_loop(*objects)
    assert instance_miou(by_category) == pytest.approx(instance)
    assert category_miou(by_category) == pytest.approx(category)
    assert instance != pytest.approx(category, abs=1e-3)


def test_a_part_that_is_neither_true_nor_predicted_counts_as_correct(objects):
    predictions, references, _ = objects
    alone = [iou_by_loop(predictions[2], references[2], part) for part in (2, 3)]
    assert shape_iou(predictions[2], references[2], PARTS[1]) == pytest.approx((sum(alone) + 1) / 3)


def test_points_that_do_not_count_change_nothing(objects):
    predictions, references, _ = objects
    kept = references[0] != -100
    assert shape_iou(predictions[0], references[0], PARTS[0]) == shape_iou(
        predictions[0][kept], references[0][kept], PARTS[0]
    )


def test_metrics_of_evaluate_add_up_batches_of_clouds_of_any_size(scenes, objects, tmp_path):
    metric = MeanIoU(cache_dir=str(tmp_path))
    for said, true in zip(*scenes, strict=True):
        metric.add_batch(predictions=[said[:25], said[25:]], references=[true[:25], true[25:]])
    found = metric.compute(num_classes=5)
    matrix = point_confusion(*scenes, num_classes=5)
    assert found["mean_iou"] == mean_iou(matrix)
    np.testing.assert_array_equal(found["class_ious"], class_ious(matrix))
    right = sum(int((s == t).sum()) for s, t in zip(*scenes, strict=True))
    assert found["accuracy"] == pytest.approx(right / (6 * 40 - 7))

    predictions, references, categories = objects
    metric = PartIoU(cache_dir=str(tmp_path))
    metric.add_batch(predictions=predictions[:2], references=references[:2], categories=categories[:2])
    metric.add_batch(predictions=predictions[2:], references=references[2:], categories=categories[2:])
    found = metric.compute(category_parts=PARTS)
    instance, category = objects_by_loop(*objects)
    assert found["instance_miou"] == pytest.approx(instance) and found["category_miou"] == pytest.approx(category)
    assert np.mean(list(found["category_ious"].values())) == pytest.approx(category)


def test_labels_of_parts_are_chosen_among_those_of_the_category():
    logits = torch.tensor([[[9.0, 1, 2, 3, 4]], [[9.0, 1, 2, 3, 4]]])
    labels = (torch.zeros(2, 1), torch.tensor([0, 1]))
    assert LabelPoints(PARTS)(logits, labels).tolist() == [[0], [4]]
    assert LabelPoints()(logits, labels[0]).tolist() == [[0], [0]]
    with raises(ValueError, naming="scores have NaN"):
        LabelPoints()(logits / 0 * 0, labels[0])


def test_trainer_metrics_are_those_scores(scenes, objects):
    found = compute_semantic_metrics(EvalPrediction(*scenes))
    assert found["mean_iou"] == mean_iou(point_confusion(*scenes))
    predictions, references, categories = objects
    found = ComputePartMetrics(PARTS)(EvalPrediction(predictions, (references, categories)))
    instance, category = objects_by_loop(*objects)
    assert found["instance_miou"] == pytest.approx(instance) and found["category_miou"] == pytest.approx(category)
    kept = references != -100
    assert found["accuracy"] == pytest.approx((predictions == references)[kept].mean())


def test_wrong_arguments_are_refused(objects):
    predictions, references, categories = objects
    with pytest.raises(ValueError, match="categories has 1; expected 0 to 0"):
        part_ious(predictions, references, categories, PARTS[:1])
    with pytest.raises(ValueError, match=r"predictions have shape \(3,\), references \(4,\)"):
        shape_iou(np.zeros(3, int), np.zeros(4, int), PARTS[0])
