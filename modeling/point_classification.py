"""Forward pass and loss of point cloud classification models."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.modeling.forward_contract import honours_contract
from hf_any3d.modeling.point_labels import mean_cross_entropy


class PointCloudClassificationMixin:
    """For models with a `classifier` on the pooled output of their base model."""

    config: PreTrainedConfig
    base_model: PreTrainedModel
    classifier: nn.Module

    @honours_contract
    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify point clouds.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            labels: As `classification_loss` takes them; with them `loss` is returned.
            output_hidden_states: Whether to return the base model's hidden states; None for the config's choice.
            output_attentions: The same for its attention weights, which only eager attention returns.

        Returns:
            `logits (batch, labels)`.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If labels and `config.problem_type` do not match; if attention weights are requested without
                eager attention.
        """
        output = self.base_model(
            points, output_hidden_states=output_hidden_states, output_attentions=output_attentions, return_dict=True
        )
        logits = self.classifier(output.pooler_output)
        if labels is not None and logits.shape[-1] == 1 and self.config.problem_type is None:
            self.config.problem_type = "regression"  # recorded in the config, as transformers does
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
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
