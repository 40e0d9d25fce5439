"""Forward passes and losses of point cloud segmentation models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import ModelOutput

from hf_any3d.modeling.forward_contract import honours_contract
from hf_any3d.modeling.point_labels import checked_category, point_loss, restrict_to_parts


class SemanticSegmentationMixin:
    """For models that predict an object class for every point of a scene or of a block of it."""

    # (points, condition, output_hidden_states, output_attentions) -> logits (batch, points, labels), and the output of
    # the base model.
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
            labels: `(batch, points)` class numbers, -100 for ignored points; with them the mean
                cross-entropy over points is returned as `loss`.
            output_hidden_states: Whether to return the base model's hidden states; None for the config's choice.
            output_attentions: The same for its attention weights, which only eager attention returns.

        Returns:
            `logits (batch, points, labels)`.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If there is not one label for each point; if attention weights are requested without eager
                attention.
        """
        logits, output = self.point_logits(points, None, output_hidden_states, output_attentions)
        return _output(logits, labels, output)


class PartSegmentationMixin:
    """For models that predict a part for every point of an object, given the object's category.

    A subclass checks `category_parts` of its config when it is built.
    """

    config: PreTrainedConfig
    # (points, condition, output_hidden_states, output_attentions) -> logits (batch, points, parts), over the parts of
    # all categories, and the output of the base model.
    point_logits: Callable[..., tuple[torch.Tensor, ModelOutput]]
    # Categories (batch,) -> their features (batch, width), the condition of the head.
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
            category: `(batch,)` category numbers; may be left out if the model has only one category.
            labels: `(batch, points)` part numbers, -100 for ignored points; with them the mean
                cross-entropy over points is returned as `loss`.
            output_hidden_states: Whether to return the base model's hidden states; None for the config's choice.
            output_attentions: The same for its attention weights, which only eager attention returns.

        Returns:
            `logits (batch, points, parts)`, over the parts of all categories; with `restrict_to_category_parts` those
            of other categories have the lowest value of their dtype.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If the category is missing or has another shape; if attention weights are requested without
                eager attention.
        """
        category = checked_category(category, points, self.config.num_categories)
        condition = self.category_features(category)
        logits, output = self.point_logits(points, condition, output_hidden_states, output_attentions)
        if self.config.restrict_to_category_parts:
            logits = restrict_to_parts(logits, self.config.category_parts, category)
        return _output(logits, labels, output)


def refuse_problem_type(config: PreTrainedConfig) -> None:
    """Reject a `problem_type` that models with one label per point do not support.

    Raises:
        ValueError: If it is neither None nor "single_label_classification".
    """
    if config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"problem_type={config.problem_type!r}: every point has one label; expected None or "
            "'single_label_classification'"
        )


def _output(logits: torch.Tensor, labels: torch.Tensor | None, output: ModelOutput) -> TokenClassifierOutput:
    return TokenClassifierOutput(
        loss=point_loss(logits, labels),
        logits=logits,
        hidden_states=output.hidden_states,
        attentions=output.attentions,
    )
