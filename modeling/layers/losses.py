"""Losses of classification and segmentation heads."""

import torch
from torch import nn
from transformers import PreTrainedConfig

from hf_any3d.modeling.config_checks import check_numbers

IGNORED = -100
"""Label of rows and points that do not count."""


def point_loss(logits: torch.Tensor, labels: torch.Tensor | None, lovasz_weight: float = 0.0) -> torch.Tensor | None:
    """Mean cross-entropy of `(batch, points, labels)` logits over all points whose label is not -100.

    With a weight, so many times the `lovasz_softmax` of these points is added. If all labels are -100, as in an
    unlabeled block of a scene, the loss and its gradient are 0.
    """
    if labels is None:
        return None
    check_numbers(0, lovasz_weight=lovasz_weight)
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected {tuple(logits.shape[:2])}, one per point")
    logits = logits.flatten(0, 1)
    labels = labels.flatten()
    loss = mean_cross_entropy(logits, labels)
    return loss + lovasz_weight * lovasz_softmax(logits, labels) if lovasz_weight else loss


def lovasz_softmax(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Smooth surrogate of one minus the mean intersection over union of the classes that occur.

    Logits are `(rows, labels)`, labels `(rows,)`; rows of -100 are left out, and without any other the loss is 0.

    Source: Berman et al., The Lovász-Softmax loss (2018), Alg. 1.
    """
    # Only classes that occur count; the softmax is over all of them.
    kept = labels != IGNORED
    probabilities = logits[kept].float().softmax(dim=1)
    labels = labels[kept]
    # A zero with a gradient, for batches without labels.
    losses = [logits.float().sum() * 0]
    for number in labels.unique().tolist():
        is_class = (labels == number).float()
        # The surrogate weighs errors by rank, the largest first.
        errors, order = (is_class - probabilities[:, number]).abs().sort(descending=True)
        hits = is_class[order]
        total = hits.sum()
        # The Jaccard loss if the errors up to each rank were the only ones.
        jaccard = 1 - (total - hits.cumsum(0)) / (total + (1 - hits).cumsum(0))
        losses.append(errors @ jaccard.diff(prepend=jaccard.new_zeros(1)))
    # The zero is no class.
    return torch.stack(losses).sum() / max(len(losses) - 1, 1)


def mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of `(rows, labels)` logits over the rows whose label is not -100; 0 if there are none.

    Torch's own mean is NaN then, and one such batch would make all weights NaN.
    """
    try:
        # In float32: half precision cannot represent probabilities near 1.
        total = nn.functional.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORED, reduction="sum")
    except IndexError as error:
        raise ValueError(f"labels: {error} Expected 0 to {logits.shape[-1] - 1} (num_labels), or -100") from error
    return total / (labels != IGNORED).sum().clamp(min=1)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor | None, config: PreTrainedConfig
) -> torch.Tensor | None:
    """Compute the loss of logits `(batch, labels)` for the config's `problem_type`, in full precision.

    - "single_label_classification": cross-entropy of class numbers `(batch,)`, of which -100 is ignored, or of class
      probabilities `(batch, labels)`, as of mixed clouds.
    - "multi_label_classification": binary cross-entropy of zeros and ones `(batch, labels)`.
    - "regression": mean squared error of numbers `(batch, labels)`, or `(batch,)` for a single one.
    - None: regression for one label, which is recorded in the config, else single label classification.
    """
    if labels is None:
        return None
    count = logits.shape[-1]
    if count == 1 and config.problem_type is None:
        config.problem_type = "regression"  # kept in the config, as transformers does
    problem_type = config.problem_type or "single_label_classification"
    # Numbers of classes have one axis less than logits.
    is_numbers = problem_type == "single_label_classification" and labels.ndim == 1
    # A single number per cloud needs no axis of its own.
    is_squeezed = problem_type == "regression" and count == 1 and labels.shape == logits.shape[:1]
    expected = logits.shape[:1] if is_numbers or is_squeezed else logits.shape
    # Broadcasting could make a loss of another shape.
    if labels.shape != expected or (is_numbers and labels.is_floating_point()):
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
    if labels.ndim != 1:  # class probabilities: no cloud can be marked as ignored
        return nn.functional.cross_entropy(logits, labels.to(logits))
    return mean_cross_entropy(logits, labels)
