"""The confusion matrix, and the accuracies that are read from it."""

from collections.abc import Sequence

import numpy as np
from transformers import Trainer


def confusion_matrix(predictions: np.ndarray, references: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Count how often each class was predicted as each other.

    Args:
        predictions: (samples,) predicted classes, integers from 0.
        references: (samples,) true classes.
        num_classes: Size of the matrix; None takes the largest class plus one.

    Returns:
        (num_classes, num_classes) int64; row = true class, column = predicted class.

    Raises:
        ValueError: Classes are no integers, below 0 or not below `num_classes`, or there are other numbers of them.
    """
    predictions = np.asarray(predictions)
    references = np.asarray(references)
    # An empty list becomes float64, whose type says nothing about its classes.
    kinds = {values.dtype.kind for values in (predictions, references) if values.size}
    if predictions.ndim != 1 or predictions.shape != references.shape or not kinds <= {"i", "u"}:
        raise ValueError(
            f"predictions are {predictions.dtype} {predictions.shape}, references {references.dtype} "
            f"{references.shape}; expected one integer a sample"
        )
    # Small integer types would overflow where a pair of classes becomes one number.
    predictions = predictions.astype(np.int64)
    references = references.astype(np.int64)
    largest = int(max(predictions.max(), references.max()))
    num_classes = largest + 1 if num_classes is None else num_classes
    for name, values in (("predictions", predictions), ("references", references)):
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"{name} are {values.min()} to {values.max()}; expected 0 to {num_classes - 1}")
    # Each pair of classes as one number.
    counts = np.bincount(references * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


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


def record_confusion(trainer: Trainer, split: str, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Keep the confusion matrix (classes, classes) of a split with the trainer, for the page of the run's results."""
    vars(trainer).setdefault("confusions", {})[split] = (matrix, list(classes))
