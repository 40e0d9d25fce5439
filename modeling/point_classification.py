"""What models that classify clouds share: how pooled features become logits and a loss."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.modeling.forward_contract import honours_contract
from hf_any3d.modeling.point_labels import mean_cross_entropy


class PointCloudClassificationMixin:
    """For models with a `classifier` that reads what the model below it pooled."""

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
            labels: What `classification_loss` takes; with them `loss` is returned.
            output_hidden_states: Whether to return the hidden states of the model below the head; None for the
                config's choice.
            output_attentions: The same for its attention weights, which eager attention alone makes.

        Returns:
            `logits (batch, labels)`.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If labels and `config.problem_type` do not fit; attention weights of another attention.
        """
        below = self.base_model(
            points, output_hidden_states=output_hidden_states, output_attentions=output_attentions, return_dict=True
        )
        logits = self.classifier(below.pooler_output)
        if labels is not None and logits.shape[-1] == 1 and self.config.problem_type is None:
            self.config.problem_type = "regression"  # for those who open the model later, as transformers has it
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=below.hidden_states, attentions=below.attentions
        )


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Compare logits with labels, in full precision, as the problem has it.

    Args:
        logits: `(batch, labels)`.
        labels: By `problem_type`. "single_label_classification": class numbers `(batch,)`, or shares of the classes
            `(batch, labels)`, as mixed clouds have them, for cross-entropy. "multi_label_classification": 1 for each
            class that holds and 0 for others `(batch, labels)`, for binary cross-entropy. "regression": numbers
            `(batch, labels)`, or `(batch,)` for one, for the mean squared error. A cloud of class -100 does not
            count; where none counts, the loss is 0.
        problem_type: `problem_type` of the config. None is regression where there is one label, else single label
            classification; shares are therefore never taken for several labels unless the config says so.

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
            "single_label_classification": f"class numbers ({len(logits)},) or shares {tuple(logits.shape)}",
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
    if not numbers:  # every cloud counts: shares have no class that could be left out
        return nn.functional.cross_entropy(logits, labels.to(logits))
    return mean_cross_entropy(logits, labels)
