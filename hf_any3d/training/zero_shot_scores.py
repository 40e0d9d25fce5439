"""Zero-shot scores: how well classes are named that were never seen in training, among themselves and among all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from hf_any3d.training.scores import confusion_matrix, mean_class_accuracy, overall_accuracy

# Up to so many classes all orders of their names are tried.
_ALL_ORDERS = 7
_DRAWN_ORDERS = 10_000


def zero_shot_scores(logits: np.ndarray, labels: np.ndarray, unseen: Sequence[int]) -> dict[str, float]:
    """Scores of logits over all classes, seen and unseen.

    Args:
        logits: `(samples, classes)`.
        labels: `(samples,)` true classes.
        unseen: The classes that were never seen in training.

    Returns:
        Of samples of unseen classes, if there are any: `unseen_accuracy` and `unseen_mean_class_accuracy`, where only
        unseen classes may be answered; `unseen_chance`, one by their number; `unseen_p_value`, see `p_value`;
        `unseen_among_all`, where any class may be answered. Of samples of seen classes `seen_accuracy` and
        `seen_among_all`. Where there are both, `harmonic_mean` of both mean class accuracies among all, as generalised
        zero-shot learning is judged (arXiv 1707.00600, Sec. 4.2).
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    classes = logits.shape[1]
    unseen = sorted(set(unseen))
    seen = [number for number in range(classes) if number not in set(unseen)]
    found, balanced = {}, []
    for name, own in (("unseen", unseen), ("seen", seen)):
        rows = np.isin(labels, own)
        if not rows.any():
            continue
        among = confusion_matrix(
            logits[rows][:, own].argmax(axis=1), np.searchsorted(own, labels[rows]), num_classes=len(own)
        )
        whole = confusion_matrix(logits[rows].argmax(axis=1), labels[rows], num_classes=classes)
        found[f"{name}_accuracy"] = overall_accuracy(among)
        if name == "unseen":
            found["unseen_mean_class_accuracy"] = mean_class_accuracy(among)
            found["unseen_chance"] = 1 / len(unseen)
            found["unseen_p_value"] = p_value(among)
        found[f"{name}_among_all"] = overall_accuracy(whole)
        balanced.append(mean_class_accuracy(whole))
    if len(balanced) == 2:
        found["harmonic_mean"] = 2 * math.prod(balanced) / sum(balanced) if sum(balanced) else 0.0
    return found


def p_value(matrix: np.ndarray) -> float:
    """How often names given to the classes at random would be right as often as the true ones.

    A model that knows nothing of the names may still tell the classes apart, and then some order of the names fits
    well by luck. So names are exchanged, not single answers.

    Args:
        matrix: `(classes, classes)` counts of true classes (rows) taken for others.

    Returns:
        Share of all orders of the names, of 10,000 drawn ones beyond seven classes, that are right at least as often.
    """
    count = len(matrix)
    if count <= _ALL_ORDERS:
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        generator = np.random.default_rng(0)
        drawn = [generator.permutation(count) for _ in range(_DRAWN_ORDERS - 1)]
        orders = np.array([np.arange(count), *drawn])
    right = matrix[np.arange(count), orders].sum(axis=1)
    return float(np.mean(right >= np.trace(matrix)))
