"""The final look at a trained model, split by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch.utils.data import Dataset
from transformers import Trainer

from hf_any3d.training.scores import class_accuracies, confusion_matrix

Judgement = tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]
_KEPT = ("accuracy", "mean_class_accuracy", "loss")


def judge_splits(trainer: Trainer, splits: Mapping[str, Dataset], classes: Sequence[str]) -> Judgement:
    """Judge the trainer's model on splits, and print what comes out.

    Args:
        trainer: Has `compute_classification_metrics` as its `compute_metrics`.
        splits: Rows of each split to judge on; a split without labels is passed over.
        classes: Names of the classes.

    Returns:
        For each split, accuracy, mean class accuracy and loss; and for each split, the accuracy of each class that
        occurs in it.
    """
    metrics, by_class = {}, {}
    for split, rows in splits.items():
        output = trainer.predict(rows, metric_key_prefix=split)
        if output.label_ids is None:
            continue
        trainer.log_metrics(split, output.metrics)
        metrics[split] = {key: float(output.metrics[f"{split}_{key}"]) for key in _KEPT}
        by_class[split] = accuracy_by_class(output.predictions, output.label_ids, classes)
    return metrics, by_class


def accuracy_by_class(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Accuracy of each class that occurs among the labels, from logits (rows, classes)."""
    matrix = confusion_matrix(logits.argmax(axis=1), labels, len(classes))
    shares = dict(zip(classes, class_accuracies(matrix), strict=True))
    return {name: float(share) for name, share in shares.items() if not np.isnan(share)}
