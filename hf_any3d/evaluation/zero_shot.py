"""Zero-shot scores: accuracy on classes that were not trained, among themselves and among all classes."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer

from hf_any3d.evaluation.classification import Judgment, by_name, refuse_nan
from hf_any3d.evaluation.confusion import (
    class_accuracies,
    confusion_matrix,
    mean_class_accuracy,
    overall_accuracy,
    record_confusion,
)
from hf_any3d.evaluation.eval_batches import whole
from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.utils.progress import progress_bar

# Up to this many classes, all permutations of their names are tried; otherwise random ones.
_ALL_ORDERS = 7
_DRAWN_ORDERS = 10_000
# Index of the clouds' embeddings in the outputs that Trainer keeps, after the logits of the clouds.
_POINT_EMBEDS = 1


def zero_shot_scores(logits: np.ndarray, labels: np.ndarray, unseen: Sequence[int]) -> dict[str, float]:
    """Score logits over all classes, seen and unseen.

    `logits` are `(samples, classes)`, `labels` `(samples,)`; classes that are `unseen` were not trained.

    Returns:
        For samples of unseen classes, if there are any: `unseen_accuracy` and `unseen_mean_class_accuracy`, where only
        unseen classes may be predicted; `unseen_chance`, one over their number; `unseen_p_value`, see `p_value`;
        `unseen_among_all`, where any class may be predicted. For samples of seen classes `seen_accuracy` and
        `seen_among_all`. If there are both, `harmonic_mean` of both mean class accuracies among all, the measure of
        generalized zero-shot learning (arXiv 1707.00600, Sec. 4.2).
    """
    logits = np.asarray(logits, dtype=np.float64)
    labels = np.asarray(labels)
    refuse_nan(logits)
    classes = logits.shape[1]
    unseen = sorted(set(unseen))
    if unseen and not 0 <= unseen[0] <= unseen[-1] < classes:
        raise ValueError(f"unseen has {unseen}; expected classes from 0 to {classes - 1}")
    seen = [number for number in range(classes) if number not in set(unseen)]
    figures = {}
    balanced = []
    for name, group in (("unseen", unseen), ("seen", seen)):
        rows = np.isin(labels, group)
        if not rows.any():
            continue
        # The group is sorted, so places in it are the new numbers of the labels.
        answers = logits[rows][:, group].argmax(axis=1)
        among = confusion_matrix(answers, np.searchsorted(group, labels[rows]), len(group))
        # Among all classes, whichever group a sample is of
        among_all = confusion_matrix(logits[rows].argmax(axis=1), labels[rows], num_classes=classes)
        figures[f"{name}_accuracy"] = overall_accuracy(among)
        if name == "unseen":
            figures["unseen_mean_class_accuracy"] = mean_class_accuracy(among)
            figures["unseen_chance"] = 1 / len(unseen)
            figures["unseen_p_value"] = p_value(among)
        figures[f"{name}_among_all"] = overall_accuracy(among_all)
        balanced.append(mean_class_accuracy(among_all))
    if len(balanced) == 2:
        figures["harmonic_mean"] = 2 * math.prod(balanced) / sum(balanced) if sum(balanced) else 0.0
    return figures


def p_value(matrix: np.ndarray) -> float:
    """Return the share of random assignments of names to classes that are correct at least as often as the true one.

    A model without any notion of the names may still separate the classes, and then some assignment fits well by
    chance. So names are permuted, not single predictions: in all ways, or in 10,000 for more than seven classes.
    """
    count = len(matrix)
    if count <= _ALL_ORDERS:
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        generator = np.random.default_rng(0)
        drawn = [generator.permutation(count) for _ in range(_DRAWN_ORDERS - 1)]
        # With the true order among them, the share is never 0.
        orders = np.array([np.arange(count), *drawn])
    # Broadcast to (orders, classes): how often each class was predicted as what an order assigns to it.
    correct = matrix[np.arange(count), orders].sum(axis=1)
    return float(np.mean(correct >= np.trace(matrix)))


class CompareWithClasses:
    """`preprocess_logits_for_metrics` of Trainer: cosines of clouds with unit vectors of all class names."""

    def __init__(self, class_embeds: torch.Tensor):
        self.class_embeds = class_embeds  # (classes, width)

    def __call__(self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        """Return cosines `(clouds, classes)`."""
        point_embeds = outputs[_POINT_EMBEDS]
        # Trainer evaluates under autocast, whose rounding would merge the best classes.
        with autocast_disabled(point_embeds.device):
            return point_embeds @ self.class_embeds.to(point_embeds).T


def compute_zero_shot_metrics(unseen: Sequence[int]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the `compute_metrics` of Trainer for `zero_shot_scores`; `unseen` are the classes not trained."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        return zero_shot_scores(*whole(prediction), unseen)

    return compute


def evaluate_class_names(
    model: Any, rows: Any, names: Sequence[str], templates: Sequence[str] | None = None, batch_size: int = 32
) -> tuple[dict[str, float], dict[str, float]]:
    """Evaluate a model that compares clouds with texts, on the names of all classes.

    Returns:
        `accuracy` and `mean_class_accuracy`; and the accuracy of each class that occurs.
    """
    cosines, labels = compare_with_names(model, rows, names, templates, batch_size)
    return scores_of_matrix(confusion_matrix(cosines.argmax(axis=1), labels, len(names)), names)


def scores_of_matrix(matrix: np.ndarray, names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the accuracies that a confusion matrix (classes, classes) has, and the accuracy of each class."""
    figures = {"accuracy": overall_accuracy(matrix), "mean_class_accuracy": mean_class_accuracy(matrix)}
    return figures, by_name(names, class_accuracies(matrix))


