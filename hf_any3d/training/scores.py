"""Classification scores as plain numpy functions of the confusion matrix."""

import numpy as np


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
