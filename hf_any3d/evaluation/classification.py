"""The final look at a trained model, split by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import datasets
import evaluate
import numpy as np
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer


def confusion_matrix(predictions: np.ndarray, references: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Count how often each class was taken for each other.

    Args:
        predictions: (samples,) predicted classes, integers from 0.
        references: (samples,) true classes.
        num_classes: size of the matrix; None takes the largest class seen plus one.

    Returns:
        (num_classes, num_classes) int64; row = true class, column = predicted class.

    Raises:
        ValueError: arrays of different or no length, of another type, or classes outside the range.
    """
    predictions, references = _classes(predictions, "predictions"), _classes(references, "references")
    if len(predictions) != len(references):
        raise ValueError(f"there are {len(predictions)} predictions for {len(references)} references")
    if len(references) == 0:
        raise ValueError("predictions and references are empty; expected at least one sample")
    largest = int(max(predictions.max(), references.max()))
    num_classes = largest + 1 if num_classes is None else num_classes
    for name, values in (("predictions", predictions), ("references", references)):
        if values.min() < 0 or values.max() >= num_classes:
            found = values.min() if values.min() < 0 else values.max()
            raise ValueError(f"{name} has class {found}; expected 0 to {num_classes - 1}")
    counts = np.bincount(references * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def overall_accuracy(matrix: np.ndarray) -> float:
    """Share of all samples that are right, from a confusion matrix (num_classes, num_classes)."""
    return float(np.trace(matrix) / matrix.sum())


def class_accuracies(matrix: np.ndarray) -> np.ndarray:
    """Share of each true class that is right, (num_classes,); NaN for a class that no reference has."""
    totals = matrix.sum(axis=1)
    right = np.full(len(matrix), np.nan)
    return np.divide(np.diag(matrix), totals, out=right, where=totals > 0)


def mean_class_accuracy(matrix: np.ndarray) -> float:
    """Mean over classes of the share that is right; every class weighs the same, however many samples it has.

    Classes that no reference has are left out of the mean: there is nothing to be right about.
    """
    return float(np.nanmean(class_accuracies(matrix)))


def _classes(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"{name} has shape {values.shape} and type {values.dtype}; expected one integer a sample")
    return values.astype(np.int64)


Judgement = tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]
_KEPT = ("accuracy", "mean_class_accuracy", "loss")


def judge_splits(trainer: Trainer, splits: Mapping[str, Dataset], classes: Sequence[str]) -> Judgement:
    """Judge the trainer's model on splits, and print what comes out.

    Args:
        trainer: Has `compute_classification_metrics` as its `compute_metrics`.
        splits: Rows of each split to judge on; a split without labels is passed over.
        classes: Names of the classes.

    Returns:
        For each split, accuracy, mean class accuracy and loss; and for each split, the accuracy of each class that
        occurs in it.
    """
    metrics, by_class = {}, {}
    for split, rows in splits.items():
        output = trainer.predict(rows, metric_key_prefix=split)
        if output.label_ids is None:
            continue
        trainer.log_metrics(split, output.metrics)
        metrics[split] = {key: float(output.metrics[f"{split}_{key}"]) for key in _KEPT}
        by_class[split] = accuracy_by_class(output.predictions, output.label_ids, classes)
    return metrics, by_class


def accuracy_by_class(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Accuracy of each class that occurs among the labels, from logits (rows, classes)."""
    matrix = confusion_matrix(logits.argmax(axis=1), labels, len(classes))
    shares = dict(zip(classes, class_accuracies(matrix), strict=True))
    return {name: float(share) for name, share in shares.items() if not np.isnan(share)}


_INPUTS = """
Args:
    predictions: predicted classes, integers from 0.
    references: true classes, integers from 0.
"""


class _ClassificationMetric(evaluate.Metric):
    """What the three metrics share: pairs of integer classes in, a confusion matrix inside."""

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
    """Share of all samples whose class is predicted right, in [0, 1]: `{"accuracy": float}`."""

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": overall_accuracy(confusion_matrix(predictions, references))}


class MeanClassAccuracy(_ClassificationMetric):
    """Mean of the classes' own accuracies, in [0, 1]: `{"mean_class_accuracy": float}`.

    Classes that never occur in the references are left out of the mean.
    """

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"mean_class_accuracy": mean_class_accuracy(confusion_matrix(predictions, references))}


class ConfusionMatrix(_ClassificationMetric):
    """Counts of true classes (rows) taken for predicted ones (columns): `{"confusion_matrix": array}`.

    `compute(num_classes=40)` fixes the size; otherwise the largest class seen does.
    """

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, num_classes: int | None = None
    ) -> dict[str, np.ndarray]:
        return {"confusion_matrix": confusion_matrix(predictions, references, num_classes)}


def compute_classification_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
    """Overall and mean class accuracy of logits; a `compute_metrics` for Trainer.

    Args:
        eval_prediction: predictions (samples, num_classes), or a tuple that begins with them, and label_ids
            (samples,).

    Returns:
        `accuracy` and `mean_class_accuracy`, both in [0, 1].

    Raises:
        ValueError: logits of another shape or with NaN, whose largest entry would mean nothing.
    """
    logits = eval_prediction.predictions
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {logits.shape}; expected (samples, num_classes)")
    if np.isnan(logits).any():
        raise ValueError("logits have NaN; the model has diverged or its input was not finite")
    matrix = confusion_matrix(logits.argmax(axis=1), eval_prediction.label_ids, num_classes=logits.shape[1])
    return {"accuracy": overall_accuracy(matrix), "mean_class_accuracy": mean_class_accuracy(matrix)}
