"""Agreement of numbers of trees with true ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAST_JUDGED = 10
"""Points of the smallest tree that is judged."""


class TreeAgreement(NamedTuple):
    """Counts of trees that are found.

    Attributes:
        found: True trees that have more than half in common with a numbered one.
        numbered: Trees that have a number.
        true: True trees.
        mean_iou: Mean, over true trees, of the intersection over union with the best numbered one.
    """

    found: int
    numbered: int
    true: int
    mean_iou: float

    @property
    def f1(self) -> float:
        """The harmonic mean of the shares of true trees that are found and of numbered ones that are right."""
        return 2 * self.found / max(1, self.numbered + self.true)


def compare_trees(truth: np.ndarray, numbers: np.ndarray) -> TreeAgreement:
    """Compare numbers with true ones; a tree is found if its intersection over union with one is at least a half.

    Args:
        truth: (points,) whole numbers; those of trees are above 0.
        numbers: (points,) the same. Trees of fewer points than `LEAST_JUDGED` count on neither side.
    """
    known, row, true_sizes = np.unique(truth, return_inverse=True, return_counts=True)
    found, column, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    keys, both = np.unique(row * len(found) + column, return_counts=True)
    row, column = keys // len(found), keys % len(found)
    true_tree = (known > 0) & (true_sizes >= LEAST_JUDGED)
    tree = (found > 0) & (sizes >= LEAST_JUDGED)
    overlap = both / (true_sizes[row] + sizes[column] - both)
    overlap[~true_tree[row] | ~tree[column]] = 0
    best = np.zeros(len(known))
    np.maximum.at(best, row, overlap)
    # At exactly a half, a numbered tree can be the best of two.
    pairs = overlap >= 0.5
    count = min(len(np.unique(row[pairs])), len(np.unique(column[pairs])))
    mean = float(best[true_tree].mean()) if true_tree.any() else 0.0
    return TreeAgreement(count, int(tree.sum()), int(true_tree.sum()), mean)


def compare_with_each(truth: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare numbers with each true tree.

    Args:
        truth: (points,) whole numbers; those of trees are above 0.
        numbers: (points,) the same, of at least `LEAST_JUDGED` points where they count.

    Returns:
        The best intersection over union of each true tree, and how many numbered ones have more than half of their
        points in it, (trees,) each.
    """
    known, row, true_sizes = np.unique(truth, return_inverse=True, return_counts=True)
    found, column, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    pairs, both = np.unique(row * len(found) + column, return_counts=True)
    row, column = np.divmod(pairs, len(found))
    is_judged = (found[column] > 0) & (sizes[column] >= LEAST_JUDGED)
    best = np.zeros(len(known))
    np.maximum.at(best, row[is_judged], (both / (true_sizes[row] + sizes[column] - both))[is_judged])
    within = np.bincount(row[is_judged & (2 * both > sizes[column])], minlength=len(known))
    return best[known > 0], within[known > 0]
