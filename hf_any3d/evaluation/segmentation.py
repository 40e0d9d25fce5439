"""Intersection over union: as functions, for Trainer, and a model's final scores."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import EvalPrediction, Trainer

from hf_any3d.data.blocks import merge_blocks
from hf_any3d.evaluation.classification import Judgment, by_name, refuse_nan
from hf_any3d.evaluation.confusion import confusion_matrix, overall_accuracy, record_confusion
from hf_any3d.evaluation.detection import check_lengths
from hf_any3d.evaluation.eval_batches import whole
from hf_any3d.evaluation.labels import class_ious, mean_iou
from hf_any3d.evaluation.scan_scores import ScanScores, record_scans
from hf_any3d.modeling.layers.tasks import part_mask

IGNORED = -100
"""Label of points that do not count."""
# Blocks whose logits are in memory at a time, rounded up to complete clouds.
_BLOCKS_PER_STEP = 64
_MOST_SHOWN = 4


def counted(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs whose reference is a class, not negative, as two flat arrays from arrays of any equal shape."""
    predictions = np.asarray(predictions)
    references = np.asarray(references)
    if predictions.shape != references.shape:
        raise ValueError(f"predictions have shape {predictions.shape}, references {references.shape}; expected equal")
    kept = references >= 0
    return predictions[kept], references[kept]


def counted_labels(labels: Any) -> np.ndarray:
    """Return labels of points (points,) int64, with -100 for those that are null or negative, which have no class."""
    # `datasets` reads null as NaN in arrays, and as None in lists.
    numbers = np.asarray(labels, dtype=np.float64 if np.asarray(labels).dtype.kind in "fO" else np.int64)
    return np.where(numbers >= 0, numbers, IGNORED).astype(np.int64)


def shape_iou(predictions: np.ndarray, references: np.ndarray, parts: Sequence[int]) -> float:
    """Compute the mean intersection over union of a category's parts on one object.

    A part that is neither true nor predicted counts as 1, as in the evaluation of ShapeNetPart.

    Predictions and references are part numbers (points,), -100 for points that do not count.
    """
    predictions, references = counted(predictions, references)
    ious = []
    for part in parts:
        predicted = predictions == part
        true = references == part
        # Points that are the part in truth, in the prediction, or in both
        union = np.logical_or(predicted, true).sum()
        ious.append(np.logical_and(predicted, true).sum() / union if union else 1.0)
    return float(np.mean(ious))


def part_ious(
    predictions: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    categories: Sequence[int],
    category_parts: Sequence[Sequence[int]],
) -> dict[int, list[float]]:
    """Compute `shape_iou` of every object, by category."""
    check_lengths(references=references, predictions=predictions, categories=categories)
    by_category: dict[int, list[float]] = {}
    for predicted, true, category in zip(predictions, references, categories, strict=True):
        category = int(category)
        # A negative number would take parts from the end of the list.
        if not 0 <= category < len(category_parts):
            raise ValueError(f"categories has {category}; expected 0 to {len(category_parts) - 1}")
        by_category.setdefault(category, []).append(shape_iou(predicted, true, category_parts[category]))
    return by_category


def instance_miou(by_category: Mapping[Any, list[float]]) -> float:
    """Return the mean over objects of the result of `part_ious`."""
    return float(np.mean([iou for ious in by_category.values() for iou in ious]))


def category_miou(by_category: Mapping[Any, list[float]]) -> float:
    """Return the mean over categories of the mean over their objects."""
    return float(np.mean([np.mean(ious) for ious in by_category.values()]))


def part_means(by_category: Mapping[Any, list[float]]) -> dict[str, float]:
    """Return `instance_miou` and `category_miou`."""
    return {"instance_miou": instance_miou(by_category), "category_miou": category_miou(by_category)}


