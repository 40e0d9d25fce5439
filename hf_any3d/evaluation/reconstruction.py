"""How well clouds are rebuilt: Chamfer distances and F-score, category by category."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer

from hf_any3d.modeling.point_ops import reconstruction_scores

METRICS = ("chamfer_l1", "chamfer_l2", "f_score")


class CompareWithClouds:
    """For Trainer's `preprocess_logits_for_metrics`: rebuilt clouds to what is measured of them.

    The trainer's `label_names` are the points themselves, and it ignores all outputs but the rebuilt clouds.

    Args:
        threshold: Of the F-score, in the unit of the clouds.
        drop_zero_sums: Leave out points whose coordinates sum to exactly 0, as the metrics of Point-BERT and ACT do.
    """

    def __init__(self, threshold: float = 0.01, drop_zero_sums: bool = False):
        self.threshold, self.drop_zero_sums = threshold, drop_zero_sums

    def __call__(self, rebuilt: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Measure `(clouds, points, 3)` against `(clouds, points', channels)`: `(clouds, len(METRICS))`."""
        scores = reconstruction_scores(rebuilt, points, self.threshold, drop_zero_sums=self.drop_zero_sums)
        return torch.stack([scores[name] for name in METRICS], dim=1)


class ComputeReconstructionMetrics:
    """For Trainer's `compute_metrics`: means over the clouds of each category, then over categories.

    Args:
        categories: Number of each row's category, in the order of the rows; None for clouds without any, which weigh
            the same then.

    Source: released programs of Point-BERT and ACT (validation of the discrete autoencoder).
    """

    def __init__(self, categories: Sequence[int] | None = None):
        self.categories = None if categories is None else np.asarray(categories)

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """`METRICS` of all rows."""
        by_category = category_means(eval_prediction.predictions, self.categories)
        means = np.mean(list(by_category.values()), axis=0)
        return dict(zip(METRICS, map(float, means), strict=True))

    @contextmanager
    def of(self, categories: Sequence[int] | None) -> Iterator[None]:
        """Judge other rows for a while."""
        before = self.categories
        self.categories = None if categories is None else np.asarray(categories)
        try:
            yield
        finally:
            self.categories = before


def category_means(measured: np.ndarray, categories: np.ndarray | None) -> dict[int, np.ndarray]:
    """Means over the rows of each category.

    Args:
        measured: `(rows, measures)`.
        categories: `(rows,)`; None puts all rows into one.

    Returns:
        For each category that occurs, `(measures,)` float64.

    Raises:
        ValueError: Another number of categories than of rows.
    """
    measured = np.asarray(measured, dtype=np.float64)
    if categories is None:
        return {0: measured.mean(axis=0)}
    if len(categories) != len(measured):
        raise ValueError(f"categories has {len(categories)} entries; expected {len(measured)}, one for each row")
    return {int(number): measured[categories == number].mean(axis=0) for number in np.unique(categories)}


def judge_reconstruction(
    trainer: Trainer,
    splits: Mapping[str, Dataset],
    categories: Mapping[str, Sequence[int] | None],
    names: Sequence[str],
    ignore_keys: list[str],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Judge the trainer's model on splits, and print what comes out.

    Args:
        trainer: Has `CompareWithClouds` and `ComputeReconstructionMetrics`.
        splits: Rows of each split to judge on.
        categories: For each split the rows' categories.
        names: Names of the categories.
        ignore_keys: Outputs of the model beside the rebuilt clouds.

    Returns:
        For each split `METRICS` and `loss`; and for each split the Chamfer distance (L1) of each category.
    """
    metrics: dict[str, dict[str, float]] = {}
    by_category: dict[str, dict[str, float]] = {}
    for split, rows in splits.items():
        numbers = categories[split]
        with trainer.compute_metrics.of(numbers):
            output: Any = trainer.predict(rows, ignore_keys=ignore_keys, metric_key_prefix=split)
        trainer.log_metrics(split, output.metrics)
        metrics[split] = {name: float(output.metrics[f"{split}_{name}"]) for name in (*METRICS, "loss")}
        if numbers is not None:
            found = category_means(output.predictions, np.asarray(numbers))
            by_category[split] = {names[number]: float(means[0]) for number, means in found.items()}
    return metrics, by_category
