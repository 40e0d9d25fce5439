"""Accuracy of classifiers: as functions, as metrics of `evaluate`, for Trainer, and final scores, also by voting."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import datasets
import evaluate
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import EvalPrediction, Trainer

from hf_any3d.data.options import at_least
from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.layers.unknown_score import is_none_of_these
from hf_any3d.registry import NONE_OF_THESE

Judgment = tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]
"""For each split its metrics, and for each split a score of each class."""
_KEPT = ("accuracy", "mean_class_accuracy", "loss", "none_of_these")
_INPUTS = """
Args:
    predictions: predicted classes, integers from 0.
    references: true classes, integers from 0.
"""


def confusion_matrix(predictions: np.ndarray, references: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Count how often each class was predicted as each other.

    Args:
        predictions: (samples,) predicted classes, integers from 0.
        references: (samples,) true classes.
        num_classes: Size of the matrix; None takes the largest class plus one.

    Returns:
        (num_classes, num_classes) int64; row = true class, column = predicted class.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    kinds = {values.dtype.kind for values in (predictions, references) if values.size}
    if predictions.ndim != 1 or predictions.shape != references.shape or not kinds <= {"i", "u"}:
        raise ValueError(
            f"predictions are {predictions.dtype} {predictions.shape}, references {references.dtype} "
            f"{references.shape}; expected one integer a sample"
        )
    predictions, references = predictions.astype(np.int64), references.astype(np.int64)
    largest = int(max(predictions.max(), references.max()))
    num_classes = largest + 1 if num_classes is None else num_classes
    for name, values in (("predictions", predictions), ("references", references)):
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"{name} are {values.min()} to {values.max()}; expected 0 to {num_classes - 1}")
    # Each pair of classes as one number.
    counts = np.bincount(references * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def refuse_nan(scores: Any) -> None:
    """Refuse an array or tensor of scores with NaN, which `argmax` would take for the largest."""
    if (scores != scores).any():
        raise ValueError("scores have NaN; the model has diverged or its input was not finite")


def overall_accuracy(matrix: np.ndarray) -> float:
    """Return the share of correct samples in a confusion matrix `(num_classes, num_classes)`."""
    return float(np.trace(matrix) / matrix.sum())


def class_accuracies(matrix: np.ndarray) -> np.ndarray:
    """Return the share of correct samples of each class, (num_classes,); NaN for a class without references."""
    totals = matrix.sum(axis=1)
    # NaN where there is nothing to divide by, without numpy's warning.
    return np.divide(np.diag(matrix), totals, out=np.full(len(matrix), np.nan), where=totals > 0)


def mean_class_accuracy(matrix: np.ndarray) -> float:
    """Return the mean of the classes' accuracies, whatever their sizes, without classes that have no references."""
    return float(np.nanmean(class_accuracies(matrix)))


def wilson_interval(right: int, total: int, deviations: float = 1.96) -> tuple[float, float]:
    """Return the interval of the share that `right` of `total` samples stand for, 95 % with 1.96 deviations.

    Unlike the share plus and minus its standard error, it holds for few samples and for shares of 0 and 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    check_numbers(0, total, right=right)
    check_numbers(0, deviations=deviations)
    share, spread = right / total, deviations**2 / total
    center = (share + spread / 2) / (1 + spread)
    half = deviations / (1 + spread) * float(np.sqrt(share * (1 - share) / total + spread / (4 * total)))
    return max(0.0, center - half), min(1.0, center + half)


def by_name(names: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """Return the scores (classes,) that are not NaN by the names of their classes."""
    return {name: float(score) for name, score in zip(names, scores, strict=True) if not np.isnan(score)}


def logits_with_unknown(outputs: tuple[torch.Tensor, torch.Tensor], _labels: Any) -> torch.Tensor:
    """Append the unknown scores `(samples,)` to the logits; a `preprocess_logits_for_metrics` for Trainer."""
    logits, unknown = outputs
    return torch.cat([logits.float(), unknown.float()[:, None]], dim=1)  # (samples, num_classes + 1)


def predicted_classes(predictions: np.ndarray, config: Any = None) -> np.ndarray:
    """Return the predicted class of each sample; `num_classes` for what is of none of them."""
    # Models without an unknown score, and predictions without its column, have an answer for each sample.
    if config is None or getattr(config, "unknown_share", None) is None or predictions.shape[1] == config.num_labels:
        return predictions.argmax(axis=1)
    refused = is_none_of_these(predictions[:, -1], config)
    return np.where(refused, config.num_labels, predictions[:, :-1].argmax(axis=1))


def compute_classification_metrics(eval_prediction: EvalPrediction, config: Any = None) -> dict[str, float]:
    """Compute metrics of logits by the kind of the labels; a `compute_metrics` for Trainer.

    Args:
        eval_prediction: predictions (samples, num_labels), or a tuple that begins with them, and label_ids: class
            numbers (samples,), or floats, zeros and ones (samples, num_labels) for several classes a sample, or the
            numbers of a regression, (samples, num_labels) or (samples,).
        config: Config of a classifier whose predictions are those of `logits_with_unknown`.

    Returns:
        Of class numbers `accuracy` and `mean_class_accuracy`, both in [0, 1]; with a config also `none_of_these`, how
        many clouds were called none of the classes, which is never right here. Of several classes, which apply where
        the logit is above 0, `exact_match`, `micro_f1` and `macro_f1`, in [0, 1] too; of a regression `mse` and `mae`.
    """
    logits = eval_prediction.predictions
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    refuse_nan(logits)
    labels = np.asarray(eval_prediction.label_ids)
    if labels.dtype.kind == "f":
        return _metrics_of_numbers(logits, labels)
    answers = predicted_classes(logits, config)
    matrix = confusion_matrix(answers, labels, logits.shape[1])
    metrics = {"accuracy": overall_accuracy(matrix), "mean_class_accuracy": mean_class_accuracy(matrix)}
    if config is not None and getattr(config, "unknown_share", None) is not None:
        metrics["none_of_these"] = float((answers == config.num_labels).sum())
    return metrics


def _metrics_of_numbers(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    if labels.size != logits.size or len(labels) != len(logits):
        raise ValueError(f"labels have shape {labels.shape}; expected {logits.shape}, as the logits")
    labels = labels.reshape(logits.shape)
    # One number a sample, or other numbers than zeros and ones, are a regression.
    if logits.shape[1] == 1 or not np.isin(labels, (0, 1)).all():
        errors = logits.astype(np.float64) - labels
        return {"mse": float((errors**2).mean()), "mae": float(np.abs(errors).mean())}
    predicted, true = logits > 0, labels == 1
    right, wrong = (predicted & true).sum(axis=0), (predicted != true).sum(axis=0)  # (labels,)
    # Of a label that neither occurs nor is predicted nothing is wrong.
    f1 = np.divide(2 * right, 2 * right + wrong, out=np.ones(len(right)), where=right + wrong > 0)
    micro = 2 * right.sum() / max(2 * right.sum() + wrong.sum(), 1)
    exact = (predicted == true).all(axis=1).mean()
    return {"exact_match": float(exact), "micro_f1": float(micro), "macro_f1": float(f1.mean())}


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


def evaluate_splits(trainer: Trainer, splits: Mapping[str, Dataset], classes: Sequence[str]) -> Judgment:
    """Evaluate the trainer's model on splits and print the metrics.

    Returns:
        For each split, accuracy, mean class accuracy and loss, and how many clouds are of none of the classes if the
        model says so; and for each split, the accuracy of each class that occurs in it.
    """
    metrics, by_class = {}, {}
    for split, rows in splits.items():
        output: Any = trainer.predict(rows, metric_key_prefix=split)
        if output.label_ids is None:
            continue
        trainer.log_metrics(split, output.metrics)
        kept = {key: output.metrics.get(f"{split}_{key}") for key in _KEPT}
        metrics[split] = {key: float(value) for key, value in kept.items() if value is not None}
        matrix, names = _confusion(output.predictions, output.label_ids, classes, trainer)
        record_confusion(trainer, split, matrix, names)
        by_class[split] = by_name(names, class_accuracies(matrix))
    return metrics, by_class


def record_confusion(trainer: Trainer, split: str, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Keep the confusion matrix (classes, classes) of a split with the trainer, for the page of the run's results."""
    vars(trainer).setdefault("confusions", {})[split] = (matrix, list(classes))


