"""Zero-shot scores: how well classes are named that were never seen in training, among themselves and among all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer

from hf_any3d.evaluation.classification import (
    class_accuracies,
    confusion_matrix,
    mean_class_accuracy,
    overall_accuracy,
)

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


# Place of the clouds' vectors in a model's answer, behind the logits of clouds and of texts.
_POINT_EMBEDS = 2


class CompareWithClasses:
    """For Trainer's `preprocess_logits_for_metrics`: what clouds are like, from vectors to logits over all classes.

    Args:
        class_embeds: `(classes, width)` unit vectors of the class names.
    """

    def __init__(self, class_embeds: torch.Tensor):
        self.class_embeds = class_embeds

    def __call__(self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        """Cosines `(clouds, classes)`."""
        point_embeds = outputs[_POINT_EMBEDS]
        # Autocast, under which Trainer evaluates, would round away what tells the best classes apart.
        with torch.autocast(point_embeds.device.type, enabled=False):
            return point_embeds @ self.class_embeds.to(point_embeds).T


class ComputeZeroShotMetrics:
    """For Trainer's `compute_metrics`.

    Args:
        unseen: Numbers of the classes that are never seen in training.
    """

    def __init__(self, unseen: Sequence[int]):
        self.unseen = list(unseen)

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """See `zero_shot_scores`."""
        return zero_shot_scores(eval_prediction.predictions, eval_prediction.label_ids, self.unseen)


def judge_zero_shot(
    trainer: Trainer, splits: Mapping[str, Dataset], classes: Sequence[str], unseen: Sequence[int]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Judge the trainer's model on splits, and print what comes out.

    Args:
        trainer: Has `CompareWithClasses` and `ComputeZeroShotMetrics`.
        splits: Rows of each split to judge on.
        classes: Names of all classes.
        unseen: Numbers of those that were never seen in training.

    Returns:
        For each split the scores of `zero_shot_scores`; and for each split the accuracy of each class that occurs in
        it, of unseen classes among the unseen, of seen ones among the seen.
    """
    metrics, by_class = {}, {}
    for split, rows in splits.items():
        output = trainer.predict(rows, metric_key_prefix=split)
        trainer.log_metrics(split, output.metrics)
        metrics[split] = zero_shot_scores(output.predictions, output.label_ids, unseen)
        # Each kind of class has answers of its own kind only.
        foreign = np.isin(np.arange(len(classes)), unseen) != np.isin(output.label_ids, unseen)[:, None]
        answers = np.where(foreign, -np.inf, output.predictions).argmax(axis=1)
        shares = class_accuracies(confusion_matrix(answers, output.label_ids, len(classes)))
        by_class[split] = {
            name: float(share) for name, share in zip(classes, shares, strict=True) if not np.isnan(share)
        }
    return metrics, by_class