def point_confusion(predictions: np.ndarray, references: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Return the confusion matrix of all points that are not ignored; see `confusion_matrix`."""
    return confusion_matrix(*counted(predictions, references), num_classes)


class LabelPoints:
    """`preprocess_logits_for_metrics` of Trainer: turns logits into labels, so that an evaluation keeps no logits.

    Args:
        category_parts: For each category its part numbers, which restrict an object's labels; None without categories.
    """

    def __init__(self, category_parts: Sequence[Sequence[int]] | None = None):
        self.category_parts = category_parts

    def __call__(self, logits: torch.Tensor, labels: Any) -> torch.Tensor:
        """Turn `(batch, points, classes)` into `(batch, points)`; `labels` is `(labels, category)` for parts."""
        refuse_nan(logits)
        if self.category_parts is not None:
            allowed = part_mask(self.category_parts, logits.shape[-1], labels[1])  # (batch, classes)
            # The category of an object is known, so parts of others are no answers.
            logits = logits.masked_fill(~allowed.unsqueeze(1), float("-inf"))
        return logits.argmax(dim=-1)


def compute_semantic_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
    """Compute `mean_iou` and `accuracy` of points, both in [0, 1]; a `compute_metrics` for use with `LabelPoints`."""
    matrix = point_confusion(*whole(eval_prediction))
    return {"mean_iou": mean_iou(matrix), "accuracy": overall_accuracy(matrix)}


class ComputePartMetrics:
    """Computes `instance_miou`, `category_miou` and `accuracy`; a `compute_metrics` for use with `LabelPoints`."""

    def __init__(self, category_parts: Sequence[Sequence[int]]):
        self.category_parts = category_parts

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Return metrics in [0, 1]; the prediction's `label_ids` are `(labels, category)`."""
        predictions, (labels, categories) = whole(eval_prediction)
        by_category = part_ious(predictions, labels, categories, self.category_parts)
        return {**part_means(by_category), "accuracy": overall_accuracy(point_confusion(predictions, labels))}


class Blocks(Protocol):
    """Blocks of labeled clouds: for each the number of its cloud and of its points, and the dataset of clouds."""

    clouds: list[int]
    index: list[np.ndarray]
    dataset: Any


def evaluate_segmentation(
    trainer: Trainer,
    splits: Mapping[str, Blocks],
    names: Sequence[str],
    category_parts: Sequence[Sequence[int]] | None = None,
) -> Judgment:
    """Evaluate the trainer's model on splits and print the metrics.

    Returns:
        For each split, `mean_iou` or `instance_miou` and `category_miou`, `accuracy` of points, and `loss`; and for
        each split, the intersection over union of each class or part that occurs in it.
    """
    metrics = {}
    by_class = {}
    for split, rows in splits.items():
        losses = []
        predictions = []
        references = []
        categories = []
        for cloud, logits, loss in _predict_clouds(trainer, rows):
            # The whole cloud, whose labels are not cut into blocks
            row = rows.dataset[cloud]
            category = torch.tensor([int(row["label"])]) if category_parts is not None else None
            # A batch of one cloud. Of the tuple, only the category is read.
            labels = LabelPoints(category_parts)(torch.from_numpy(logits)[None], (None, category))[0].numpy()
            predictions.append(labels)
            references.append(counted_labels(row["labels"]))
            categories.append(None if category is None else int(category))
            losses.append(loss)
        matrices = []
        for predicted, true in zip(predictions, references, strict=True):
            matrices.append(point_confusion(predicted, true, len(names)))
        # One matrix of all clouds, so that each point counts the same
        matrix = np.sum(matrices, axis=0)
        figures = {"accuracy": overall_accuracy(matrix), "loss": float(np.mean(losses))}
        # Parts are judged object by object, all other classes over all points together.
        if category_parts is None:
            figures = {"mean_iou": mean_iou(matrix), **figures}
            scans = ScanScores.of_points(matrices, names)
        else:
            ious = part_ious(predictions, references, categories, category_parts)
            figures = {**part_means(ious), **figures}
            parts = zip(predictions, references, categories, strict=True)
            of_objects = [shape_iou(predicted, true, category_parts[number]) for predicted, true, number in parts]
            scans = ScanScores.of_values("instance_miou", of_objects)
        record_scans(trainer, split, scans)
        # A page shows the clouds with the most wrong points; those of all splits would fill the memory.
        accuracies = [overall_accuracy(of_cloud) if of_cloud.any() else 1.0 for of_cloud in matrices]
        worst = np.argsort(accuracies, kind="stable")[:_MOST_SHOWN].tolist()
        vars(trainer)["labels_of_points"] = {cloud: (references[cloud], predictions[cloud]) for cloud in worst}
        trainer.log_metrics(split, {f"{split}_{key}": value for key, value in figures.items()})
        metrics[split] = figures
        record_confusion(trainer, split, matrix, names)
        by_class[split] = by_name(names, class_ious(matrix))
    return metrics, by_class


def _predict_clouds(trainer: Trainer, rows: Blocks) -> Iterator[tuple[int, np.ndarray, float]]:
    """Yield each cloud's number, its merged logits `(points, labels)`, and the loss of its group of blocks."""
    compute = trainer.compute_metrics
    to_labels = trainer.preprocess_logits_for_metrics
    # Metrics are those of merged clouds, so Trainer is to return the logits of blocks as they are.
    trainer.compute_metrics = None
    trainer.preprocess_logits_for_metrics = None
    try:
        members: list[int] = []
        for number, cloud in enumerate(rows.clouds):
            members.append(number)
            # The cloud of the next block; empty after the last one
            following = rows.clouds[number + 1 : number + 2]
            # Blocks of a cloud follow each other, and only complete clouds are merged.
            if following and (len(members) < _BLOCKS_PER_STEP or following == [cloud]):
                continue
            output: Any = trainer.predict(Subset(rows, members))  # pyright: ignore[reportArgumentType] a protocol
            predictions, _ = whole(output)
            clouds = np.array([rows.clouds[number] for number in members])
            index = np.stack([rows.index[number] for number in members])
            for cloud in np.unique(clouds):
                # (blocks,), those of this cloud
                of_cloud = clouds == cloud
                count = len(rows.dataset[int(cloud)]["labels"])
                # Blocks overlap, and a point gets the mean of its logits.
                merged = merge_blocks(index[of_cloud], predictions[of_cloud], count)
                yield int(cloud), merged, output.metrics["test_loss"]
            members = []
    finally:
        # Trainer goes on with its own metrics, also after an error.
        trainer.compute_metrics = compute
        trainer.preprocess_logits_for_metrics = to_labels
