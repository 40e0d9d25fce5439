"""Forward passes and losses of the tasks: classification, part segmentation, semantic segmentation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils import ModelOutput

from hf_any3d.modeling.layers.forward_contract import check_keywords, strict_forward

IGNORED = -100
_CLASSIFIER_KEYWORDS = frozenset(("points", "labels", "output_hidden_states", "output_attentions", "return_dict"))


def point_loss(logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
    """Mean cross-entropy of `(batch, points, labels)` logits over all points whose label is not -100.

    If all labels are -100, as in an unlabelled block of a scene, the loss and its gradient are 0.

    Raises:
        ValueError: If there is not one label for each point.
    """
    if labels is None:
        return None
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected {tuple(logits.shape[:2])}, one per point")
    return mean_cross_entropy(logits.flatten(0, 1), labels.flatten())


def mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of `(rows, labels)` logits over the rows whose label is not -100; 0 if there are none.

    Torch's own mean is NaN then, and one such batch would make all weights NaN.
    """
    # In float32: half precision cannot represent probabilities near 1.
    total = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def part_mask(category_parts: Sequence[Sequence[int]], num_parts: int, category: torch.Tensor) -> torch.Tensor:
    """Return a mask of the parts that an object of each category can have.

    Args:
        category_parts: Part numbers of each category.
        num_parts: Number of parts of all categories.
        category: `(batch,)` category numbers.

    Returns:
        `(batch, parts)` bool, on the device of `category`.
    """
    table = torch.zeros(len(category_parts), num_parts, dtype=torch.bool)
    for number, parts in enumerate(category_parts):
        table[number, list(parts)] = True
    return table.to(category.device)[category]


def restrict_to_parts(
    logits: torch.Tensor, category_parts: Sequence[Sequence[int]], category: torch.Tensor
) -> torch.Tensor:
    """Set logits `(batch, points, parts)` of other categories' parts to the lowest value of their dtype."""
    foreign = ~part_mask(category_parts, logits.shape[-1], category).unsqueeze(1)  # (batch, 1, parts)
    return logits.masked_fill(foreign, torch.finfo(logits.dtype).min)


def checked_category(category: torch.Tensor | None, points: torch.Tensor, num_categories: int) -> torch.Tensor:
    """Return the categories `(batch,)` of clouds; optional if there is only one category.

    Raises:
        ValueError: If the category is missing or has another shape.
    """
    if category is None:
        if num_categories > 1:
            raise ValueError(f"category is missing; expected a number from 0 to {num_categories - 1} for each cloud")
        return torch.zeros(len(points), dtype=torch.long, device=points.device)
    if category.shape != points.shape[:1]:
        raise ValueError(f"category has shape {tuple(category.shape)}; expected ({len(points)},), one per cloud")
    return category


def check_category_parts(category_parts: Sequence[Sequence[int]] | None, num_labels: int) -> None:
    """Check the parts of each category for a part segmentation model.

    Args:
        category_parts: Part numbers of each category.
        num_labels: Number of parts of all categories.

    Raises:
        ValueError: If it is missing, a category has no parts, or a part is not among the labels.
    """
    if not category_parts or not all(category_parts):
        raise ValueError(f"category_parts={category_parts}; expected the part numbers of one category or more")
    unknown = sorted({part for parts in category_parts for part in parts} - set(range(num_labels)))
    if unknown:
        raise ValueError(f"category_parts names part {unknown[0]}; expected 0 to {num_labels - 1}")


class SemanticSegmentationMixin:
    """For models that predict an object class for every point of a scene or of a block of it."""

    accepts_loss_kwargs = False  # the loss is a mean, which Trainer divides by the accumulation steps

    # (points, condition, output_hidden_states, output_attentions) -> logits (batch, points, labels), and the output of
    # the base model.
    point_logits: Callable[..., tuple[torch.Tensor, ModelOutput]]

    @strict_forward
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
        return segmenter_output(logits, labels, output)


class PartSegmentationMixin:
    """For models that predict a part for every point of an object, given the object's category.

    A subclass checks `category_parts` of its config when it is built.
    """

    accepts_loss_kwargs = False

    config: PreTrainedConfig
    # (points, condition, output_hidden_states, output_attentions) -> logits (batch, points, parts), over the parts of
    # all categories, and the output of the base model.
    point_logits: Callable[..., tuple[torch.Tensor, ModelOutput]]
    # Categories (batch,) -> their features (batch, width), the condition of the head.
    category_features: Callable[[torch.Tensor], torch.Tensor]

    @strict_forward
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
        return segmenter_output(logits, labels, output)


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


