"""Segmentation scores as plain numpy functions."""

from collections.abc import Sequence

import numpy as np

from hf_any3d.training.scores import confusion_matrix

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
