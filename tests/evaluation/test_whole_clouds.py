"""Scores of whole clouds: blocks are merged, and parts chosen among those of the category."""

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, List
from torch import nn
from transformers import default_data_collator

from hf_any3d import PointCloudProcessor
from hf_any3d.evaluation.segmentation import (
    compute_semantic_metrics,
    evaluate_segmentation,
    mean_iou,
    part_ious,
    point_confusion,
)
from hf_any3d.modeling.layers.losses import point_loss
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.segmentation_rows import BlockRows
from hf_any3d.training.trainer import PointTrainer

NAMES, PARTS = ["left", "right", "high", "deep"], [[0, 1], [2, 3]]


class Sides(nn.Module):
    """Logits of a point by its place alone."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, points, labels=None, category=None):
        logits = points @ torch.tensor([[-1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        return {"loss": point_loss(logits, labels), "logits": logits}


@pytest.fixture(scope="module")
def clouds() -> Dataset:
    generator = np.random.default_rng(0)
    points = [generator.uniform(-2, 2, (size, 3)).astype(np.float32) for size in (300, 40, 128)]
    labels = [generator.integers(0, 2, len(cloud)) + 2 * (number == 1) for number, cloud in enumerate(points)]
    labels[0][:20] = -100
    features = {"points": Array2D((None, 3), "float32"), "labels": List(ClassLabel(names=NAMES))}
    features["label"] = ClassLabel(names=["a", "b"])
    return Dataset.from_dict({"points": points, "labels": labels, "label": [0, 1, 0]}, features=Features(features))


@pytest.fixture
def trainer(tmp_path) -> PointTrainer:
    settings = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}
    arguments = PointTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, **settings)
    return PointTrainer(
        Sides(), arguments, data_collator=default_data_collator, compute_metrics=compute_semantic_metrics
    )


def blocks(clouds, **settings) -> BlockRows:
    return BlockRows(clouds, PointCloudProcessor(num_points=64, center=False, scale=None, block_size=1.5), **settings)


def answers(clouds, allowed=None):
    """Labels that the model gives each point of the clouds."""
    found = []
    for row in clouds.with_format("numpy"):
        x, y, z = row["points"].T
        scores = np.stack([-x, x, y, z])
        own = range(4) if allowed is None else allowed[int(row["label"])]
        found.append(np.array(own)[scores[list(own)].argmax(axis=0)])
    return found


@pytest.mark.parametrize("votes", [2, 40])  # of blocks that fit into one step, and into several
def test_points_of_whole_clouds_are_counted_once(trainer, clouds, votes, capsys):
    plain = trainer.compute_metrics, trainer.preprocess_logits_for_metrics
    rows = {"test": blocks(clouds, votes=votes)}
    metrics, by_class = evaluate_segmentation(trainer, rows, NAMES)
    matrix = point_confusion(np.concatenate(answers(clouds)), np.concatenate(clouds["labels"]), 4)
    assert metrics["test"]["mean_iou"] == pytest.approx(mean_iou(matrix))
    assert metrics["test"]["accuracy"] == pytest.approx(np.trace(matrix) / (300 - 20 + 40 + 128))
    assert metrics["test"].keys() == {"mean_iou", "accuracy", "loss"} and 0 < metrics["test"]["loss"] < 10
    assert by_class["test"].keys() == set(NAMES)
    np.testing.assert_array_equal(trainer.confusions["test"][0], matrix)
    assert (trainer.compute_metrics, trainer.preprocess_logits_for_metrics) == plain
    shown = capsys.readouterr().out
    assert "test metrics" in shown and "test_mean_iou" in shown


def test_parts_are_chosen_among_those_of_the_category(trainer, clouds):
    metrics, _ = evaluate_segmentation(trainer, {"test": blocks(clouds, with_category=True)}, NAMES, PARTS)
    expected = part_ious(answers(clouds, PARTS), [np.asarray(one) for one in clouds["labels"]], [0, 1, 0], PARTS)
    found = metrics["test"]
    assert found.keys() == {"instance_miou", "category_miou", "accuracy", "loss"}
    assert found["instance_miou"] == pytest.approx(np.mean([*expected[0], *expected[1]]))
    assert found["category_miou"] == pytest.approx(np.mean([np.mean(ious) for ious in expected.values()]))


def test_metrics_of_a_trainer_are_its_own_again_after_an_error(trainer, clouds):
    trainer.model.forward = lambda **_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluate_segmentation(trainer, {"test": blocks(clouds)}, NAMES)
    assert trainer.compute_metrics is compute_semantic_metrics
