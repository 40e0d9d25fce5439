"""What models that name every point share: how points and labels become logits and a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import ModelOutput

from hf_any3d.modeling.forward_contract import honours_contract
from hf_any3d.modeling.point_labels import checked_category, point_loss, restrict_to_parts


class SemanticSegmentationMixin:
    """For models that name the object that every point of a scene, or of a block of one, belongs to."""

    # (points, condition, output_hidden_states, output_attentions) -> logits (batch, points, labels), and the output of
    # the model below the head.
    point_logits: Callable[..., tuple[torch.Tensor, ModelOutput]]

    @honours_contract
    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> TokenClassifierOutput:
        """Segment scenes.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            labels: `(batch, points)` class numbers, -100 where a point does not count; with them the mean
                cross-entropy over points is returned as `loss`.
            output_hidden_states: Whether to return the hidden states of the model below the head; None for the
                config's choice.
            output_attentions: The same for its attention weights, which eager attention alone makes.

        Returns:
            `logits (batch, points, labels)`.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If there is not one label for each point; attention weights of another attention.
        """
        logits, below = self.point_logits(points, None, output_hidden_states, output_attentions)
        return _output(logits, labels, below)


class PartSegmentationMixin:
    """For models that name the part that every point of an object belongs to, given the object's category.

    A subclass checks `category_parts` of its config when it is built.
    """

    config: PreTrainedConfig
    # (points, condition, output_hidden_states, output_attentions) -> logits (batch, points, parts), over the parts of
    # all categories, and the output of the model below the head.
    point_logits: Callable[..., tuple[torch.Tensor, ModelOutput]]
    # Categories (batch,) -> the condition (batch, width), what the head is told of them.
    category_features: Callable[[torch.Tensor], torch.Tensor]

    @honours_contract
    def forward(
        self,
        points: torch.Tensor,
        category: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> TokenClassifierOutput:
        """Segment objects.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            category: `(batch,)` category numbers; may be left out where the model knows one category only.
            labels: `(batch, points)` part numbers, -100 where a point does not count; with them the mean
                cross-entropy over points is returned as `loss`.
            output_hidden_states: Whether to return the hidden states of the model below the head; None for the
                config's choice.
            output_attentions: The same for its attention weights, which eager attention alone makes.

        Returns:
            `logits (batch, points, parts)`, over the parts of all categories; with `restrict_to_category_parts` those
            of other categories are as low as the number type allows.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If the category is missing or has another shape; attention weights of another attention.
        """
        category = checked_category(category, points, self.config.num_categories)
        condition = self.category_features(category)
        logits, below = self.point_logits(points, condition, output_hidden_states, output_attentions)
        if self.config.restrict_to_category_parts:
            logits = restrict_to_parts(logits, self.config.category_parts, category)
        return _output(logits, labels, below)


def refuse_problem_type(config: PreTrainedConfig) -> None:
    """Refuse a `problem_type` that models with one label a point cannot honour.

    Raises:
        ValueError: If it is neither None nor "single_label_classification".
    """
    if config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"problem_type={config.problem_type!r}: every point has one label; expected None or "
            "'single_label_classification'"
        )


def _output(logits: torch.Tensor, labels: torch.Tensor | None, below: ModelOutput) -> TokenClassifierOutput:
    return TokenClassifierOutput(
        loss=point_loss(logits, labels), logits=logits, hidden_states=below.hidden_states, attentions=below.attentions
    )
