"""A small PointNet (arXiv 1612.00593) without transformers inside: the honest baseline, trained from scratch."""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput


class PointNet(nn.Module):
    """The same layers for every point, a maximum over all points, two layers of head.

    Its call is that of any point cloud classifier of transformers' kind, so that `Trainer` trains it.

    Args:
        num_labels: number of classes.
        widths: channels of the layers that every point goes through.
        head_width: channels of the hidden layer behind the maximum.
        dropout: dropout in front of the last layer.
    """

    def __init__(
        self,
        num_labels: int,
        widths: tuple[int, ...] = (64, 128, 256),
        head_width: int = 128,
        dropout: float = 0.3,
    ):
        super().__init__()
        pairs = zip((3, *widths), widths, strict=False)
        self.points = nn.Sequential(*(_layer(inner, outer) for inner, outer in pairs))
        self.head = nn.Sequential(_layer(widths[-1], head_width), nn.Dropout(dropout))
        self.out = nn.Linear(head_width, num_labels)

    def forward(self, points: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        """Classify point clouds.

        Args:
            points: `(batch, points, 3)`.
            labels: `(batch,)` class numbers; with them the mean cross-entropy is returned as `loss`.
        """
        features = self.points(points.flatten(0, 1)).unflatten(0, points.shape[:2])  # (batch, points, width)
        logits = self.out(self.head(features.amax(dim=1)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _layer(inner: int, outer: int) -> nn.Sequential:
    # The norm subtracts the mean, so that a bias in front of it would do nothing.
    return nn.Sequential(nn.Linear(inner, outer, bias=False), nn.BatchNorm1d(outer), nn.ReLU())