def _confusion(
    predictions: np.ndarray, labels: np.ndarray, classes: Sequence[str], trainer: Trainer
) -> tuple[np.ndarray, list[str]]:
    """Return the confusion matrix, and the names of its classes, the last of which may be none of them."""
    answers = predicted_classes(predictions, getattr(trainer.model, "config", None))
    # Columns for none of the classes only where an answer was that, so that tables of other models have no empty one.
    names = [*classes, NONE_OF_THESE] if (answers == len(classes)).any() else list(classes)
    return confusion_matrix(answers, labels, len(names)), names


class AugmentedRows(Protocol):
    """Rows that differ from epoch to epoch."""

    epoch: Any  # a number, or a descriptor that shares it with loader workers


def vote_logits(trainer: Trainer, rows: AugmentedRows, votes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Average logits over augmented copies of each cloud.

    Vote `i` takes the rows of epoch `i`, so that votes depend on the rows' seed alone.

    Returns:
        Logits (rows, classes) float64, and labels (rows,) or None.
    """
    at_least(1, votes=votes)
    total: Any = 0
    labels, before = None, rows.epoch
    quiet = trainer.args.disable_tqdm or not trainer.is_world_process_zero()
    # Each vote sets the epoch of the rows, which are augmented differently in every epoch.
    for rows.epoch in tqdm(range(votes), desc="votes", unit="vote", disable=quiet):
        output: Any = trainer.predict(rows, metric_key_prefix="vote")  # pyright: ignore[reportArgumentType] a protocol
        # In double precision, where the rounding of a sum of few numbers does not matter.
        total, labels = total + output.predictions.astype(np.float64), output.label_ids
    rows.epoch = before
    return total / votes, labels


def evaluate_by_voting(
    trainer: Trainer, splits: Mapping[str, AugmentedRows], classes: Sequence[str], votes: int
) -> Judgment:
    """Evaluate the trainer's model on splits by voting and print the metrics.

    Results are named `{split}_voting`, so that they are not mixed with those without voting.

    Returns:
        As `evaluate_splits`; the loss is that of the mean logits.

    Source: Any2Point's programs contain it but do not use it; Point-BERT, Point-MAE and ACT report it in addition to
    plain figures (10 votes).
    """
    metrics, by_class = {}, {}
    for split, rows in splits.items():
        logits, labels = vote_logits(trainer, rows, votes)
        if labels is None:
            continue
        name = f"{split}_voting"
        prediction = EvalPrediction(logits, labels)
        scores = compute_classification_metrics(prediction, getattr(trainer.model, "config", None))
        # Of the mean logits, as the accuracy is.
        mean = torch.from_numpy(logits[:, : len(classes)])
        metrics[name] = {**scores, "loss": float(torch.nn.functional.cross_entropy(mean, torch.from_numpy(labels)))}
        matrix, names = _confusion(logits, labels, classes, trainer)
        by_class[name] = by_name(names, class_accuracies(matrix))
        trainer.log_metrics(name, {f"{name}_{key}": value for key, value in metrics[name].items()})
    return metrics, by_class
