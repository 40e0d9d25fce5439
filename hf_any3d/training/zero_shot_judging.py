"""Judging models that compare clouds with texts: every cloud against the names of all classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer

from hf_any3d.training.scores import class_accuracies, confusion_matrix
from hf_any3d.training.zero_shot_scores import zero_shot_scores

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
