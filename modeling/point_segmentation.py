"""What models that name every point share: how points and labels become logits and a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import TokenClassifierOutput

from hf_any3d.modeling.point_labels import checked_category, point_loss, restrict_to_parts


class SemanticSegmentationMixin:
    """For models that name the object that every point of a scene, or of a block of one, belongs to."""

    # (points, **kwargs) -> logits (batch, points, labels).
    point_logits: Callable[..., torch.Tensor]

    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> TokenClassifierOutput:
        """Segment scenes.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            labels: `(batch, points)` class numbers, -100 where a point does not count; with them the mean
                cross-entropy over points is returned as `loss`.
            **kwargs: Passed on to the model below the head.

        Returns:
            `logits (batch, points, labels)`.
        """
        logits = self.point_logits(points, **kwargs)
        return TokenClassifierOutput(loss=point_loss(logits, labels), logits=logits)


class PartSegmentationMixin:
    """For models that name the part that every point of an object belongs to, given the object's category.

    A subclass checks `category_parts` of its config when it is built.
    """

    config: PreTrainedConfig
    # (points, condition, **kwargs) -> logits (batch, points, parts), over the parts of all categories.
    point_logits: Callable[..., torch.Tensor]
    # Categories (batch,) -> the condition (batch, width), what the head is told of them.
    category_features: Callable[[torch.Tensor], torch.Tensor]

    def forward(
        self,
        points: torch.Tensor,
        category: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Segment objects.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            category: `(batch,)` category numbers; may be left out where the model knows one category only.
            labels: `(batch, points)` part numbers, -100 where a point does not count; with them the mean
                cross-entropy over points is returned as `loss`.
            **kwargs: Passed on to the model below the head.

        Returns:
            `logits (batch, points, parts)`, over the parts of all categories; with `restrict_to_category_parts` those
            of other categories are as low as the number type allows.

        Raises:
            ValueError: If the category is missing or has another shape.
        """
        category = checked_category(category, points, self.config.num_categories)
        logits = self.point_logits(points, self.category_features(category), **kwargs)
        if self.config.restrict_to_category_parts:
            logits = restrict_to_parts(logits, self.config.category_parts, category)
        return TokenClassifierOutput(loss=point_loss(logits, labels), logits=logits)
