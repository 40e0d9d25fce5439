"""Segmentation scores as plain numpy functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import datasets
import evaluate
import numpy as np
import torch
from torch.utils.data import Subset
from transformers import EvalPrediction, Trainer

from hf_any3d.data.blocks import merge_blocks
from hf_any3d.evaluation.classification import confusion_matrix, overall_accuracy
from hf_any3d.modeling.layers.tasks import part_mask

IGNORED = -100
"""Label of points that do not count."""


def counted(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs whose reference counts, of arrays of any equal shape, as two flat arrays."""
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.shape != references.shape:
        raise ValueError(f"predictions have shape {predictions.shape}, references {references.shape}; expected equal")
    kept = references != IGNORED
    return predictions[kept], references[kept]


def class_ious(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class from a confusion matrix (num_classes, num_classes).

    Returns:
        (num_classes,); NaN for a class that is neither true nor predicted anywhere.
    """
    right = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - right
    return np.divide(right, union, out=np.full(len(matrix), np.nan), where=union > 0)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean over classes of intersection over union; classes that never occur are left out."""
    return float(np.nanmean(class_ious(matrix)))


def shape_iou(predictions: np.ndarray, references: np.ndarray, parts: Sequence[int]) -> float:
    """Mean over the parts of a category of intersection over union on one object.

    A part that the object neither has nor is said to have counts as 1, as ShapeNetPart is evaluated.

    Args:
        predictions: (points,) part numbers.
        references: (points,) part numbers, -100 where a point does not count.
        parts: part numbers of the object's category.
    """
    predictions, references = counted(predictions, references)
    ious = []
    for part in parts:
        said, true = predictions == part, references == part
        union = np.logical_or(said, true).sum()
        ious.append(np.logical_and(said, true).sum() / union if union else 1.0)
    return float(np.mean(ious))


def part_ious(
    predictions: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    categories: Sequence[int],
    category_parts: Sequence[Sequence[int]],
) -> dict[int, list[float]]:
    """`shape_iou` of every object, by category.

    Args:
        predictions: part numbers of each object's points.
        references: true part numbers of each object's points.
        categories: category number of each object.
        category_parts: for each category its part numbers.

    Raises:
        ValueError: lists of different or no length, or an unknown category.
    """
    if not len(predictions) == len(references) == len(categories) > 0:
        raise ValueError(
            f"there are {len(predictions)} predictions, {len(references)} references and {len(categories)} "
            "categories; expected equally many, and at least one"
        )
    by_category: dict[int, list[float]] = {}
    for said, true, category in zip(predictions, references, categories, strict=True):
        category = int(category)
        if not 0 <= category < len(category_parts):
            raise ValueError(f"categories has {category}; expected 0 to {len(category_parts) - 1}")
        by_category.setdefault(category, []).append(shape_iou(said, true, category_parts[category]))
    return by_category


def instance_miou(by_category: dict[int, list[float]]) -> float:
    """Mean over objects of what `part_ious` gave."""
    return float(np.mean([iou for ious in by_category.values() for iou in ious]))


def category_miou(by_category: dict[int, list[float]]) -> float:
    """Mean over categories of the mean over their objects; every category weighs the same."""
    return float(np.mean([np.mean(ious) for ious in by_category.values()]))


def point_confusion(predictions: np.ndarray, references: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Confusion matrix over all points that count; see `confusion_matrix`."""
    return confusion_matrix(*counted(predictions, references), num_classes)


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
        matrix = point_confusion(_joined(predictions), _joined(references), num_classes)
        return {
            "mean_iou": mean_iou(matrix),
            "class_ious": class_ious(matrix),
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
        by_category = part_ious(predictions, references, categories, category_parts)
        return {
            "instance_miou": instance_miou(by_category),
            "category_miou": category_miou(by_category),
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
    matrix = point_confusion(eval_prediction.predictions, eval_prediction.label_ids)
    return {"mean_iou": mean_iou(matrix), "accuracy": overall_accuracy(matrix)}


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
        by_category = part_ious(eval_prediction.predictions, labels, categories, self.category_parts)
        return {
            "instance_miou": instance_miou(by_category),
            "category_miou": category_miou(by_category),
            "accuracy": overall_accuracy(point_confusion(eval_prediction.predictions, labels)),
        }


def _joined(clouds: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.asarray(cloud) for cloud in clouds]) if len(clouds) else np.zeros(0, np.int64)


# Logits of about so many blocks are held at a time.
_HELD = 64


class Blocks(Protocol):
    """Rows that are pieces of labelled clouds: the number of the cloud and of its points for each, and the clouds."""

    clouds: Sequence[int]
    index: Sequence[np.ndarray]
    dataset: Any

    def __getitem__(self, number: int) -> Any:
        """One piece as the model takes it."""


def judge_segmentation(
    trainer: Trainer,
    splits: Mapping[str, Blocks],
    names: Sequence[str],
    category_parts: Sequence[Sequence[int]] | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Judge the trainer's model on splits, and print what comes out.

    Args:
        trainer: A trainer of a segmentation model.
        splits: Rows of each split to judge on.
        names: Names of the classes or parts.
        category_parts: For parts, the part numbers of each category; None for semantic classes.

    Returns:
        For each split, `mean_iou` or `instance_miou` and `category_miou`, `accuracy` of points, and `loss`; and for
        each split, the intersection over union of each class or part that occurs in it.
    """
    metrics, by_class = {}, {}
    for split, rows in splits.items():
        losses, predictions, references, categories = [], [], [], []
        for cloud, logits, loss in _clouds(trainer, rows):
            row = rows.dataset[cloud]
            category = torch.tensor([int(row["label"])]) if category_parts is not None else None
            labels = LabelPoints(category_parts)(torch.from_numpy(logits)[None], (None, category))[0].numpy()
            predictions.append(labels)
            references.append(np.asarray(row["labels"]))
            categories.append(None if category is None else int(category))
            losses.append(loss)
        matrix = point_confusion(np.concatenate(predictions), np.concatenate(references), len(names))
        found = {"accuracy": overall_accuracy(matrix), "loss": float(np.mean(losses))}
        if category_parts is None:
            found = {"mean_iou": mean_iou(matrix), **found}
        else:
            ious = part_ious(predictions, references, categories, category_parts)
            found = {
                "instance_miou": instance_miou(ious),
                "category_miou": category_miou(ious),
                **found,
            }
        trainer.log_metrics(split, {f"{split}_{key}": value for key, value in found.items()})
        metrics[split] = found
        shares = dict(zip(names, class_ious(matrix), strict=True))
        by_class[split] = {name: float(share) for name, share in shares.items() if not np.isnan(share)}
    return metrics, by_class


def _clouds(trainer: Trainer, rows: Blocks) -> Iterator[tuple[int, np.ndarray, float]]:
    """Every cloud's number, its merged logits `(points, labels)`, and the loss of the blocks that it came with."""
    compute, to_labels = trainer.compute_metrics, trainer.preprocess_logits_for_metrics
    trainer.compute_metrics, trainer.preprocess_logits_for_metrics = None, None
    try:
        for members in _groups(rows.clouds):
            output = trainer.predict(Subset(rows, members))
            clouds = np.array([rows.clouds[number] for number in members])
            index = np.stack([rows.index[number] for number in members])
            for cloud in np.unique(clouds):
                own = clouds == cloud
                count = len(rows.dataset[int(cloud)]["labels"])
                merged = merge_blocks(index[own], output.predictions[own], count)
                yield int(cloud), merged, output.metrics["test_loss"]
    finally:
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = compute, to_labels


def _groups(clouds: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the rows, in groups of whole clouds."""
    group: list[int] = []
    for number, cloud in enumerate(clouds):
        if len(group) >= _HELD and cloud != clouds[number - 1]:
            yield group
            group = []
        group.append(number)
    yield group
