"""Metrics of `evaluate`: accuracy of classifiers, and intersection over union of points."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from hf_any3d.evaluation.confusion import confusion_matrix, mean_class_accuracy, overall_accuracy
from hf_any3d.evaluation.labels import class_ious, mean_iou
from hf_any3d.evaluation.segmentation import part_ious, part_means, point_confusion

_INPUTS = """
Args:
    predictions: predicted classes, integers from 0.
    references: true classes, integers from 0.
"""
_OF_POINTS = """
Args:
    predictions: for each cloud, the predicted class of each point, integers from 0.
    references: for each cloud, the true class of each point; -100 for points that do not count.
"""


class _ClassificationMetric(evaluate.Metric):
    """Base of metrics on pairs of integer classes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
            format="numpy",
        )


class OverallAccuracy(_ClassificationMetric):
    """Share of samples whose class is predicted correctly, in [0, 1]: `{"accuracy": float}`."""

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": overall_accuracy(confusion_matrix(predictions, references))}


class MeanClassAccuracy(_ClassificationMetric):
    """Mean of the classes' accuracies, in [0, 1]: `{"mean_class_accuracy": float}`.

    Classes that never occur in the references are left out of the mean.
    """

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"mean_class_accuracy": mean_class_accuracy(confusion_matrix(predictions, references))}


class ConfusionMatrix(_ClassificationMetric):
    """Counts of true classes (rows) by predicted class (columns): `{"confusion_matrix": array}`.

    `compute(num_classes=40)` sets the size; otherwise the largest class does.
    """

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, num_classes: int | None = None
    ) -> dict[str, np.ndarray]:
        return {"confusion_matrix": confusion_matrix(predictions, references, num_classes)}


class _SegmentationMetric(evaluate.Metric):
    """Base of metrics on integer classes of points."""

    _more_inputs: dict[str, datasets.Value] = {}

    def _info(self) -> evaluate.MetricInfo:
        # `evaluate` stores inputs as a dataset, which has clouds of different sizes as lists.
        classes = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description=_OF_POINTS,
            features=datasets.Features({"predictions": classes, "references": classes, **self._more_inputs}),
        )


class MeanIoU(_SegmentationMetric):
    """Intersection over union of semantic classes over the points of all clouds together.

    Returns `{"mean_iou": float, "class_ious": array, "accuracy": float}`; classes that never occur have NaN and are
    left out of the mean. `compute(num_classes=9)` sets their number; otherwise the largest class does.
    """

    def _compute(self, predictions: list, references: list, num_classes: int | None = None) -> dict:
        matrix = point_confusion(_joined(predictions), _joined(references), num_classes)
        return {"mean_iou": mean_iou(matrix), "class_ious": class_ious(matrix), "accuracy": overall_accuracy(matrix)}


class PartIoU(_SegmentationMetric):
    """Intersection over union of parts, object by object, as in the evaluation of ShapeNetPart.

    `compute(categories=…, category_parts=…)` takes each object's category and each category's part numbers; returns
    `{"instance_miou": float, "category_miou": float, "category_ious": {category: mean}}`.
    """

    _more_inputs = {"categories": datasets.Value("int64")}

    def _compute(
        self, predictions: list, references: list, categories: list, category_parts: Sequence[Sequence[int]]
    ) -> dict:
        by_category = part_ious(predictions, references, categories, category_parts)
        return {
            **part_means(by_category),
            "category_ious": {number: float(np.mean(ious)) for number, ious in sorted(by_category.items())},
        }


def _joined(clouds: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.asarray(cloud) for cloud in clouds]) if len(clouds) else np.zeros(0, np.int64)
