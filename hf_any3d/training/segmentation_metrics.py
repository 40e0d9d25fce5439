"""Segmentation metrics as `evaluate` modules that live in the package, and as functions for Trainer."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction

from hf_any3d.modeling.point_labels import part_mask
from hf_any3d.training import segmentation_scores as scores
from hf_any3d.training.scores import overall_accuracy

_INPUTS = """
Args:
    predictions: for each cloud, the predicted class of each point, integers from 0.
    references: for each cloud, the true class of each point; -100 where a point does not count.
"""


class _SegmentationMetric(evaluate.Metric):
    """What both metrics share: clouds of integer classes in."""

    _more_inputs: dict[str, datasets.Value] = {}

    def _info(self) -> evaluate.MetricInfo:
        classes = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": classes, "references": classes, **self._more_inputs}),
        )


class MeanIoU(_SegmentationMetric):
    """Intersection over union of semantic classes over the points of all clouds together.

    Gives `{"mean_iou": float, "class_ious": array, "accuracy": float}`; classes that never occur have NaN and are left
    out of the mean. `compute(num_classes=9)` fixes their number, otherwise the largest class seen does.
    """

    def _compute(self, predictions: list, references: list, num_classes: int | None = None) -> dict:
        matrix = scores.point_confusion(_joined(predictions), _joined(references), num_classes)
        return {
            "mean_iou": scores.mean_iou(matrix),
            "class_ious": scores.class_ious(matrix),
            "accuracy": overall_accuracy(matrix),
        }


class PartIoU(_SegmentationMetric):
    """Intersection over union of parts, object by object, as ShapeNetPart is evaluated.

    `compute(categories=…, category_parts=…)` takes each object's category and each category's part numbers; gives
    `{"instance_miou": float, "category_miou": float, "category_ious": {category: mean}}`.
    """

    _more_inputs = {"categories": datasets.Value("int64")}

    def _compute(
        self, predictions: list, references: list, categories: list, category_parts: Sequence[Sequence[int]]
    ) -> dict:
        by_category = scores.part_ious(predictions, references, categories, category_parts)
        return {
            "instance_miou": scores.instance_miou(by_category),
            "category_miou": scores.category_miou(by_category),
            "category_ious": {number: float(np.mean(ious)) for number, ious in sorted(by_category.items())},
        }


class LabelPoints:
    """Logits to labels, batch by batch, so that an evaluation need not hold all logits; for Trainer.

    A `preprocess_logits_for_metrics`. With parts, only those of an object's category can be chosen.

    Args:
        category_parts: for each category its part numbers; None where there are no categories.
    """

    def __init__(self, category_parts: Sequence[Sequence[int]] | None = None):
        self.category_parts = category_parts

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Logits `(batch, points, classes)` to `(batch, points)`; `labels` is `(labels, category)` for parts.

        Raises:
            ValueError: logits with NaN, whose largest entry would mean nothing.
        """
        if torch.isnan(logits).any():
            raise ValueError("logits have NaN; the model has diverged or its input was not finite")
        if self.category_parts is not None:
            allowed = part_mask(self.category_parts, logits.shape[-1], labels[1])  # (batch, classes)
            logits = logits.masked_fill(~allowed.unsqueeze(1), float("-inf"))
        return logits.argmax(dim=-1)


def compute_semantic_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
    """`mean_iou` and `accuracy` of labelled points, both in [0, 1]; a `compute_metrics` beside `LabelPoints`."""
    matrix = scores.point_confusion(eval_prediction.predictions, eval_prediction.label_ids)
    return {"mean_iou": scores.mean_iou(matrix), "accuracy": overall_accuracy(matrix)}


class ComputePartMetrics:
    """`instance_miou`, `category_miou` and `accuracy` of labelled points; a `compute_metrics` beside `LabelPoints`.

    Args:
        category_parts: for each category its part numbers.
    """

    def __init__(self, category_parts: Sequence[Sequence[int]]):
        self.category_parts = category_parts

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Metrics in [0, 1]; the prediction's `label_ids` are `(labels, category)`."""
        labels, categories = eval_prediction.label_ids
        by_category = scores.part_ious(eval_prediction.predictions, labels, categories, self.category_parts)
        return {
            "instance_miou": scores.instance_miou(by_category),
            "category_miou": scores.category_miou(by_category),
            "accuracy": overall_accuracy(scores.point_confusion(eval_prediction.predictions, labels)),
        }


def _joined(clouds: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.asarray(cloud) for cloud in clouds]) if len(clouds) else np.zeros(0, np.int64)