def segmenter_output(logits: torch.Tensor, labels: torch.Tensor | None, output: Any) -> TokenClassifierOutput:
    """Return the output of a segmentation model, with the loss if there are labels.

    Args:
        logits: `(batch, points, labels)`.
        labels: `(batch, points)` class numbers, -100 for ignored points, or None.
        output: Has the `hidden_states` and `attentions` of the base model.
    """
    return TokenClassifierOutput(
        loss=point_loss(logits, labels),
        logits=logits,
        hidden_states=output.hidden_states,
        attentions=output.attentions,
    )


class PointCloudClassificationMixin:
    """For models with a `classifier` on the pooled output of their base model."""

    accepts_loss_kwargs = False  # the loss is a mean, which Trainer divides by the accumulation steps

    config: PreTrainedConfig
    base_model: PreTrainedModel
    classifier: nn.Module
    # Further keywords of the base model's forward pass.
    base_keywords: frozenset[str] = frozenset()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **base_kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify point clouds.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            labels: As `classification_loss` takes them; with them `loss` is returned.
            output_hidden_states: Whether to return the base model's hidden states; None for the config's choice.
            output_attentions: The same for its attention weights, which only eager attention returns.
            **base_kwargs: Some of `base_keywords`, as the base model takes them.

        Returns:
            `logits (batch, labels)`.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If labels and `config.problem_type` do not match; if attention weights are requested without
                eager attention.
        """
        output = self.base_model(
            points,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **check_keywords(type(self).__name__, base_kwargs, _CLASSIFIER_KEYWORDS | self.base_keywords),
        )
        return classifier_output(self.classifier(output.pooler_output), labels, self.config, output)


def classifier_output(
    logits: torch.Tensor, labels: torch.Tensor | None, config: PreTrainedConfig, output: Any
) -> SequenceClassifierOutput:
    """Return the output of a classifier, with the loss if there are labels.

    Args:
        logits: `(batch, labels)`.
        labels: As `classification_loss` takes them, or None.
        config: Config with `problem_type`.
        output: Has the `hidden_states` and `attentions` of the base model.
    """
    if labels is not None and logits.shape[-1] == 1 and config.problem_type is None:
        config.problem_type = "regression"  # recorded in the config, as transformers does
    loss = None if labels is None else classification_loss(logits, labels, config.problem_type)
    return SequenceClassifierOutput(
        loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
    )


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Compute the loss for a problem type, in full precision.

    Args:
        logits: `(batch, labels)`.
        labels: By `problem_type`. "single_label_classification": class numbers `(batch,)`, or class probabilities
            `(batch, labels)`, as of mixed clouds, for cross-entropy. "multi_label_classification": 1 for each class
            that applies and 0 for the others `(batch, labels)`, for binary cross-entropy. "regression": numbers
            `(batch, labels)`, or `(batch,)` for a single one, for the mean squared error. Clouds of class -100 are
            ignored; if all are, the loss is 0.
        problem_type: `problem_type` of the config. None is regression for one label, else single label
            classification; soft labels are therefore only treated as multi-label if the config says so.

    Raises:
        ValueError: If the labels have another shape or type.
    """
    count = logits.shape[-1]
    problem_type = problem_type or ("regression" if count == 1 else "single_label_classification")
    numbers = problem_type == "single_label_classification" and labels.ndim == 1
    squeezed = problem_type == "regression" and count == 1 and labels.shape == logits.shape[:1]
    expected = logits.shape[:1] if numbers or squeezed else logits.shape
    if labels.shape != expected or (numbers and labels.is_floating_point()):
        wanted = {
            "single_label_classification": f"class numbers ({len(logits)},) or probabilities {tuple(logits.shape)}",
            "multi_label_classification": f"zeros and ones {tuple(logits.shape)}",
            "regression": f"numbers {tuple(logits.shape)}",
        }
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype}; expected {wanted[problem_type]}, as "
            f"problem_type is {problem_type!r}"
        )
    logits = logits.float()
    if problem_type == "regression":
        return nn.functional.mse_loss(logits, labels.to(logits).view_as(logits))
    if problem_type == "multi_label_classification":
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
    if not numbers:  # class probabilities: no cloud can be marked as ignored
        return nn.functional.cross_entropy(logits, labels.to(logits))
    return mean_cross_entropy(logits, labels)
