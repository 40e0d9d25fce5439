"""Compare the numbers of things, such as trees, with ground truth: which are found, missed and invented.

`hf-any3d evaluate PREDICTED TRUTH --numbers COLUMN` calls this for pairs of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_POINTS, LEAST_IOU = 10, 0.5
"""Points below which a thing does not count, and intersection over union from which on it is found."""


@dataclass(frozen=True)
class Instances:
    """The things of one side of a comparison that have enough points to count, in the order of their numbers.

    Attributes:
        numbers: (things,) their numbers.
        points: (things,) how many points each has.
        best_ious: (things,) greatest intersection over union with a thing of the other side that counts, too.
        partners: (things,) number of that thing, 0 where none shares a point.
        too_small: How many things have fewer points and do not count.
    """

    numbers: np.ndarray
    points: np.ndarray
    best_ious: np.ndarray
    partners: np.ndarray
    too_small: int


@dataclass(frozen=True)
class InstanceComparison:
    """Things of a scan by prediction and truth.

    Attributes:
        predicted: Things of the prediction.
        true: Things of the truth.
        least_iou: Intersection over union from which on a thing is found.
        points: Points that were compared.
    """

    predicted: Instances
    true: Instances
    least_iou: float
    points: int

    @property
    def found(self) -> np.ndarray:
        """Mask (true things,) of those that are found."""
        return self.true.best_ious >= self.least_iou

    @property
    def right(self) -> np.ndarray:
        """Mask (predicted things,) of those that are in the truth; the others are invented."""
        return self.predicted.best_ious >= self.least_iou

    @property
    def matched(self) -> int:
        """Number of things that are the same on both sides."""
        # At exactly one half, two things may share a partner.
        return min(int(self.found.sum()), int(self.right.sum()))


def compare_instances(
    predicted: np.ndarray, true: np.ndarray, *, least_points: int = LEAST_POINTS, least_iou: float = LEAST_IOU
) -> InstanceComparison:
    """Compare the numbers of things, point by point.

    Numbers need not be equal on both sides. Points of no thing in the truth are background: a predicted thing that
    covers them has a smaller intersection over union. Things with fewer than `least_points` points do not count on
    either side, but what they cover is not free for others.

    Args:
        predicted: (points,) predicted number of each point's thing; 0 and negative ones for none.
        true: (points,) the true ones.
        least_points: Points from which on a thing counts.
        least_iou: Intersection over union from which on a thing is found.

    Raises:
        ValueError: The two have different lengths.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"predicted and true have shapes {predicted.shape} and {true.shape}; expected equal ones")
    predicted_numbers, columns, predicted_counts = np.unique(
        np.maximum(predicted, 0), return_inverse=True, return_counts=True
    )
    true_numbers, rows, true_counts = np.unique(np.maximum(true, 0), return_inverse=True, return_counts=True)
    # Only pairs that share points: a table of all would have a hundred million cells for 10,000 things.
    keys, shared = np.unique(rows.reshape(-1) * len(predicted_numbers) + columns.reshape(-1), return_counts=True)
    row, column = np.divmod(keys, len(predicted_numbers))
    ious = shared / (true_counts[row] + predicted_counts[column] - shared)
    predicted_counts_in = (predicted_numbers > 0) & (predicted_counts >= least_points)
    true_counts_in = (true_numbers > 0) & (true_counts >= least_points)
    is_pair = predicted_counts_in[column] & true_counts_in[row]
    row, column, ious = row[is_pair], column[is_pair], ious[is_pair]
    return InstanceComparison(
        _side(predicted_numbers, predicted_counts, predicted_counts_in, column, ious, true_numbers[row]),
        _side(true_numbers, true_counts, true_counts_in, row, ious, predicted_numbers[column]),
        least_iou,
        len(true),
    )


def _side(
    numbers: np.ndarray,
    counts: np.ndarray,
    is_counted: np.ndarray,
    of_pair: np.ndarray,
    ious: np.ndarray,
    partners: np.ndarray,
) -> Instances:
    """Collect one side; pairs (pairs,) share points: `of_pair` is the place of its number, `partners` the other's."""
    best = np.zeros(len(numbers))
    partner = np.zeros(len(numbers), numbers.dtype)
    # The best pair of each comes last, and stays.
    order = np.argsort(ious, kind="stable")
    best[of_pair[order]] = ious[order]
    partner[of_pair[order]] = partners[order]
    too_small = int(((numbers > 0) & ~is_counted).sum())
    return Instances(numbers[is_counted], counts[is_counted], best[is_counted], partner[is_counted], too_small)


def instance_figures(comparisons: Sequence[InstanceComparison]) -> dict[str, Any]:
    """Return the figures of one scan, or of several together: shares in [0, 1], None where there is nothing to count.

    `mean_best_iou` is the mean over true things of the greatest intersection over union with a predicted one.
    """
    true = sum(len(one.true.numbers) for one in comparisons)
    predicted = sum(len(one.predicted.numbers) for one in comparisons)
    matched = sum(one.matched for one in comparisons)
    best = np.concatenate([np.zeros(0), *(one.true.best_ious for one in comparisons)])
    return {
        "true_things": true,
        "predicted_things": predicted,
        "found": matched,
        "missed": true - matched,
        "invented": predicted - matched,
        "precision": matched / predicted if predicted else None,
        "recall": matched / true if true else None,
        "f1": 2 * matched / (true + predicted) if true + predicted else None,
        "mean_best_iou": float(best.mean()) if true else None,
        "points": sum(one.points for one in comparisons),
        "too_small_true": sum(one.true.too_small for one in comparisons),
        "too_small_predicted": sum(one.predicted.too_small for one in comparisons),
    }
