"""Weights of classes in the loss over points, so that rare ones are learned, too."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import TokenClassifierOutput

from hf_any3d.evaluation.segmentation import IGNORED


def class_weights(labels: Iterable[np.ndarray], num_classes: int, power: float) -> torch.Tensor:
    """Weigh classes by their inverse frequency.

    Args:
        labels: The class number of every point, cloud by cloud; -100 where a point does not count.
        num_classes: How many classes there are.
        power: Of the inverse frequency: 0 weighs all classes the same, 1 balances them, 0.5 lies between.

    Returns:
        `(num_classes,)` float32, such that a point weighs 1 on average; 0 for a class that never occurs.

    Raises:
        ValueError: No point counts.
    """
    counts = np.zeros(num_classes)
    for cloud in labels:
        cloud = np.asarray(cloud)
        counts += np.bincount(cloud[cloud != IGNORED], minlength=num_classes)
    if not counts.sum():
        raise ValueError("labels has no point that counts")
    share = counts / counts.sum()
    weights = np.where(share > 0, np.maximum(share, np.finfo(float).tiny) ** -power, 0.0)
    return torch.tensor(weights / (weights * share).sum(), dtype=torch.float32)


class WeightedPointLoss:
    """Cross-entropy over points with weights of classes; a `compute_loss_func` for Trainer.

    Args:
        weights: `(num_classes,)`, see `class_weights`.
    """

    def __init__(self, weights: torch.Tensor):
        self.weights = weights

    def __call__(
        self,
        outputs: TokenClassifierOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean over the points that count, of `(batch, points, classes)` logits and `(batch, points)` labels.

        Args:
            outputs: What a segmentation model returns.
            labels: -100 where a point does not count.
            num_items_in_batch: Points that count in the whole optimisation step, where it has several batches.
        """
        logits = outputs.logits.flatten(0, 1).float()
        total = nn.functional.cross_entropy(
            logits, labels.flatten(), self.weights.to(logits.device), ignore_index=IGNORED, reduction="sum"
        )
        return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
