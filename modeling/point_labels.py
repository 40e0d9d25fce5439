"""What models that name every point share: their loss, and which parts an object of a category has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

IGNORED = -100


def point_loss(logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
    """Mean cross-entropy of `(batch, points, labels)` logits over all points whose label is not -100.

    Where no label counts, as in a block of a scene that nobody has labelled, the loss is 0, and so is its gradient.

    Raises:
        ValueError: If there is not one label for each point.
    """
    if labels is None:
        return None
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected {tuple(logits.shape[:2])}, one a point")
    return mean_cross_entropy(logits.flatten(0, 1), labels.flatten())


def mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of `(rows, labels)` logits over the rows whose label is not -100; 0 where there is none.

    Torch's own mean is NaN there, and one such batch makes all weights NaN.
    """
    # In float32: probabilities near 1 have no digits left in half precision.
    total = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def part_mask(category_parts: Sequence[Sequence[int]], num_parts: int, category: torch.Tensor) -> torch.Tensor:
    """Which parts an object of a category can have.

    Args:
        category_parts: For each category its part numbers.
        num_parts: Parts of all categories.
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
    """Make logits `(batch, points, parts)` of other categories' parts as low as the number type allows."""
    foreign = ~part_mask(category_parts, logits.shape[-1], category).unsqueeze(1)  # (batch, 1, parts)
    return logits.masked_fill(foreign, torch.finfo(logits.dtype).min)


def checked_category(category: torch.Tensor | None, points: torch.Tensor, num_categories: int) -> torch.Tensor:
    """The categories `(batch,)` of clouds; where there is but one, it need not be told.

    Raises:
        ValueError: If the category is missing or has another shape.
    """
    if category is None:
        if num_categories > 1:
            raise ValueError(f"category is missing; expected a number from 0 to {num_categories - 1} for each cloud")
        return torch.zeros(len(points), dtype=torch.long, device=points.device)
    if category.shape != points.shape[:1]:
        raise ValueError(f"category has shape {tuple(category.shape)}; expected ({len(points)},), one a cloud")
    return category


def check_category_parts(category_parts: Sequence[Sequence[int]] | None, num_labels: int) -> None:
    """Refuse a table of parts that a part segmentation model cannot use.

    Args:
        category_parts: For each category its part numbers.
        num_labels: Parts of all categories.

    Raises:
        ValueError: If it is missing, a category has no part, or a part is no label.
    """
    if not category_parts or not all(category_parts):
        raise ValueError(f"category_parts={category_parts}; expected the part numbers of one category or more")
    unknown = sorted({part for parts in category_parts for part in parts} - set(range(num_labels)))
    if unknown:
        raise ValueError(f"category_parts names part {unknown[0]}; expected 0 to {num_labels - 1}")