@torch.inference_mode()
def compare_with_names(
    model: Any, rows: Any, names: Sequence[str], templates: Sequence[str] | None = None, batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines of clouds with the names of classes, (clouds, classes), and the labels (clouds,)."""
    texts = model.encode_labels(names, templates).float()  # (classes, width)
    found: list[np.ndarray] = []
    labels: list[int] = []
    for start in progress_bar(range(0, len(rows), batch_size), desc="clouds", leave=False):
        batch = rows.__getitems__(list(range(start, min(start + batch_size, len(rows)))))
        points = torch.from_numpy(np.stack([row["points"] for row in batch])).to(model.device)
        with evaluation_mode(model):
            cosines = model.get_point_features(points).float() @ texts.T  # (batch, classes)
        refuse_nan(cosines)
        found.append(cosines.cpu().numpy())
        labels += [int(row["label"]) for row in batch]
    return np.concatenate(found), np.array(labels)


def evaluate_zero_shot(
    trainer: Trainer, splits: Mapping[str, Dataset], classes: Sequence[str], unseen: Sequence[int]
) -> Judgment:
    """Evaluate the trainer's model on splits and print the metrics.

    Returns:
        For each split the scores of `zero_shot_scores`; and for each split the accuracy of each class that occurs in
        it, of unseen classes among the unseen, of seen ones among the seen.
    """
    metrics = {}
    by_class = {}
    for split, rows in splits.items():
        output: Any = trainer.predict(rows, metric_key_prefix=split)
        trainer.log_metrics(split, output.metrics)
        logits, labels = whole(output)
        metrics[split] = zero_shot_scores(logits, labels, unseen)
        # Samples of unseen classes are predicted among the unseen ones only, and those of seen classes among the seen.
        # (classes,) against (samples, 1), so (samples, classes).
        other_kind = np.isin(np.arange(len(classes)), unseen) != np.isin(labels, unseen)[:, None]
        answers = np.where(other_kind, -np.inf, logits).argmax(axis=1)
        matrix = confusion_matrix(answers, labels, len(classes))
        record_confusion(trainer, split, matrix, classes)
        by_class[split] = by_name(classes, class_accuracies(matrix))
    return metrics, by_class
