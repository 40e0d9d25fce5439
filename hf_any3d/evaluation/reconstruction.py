"""Reconstruction quality: Chamfer distances and F-score, averaged within categories and over them; use of codes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer

from hf_any3d.evaluation.classification import Judgment, refuse_nan
from hf_any3d.evaluation.eval_batches import whole
from hf_any3d.evaluation.scan_scores import ScanScores, record_scans
from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.point_ops import reconstruction_scores

METRICS = ("chamfer_l1", "chamfer_l2", "f_score")
CODE_METRICS = ("codes_used", "code_perplexity")
# Outputs of the model that an evaluation gathers, in this order.
_GATHERED = ("loss", "whole_fine", "token_ids")


def ignored_outputs(names: Iterable[str]) -> list[str]:
    """Return those of a model's outputs that an evaluation does not gather, for Trainer's `ignore_keys`."""
    return [name for name in names if name not in _GATHERED]


class CompareWithClouds:
    """`preprocess_logits_for_metrics` of Trainer: measures reconstructed clouds.

    The trainer's `label_names` are the points themselves, and it ignores all outputs but the reconstructed clouds and
    the codes of their patches.

    Args:
        threshold: Distance of the F-score, in the unit of the clouds.
        drop_zero_sums: Leave out points whose coordinates sum to exactly 0, as the metrics of Point-BERT and ACT do.
    """

    def __init__(self, threshold: float = 0.01, drop_zero_sums: bool = False):
        check_numbers(0, above=True, threshold=threshold)
        self.threshold = threshold
        self.drop_zero_sums = drop_zero_sums

    def __call__(
        self, predictions: tuple[torch.Tensor, torch.Tensor], points: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Measure clouds `(clouds, points, 3)` against `(clouds, points', channels)`.

        Args:
            predictions: Reconstructed clouds, and codes `(clouds, groups)`.
            points: The clouds.

        Returns:
            `(clouds, len(METRICS))`, and the codes.
        """
        reconstructed, token_ids = predictions
        scores = reconstruction_scores(reconstructed, points, self.threshold, drop_zero_sums=self.drop_zero_sums)
        # Only these leave the device; clouds of a whole split would not fit in memory.
        return torch.stack([scores[name] for name in METRICS], dim=1), token_ids


class ComputeReconstructionMetrics:
    """`compute_metrics` of Trainer: means over the clouds of each category, then over categories.

    Args:
        categories: Number of each row's category, in the order of the rows; None weighs all clouds the same.

    Source: released programs of Point-BERT and ACT (validation of the discrete autoencoder).
    """

    def __init__(self, categories: Sequence[int] | None = None):
        self.categories = None if categories is None else np.asarray(categories)

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Return `METRICS` of all rows; `codes_used`, the number of different codes; and their `code_perplexity`.

        The perplexity is the exponential of the entropy of their frequencies: as many evenly used codes have this
        entropy (as reported for VQ-VAE, arXiv 1711.00937, and its successors).
        """
        (measured, token_ids), _ = whole(eval_prediction)
        refuse_nan(measured)
        by_category = category_means(np.asarray(measured), self.categories)
        means = np.mean(list(by_category.values()), axis=0)
        # How often each code that occurs was used, over all patches of all clouds
        counts = np.unique(np.asarray(token_ids), return_counts=True)[1]
        frequencies = counts / counts.sum()
        perplexity = np.exp(-(frequencies * np.log(frequencies)).sum())
        codes = zip(CODE_METRICS, (float(len(counts)), float(perplexity)), strict=True)
        return {**dict(zip(METRICS, map(float, means), strict=True)), **dict(codes)}

    @contextmanager
    def of(self, categories: Sequence[int] | None) -> Iterator[None]:
        """Evaluate rows with other categories temporarily."""
        before = self.categories
        self.categories = None if categories is None else np.asarray(categories)
        try:
            yield
        finally:
            self.categories = before


def category_means(measured: np.ndarray, categories: np.ndarray | None) -> dict[int, np.ndarray]:
    """Average `(rows, measures)` over the rows of each category, `(measures,)` float64; None for one of all rows."""
    measured = np.asarray(measured, dtype=np.float64)
    if categories is None:
        return {0: measured.mean(axis=0)}
    return {int(number): measured[categories == number].mean(axis=0) for number in np.unique(categories)}


def evaluate_reconstruction(
    trainer: Trainer,
    splits: Mapping[str, Dataset],
    categories: Mapping[str, Sequence[int] | None],
    names: Sequence[str],
    ignore_keys: list[str],
) -> Judgment:
    """Evaluate the trainer's model on splits and print the metrics.

    Returns:
        For each split `METRICS`, `CODE_METRICS` and `loss`; and for each split the Chamfer distance (L1) of each
        category.
    """
    metrics: dict[str, dict[str, float]] = {}
    by_category: dict[str, dict[str, float]] = {}
    assert isinstance(trainer.compute_metrics, ComputeReconstructionMetrics)
    for split, rows in splits.items():
        numbers = categories[split]
        # Each split has categories of its own, over which the trainer's metrics are averaged.
        with trainer.compute_metrics.of(numbers):
            output: Any = trainer.predict(rows, ignore_keys=ignore_keys, metric_key_prefix=split)
        trainer.log_metrics(split, output.metrics)
        metrics[split] = {name: float(output.metrics[f"{split}_{name}"]) for name in (*METRICS, *CODE_METRICS, "loss")}
        # (rows, measures); the codes come second.
        measured = whole(output)[0][0]
        groups = None if numbers is None else [names[number] for number in numbers]
        record_scans(trainer, split, ScanScores.of_values(METRICS[0], measured[:, 0].tolist(), groups))
        if numbers is not None:
            means_of_categories = category_means(measured, np.asarray(numbers))
            by_category[split] = {names[number]: float(means[0]) for number, means in means_of_categories.items()}
    return metrics, by_category
