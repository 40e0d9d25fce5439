"""What models that classify clouds share: how pooled features become logits and a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.modeling.point_labels import mean_cross_entropy


class PointCloudClassificationMixin:
    """For models with a `classifier` that reads what the model below it pooled."""

    base_model: PreTrainedModel
    classifier: nn.Module

    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Classify point clouds.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            labels: `(batch,)` class numbers, -100 where a cloud does not count; with them the mean cross-entropy is
                returned as `loss`, which is 0 where no cloud counts.
            **kwargs: Passed on to the model below the head.

        Returns:
            `logits (batch, labels)`.
        """
        logits = self.classifier(self.base_model(points, **kwargs).pooler_output)
        loss = None if labels is None else mean_cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
