"""Small PointNets (arXiv 1612.00593) without transformers inside: the honest baselines, trained from scratch."""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from hf_any3d.modeling.layers.tasks import point_loss


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


class PointNetSegmenter(nn.Module):
    """PointNet for segmentation: every point's own features beside the maximum over all points and the category.

    Its call is that of the segmentation models of this package, so that the same program trains it.

    Args:
        num_labels: number of classes or parts.
        num_categories: categories of objects that it is told of; 0 for scenes.
        widths: channels of the layers in front of the maximum; those of the first go on to every point.
        head_width: channels of the hidden layer of the head.
        dropout: dropout in front of the last layer.
    """

    def __init__(
        self,
        num_labels: int,
        num_categories: int = 0,
        widths: tuple[int, ...] = (64, 128, 256),
        head_width: int = 128,
        dropout: float = 0.2,
    ):
        super().__init__()
        self.first = _layer(3, widths[0])
        self.further = nn.Sequential(*(_layer(inner, outer) for inner, outer in zip(widths, widths[1:], strict=False)))
        self.from_point = nn.Linear(widths[0], head_width, bias=False)
        self.from_cloud = nn.Linear(widths[-1], head_width, bias=False)
        self.from_category = nn.Embedding(max(num_categories, 1), head_width)
        self.head = nn.Sequential(nn.BatchNorm1d(head_width), nn.ReLU(), _layer(head_width, head_width))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(head_width, num_labels)

    def forward(
        self, points: torch.Tensor, category: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> TokenClassifierOutput:
        """Name every point.

        Args:
            points: `(batch, points, 3)`.
            category: `(batch,)` category numbers of objects.
            labels: `(batch, points)` class numbers; with them the mean cross-entropy is returned as `loss`.
        """
        shape = points.shape[:2]
        own = self.first(points.flatten(0, 1))  # (batch * points, width)
        whole = self.from_cloud(self.further(own).unflatten(0, shape).amax(dim=1))  # (batch, width)
        numbers = torch.zeros(shape[0], dtype=torch.long, device=points.device) if category is None else category
        whole = (whole + self.from_category(numbers)).repeat_interleave(shape[1], dim=0)
        logits = self.out(self.dropout(self.head(self.from_point(own) + whole))).unflatten(0, shape)
        return TokenClassifierOutput(loss=point_loss(logits, labels), logits=logits)


def _layer(inner: int, outer: int) -> nn.Sequential:
    # The norm subtracts the mean, so that a bias in front of it would do nothing.
    return nn.Sequential(nn.Linear(inner, outer, bias=False), nn.BatchNorm1d(outer), nn.ReLU())
