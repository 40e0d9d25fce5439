"""Accuracy of classifiers: for Trainer, and final scores."""

from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer

from hf_any3d.evaluation.confusion import (
    class_accuracies,
    confusion_matrix,
    mean_class_accuracy,
    overall_accuracy,
    record_confusion,
)
from hf_any3d.evaluation.eval_batches import whole
from hf_any3d.evaluation.scan_scores import ScanScores, probabilities, record_scans
from hf_any3d.evaluation.unknown import predicted_classes
from hf_any3d.extensions import EXTENSIONS
from hf_any3d.modeling.layers.unknown_score import unknown_settings
from hf_any3d.registry import NONE_OF_THESE

Judgment = tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]
"""For each split its metrics, and for each split a score of each class."""
_KEPT = ("accuracy", "mean_class_accuracy", "loss", "none_of_these")


def refuse_nan(scores: Any) -> None:
    """Refuse an array or tensor of scores with NaN, which `argmax` would take for the largest."""
    if (scores != scores).any():
        raise ValueError("scores have NaN; the model has diverged or its input was not finite")


def by_name(names: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """Return the scores (classes,) that are not NaN by the names of their classes."""
    return {name: float(score) for name, score in zip(names, scores, strict=True) if not np.isnan(score)}


def compute_classification_metrics(eval_prediction: EvalPrediction, config: Any = None) -> dict[str, float]:
    """Compute metrics of logits by the kind of the labels; a `compute_metrics` for Trainer.

    Args:
        eval_prediction: predictions (samples, num_labels), or a tuple that begins with them, and label_ids: class
            numbers (samples,), or floats, zeros and ones (samples, num_labels) for several classes a sample, or the
            numbers of a regression, (samples, num_labels) or (samples,). Either may be a list of rows, or of batches
            that `eval_do_concat_batches=False` keeps apart.
        config: Config of a classifier whose predictions are those of `logits_with_unknown`.

    Returns:
        Of class numbers `accuracy` and `mean_class_accuracy`, both in [0, 1]; with a config also `none_of_these`, how
        many clouds were called none of the classes, which is never right here. Of several classes, which apply where
        the logit is above 0, `exact_match`, `micro_f1` and `macro_f1`, in [0, 1] too; of a regression `mse` and `mae`.

    Raises:
        ValueError: Predictions have NaN, or labels do not fit them.
    """
    logits, labels = whole(eval_prediction)
    logits = logits[0] if isinstance(logits, tuple) else logits
    refuse_nan(logits)
    # Class numbers are whole; floats stand for several classes a sample, or for a regression.
    if labels.dtype.kind == "f":
        return _metrics_of_numbers(logits, labels)
    answers = predicted_classes(logits, config)
    matrix = confusion_matrix(answers, labels, logits.shape[1])
    metrics = {"accuracy": overall_accuracy(matrix), "mean_class_accuracy": mean_class_accuracy(matrix)}
    if config is not None and unknown_settings(config).share is not None:
        # The number of none of the classes follows theirs.
        metrics["none_of_these"] = float((answers == config.num_labels).sum())
        logits = logits[:, : config.num_labels]
    return metrics | metrics_of_extensions(logits, labels)


def metrics_of_extensions(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the further metrics of packages beside this one.

    Args:
        logits: (samples, labels).
        labels: Class numbers (samples,).

    Raises:
        ValueError: Two metrics have the same name.
    """
    metrics: dict[str, float] = {}
    for extension in EXTENSIONS.values():
        for function in extension.metrics:
            further = resolve_name(function)(logits, labels)
            taken = sorted(further.keys() & {*_KEPT, *metrics})
            if taken:
                raise ValueError(f"{function} returns {taken[0]!r}, which is there already; give it another name")
            metrics |= further
    return metrics


def _metrics_of_numbers(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    if labels.size != logits.size or len(labels) != len(logits):
        raise ValueError(f"labels have shape {labels.shape}; expected {logits.shape}, as the logits")
    labels = labels.reshape(logits.shape)
    # One number a sample, or other numbers than zeros and ones, are a regression.
    if logits.shape[1] == 1 or not np.isin(labels, (0, 1)).all():
        errors = logits.astype(np.float64) - labels
        return {"mse": float((errors**2).mean()), "mae": float(np.abs(errors).mean())}
    # A logit above 0 is a probability above one half.
    predicted = logits > 0
    true = labels == 1
    right, wrong = (predicted & true).sum(axis=0), (predicted != true).sum(axis=0)  # (labels,)
    # Of a label that neither occurs nor is predicted nothing is wrong.
    f1 = np.divide(2 * right, 2 * right + wrong, out=np.ones(len(right)), where=right + wrong > 0)
    # Without any label, true or predicted, there is nothing to divide by.
    micro = 2 * right.sum() / max(2 * right.sum() + wrong.sum(), 1)
    exact = (predicted == true).all(axis=1).mean()
    return {"exact_match": float(exact), "micro_f1": float(micro), "macro_f1": float(f1.mean())}


def evaluate_splits(trainer: Trainer, splits: Mapping[str, Dataset], classes: Sequence[str]) -> Judgment:
    """Evaluate the trainer's model on splits and print the metrics.

    Returns:
        For each split, accuracy, mean class accuracy and loss, and how many clouds are of none of the classes if the
        model says so; and for each split, the accuracy of each class that occurs in it.
    """
    metrics = {}
    by_class = {}
    for split, rows in splits.items():
        output: Any = trainer.predict(rows, metric_key_prefix=split)
        logits, labels = whole(output)
        # A split without labels cannot be judged.
        if labels is None:
            continue
        trainer.log_metrics(split, output.metrics)
        # Without the times and speeds that Trainer adds
        kept = {key: output.metrics.get(f"{split}_{key}") for key in _KEPT}
        metrics[split] = {key: float(value) for key, value in kept.items() if value is not None}
        metrics[split] |= metrics_of_extensions(logits[:, : len(classes)], labels)
        matrix, names = confusion_of(logits, labels, classes, trainer)
        record_confusion(trainer, split, matrix, names)
        answers = predicted_classes(logits, getattr(trainer.model, "config", None))
        # Without the column of the unknown score
        scores = probabilities(logits[:, : len(classes)]).max(axis=1)
        record_scans(trainer, split, ScanScores.of_classes(answers, labels, scores, names))
        by_class[split] = by_name(names, class_accuracies(matrix))
    return metrics, by_class


def confusion_of(
    predictions: np.ndarray, labels: np.ndarray, classes: Sequence[str], trainer: Trainer
) -> tuple[np.ndarray, list[str]]:
    """Return the confusion matrix, and the names of its classes, the last of which may be none of them."""
    answers = predicted_classes(predictions, getattr(trainer.model, "config", None))
    # Columns for none of the classes only where an answer was that, so that tables of other models have no empty one.
    names = [*classes, NONE_OF_THESE] if (answers == len(classes)).any() else list(classes)
    return confusion_matrix(answers, labels, len(names)), names
