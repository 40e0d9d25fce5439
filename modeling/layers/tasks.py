"""Parts that an object of each category can have, and checks of categories and settings of heads."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig


def part_mask(category_parts: Sequence[Sequence[int]], num_parts: int, category: torch.Tensor) -> torch.Tensor:
    """Return which parts an object of each category can have, `(batch, parts)` bool on the device of `category`."""
    # (categories, parts)
    table = torch.zeros(len(category_parts), num_parts, dtype=torch.bool)
    for number, parts in enumerate(category_parts):
        table[number, list(parts)] = True
    return table.to(category.device)[category]


def restrict_to_parts(
    logits: torch.Tensor, category_parts: Sequence[Sequence[int]], category: torch.Tensor
) -> torch.Tensor:
    """Set logits `(batch, points, parts)` of other categories' parts to the lowest value of their dtype."""
    # Not -inf, with which a label of another category would make the loss infinite.
    foreign = ~part_mask(category_parts, logits.shape[-1], category).unsqueeze(1)  # (batch, 1, parts)
    return logits.masked_fill(foreign, torch.finfo(logits.dtype).min)


def checked_category(category: torch.Tensor | None, points: torch.Tensor, num_categories: int) -> torch.Tensor:
    """Return the categories `(batch,)` of clouds; optional if there is only one category."""
    if category is None and num_categories == 1:
        return torch.zeros(len(points), dtype=torch.long, device=points.device)
    # A single number would be broadcast to all clouds.
    if category is None or category.shape != points.shape[:1]:
        got = "is missing" if category is None else f"has shape {tuple(category.shape)}"
        raise ValueError(f"category {got}; expected ({len(points)},), from 0 to {num_categories - 1} for each cloud")
    return category


def check_categories(config: Any) -> None:
    """Check the parts and the name of each category for a part segmentation model."""
    category_parts = config.category_parts
    names = config.category_names
    numbers = set(range(config.num_labels))
    if not category_parts or not all(parts and numbers.issuperset(parts) for parts in category_parts):
        raise ValueError(
            f"category_parts={category_parts}; expected some part numbers, 0 to {len(numbers) - 1}, for each category"
        )
    if names is not None and len(names) != len(category_parts):
        raise ValueError(f"category_names={list(names)}; expected {len(category_parts)} names, one for each category")


def refuse_problem_type(config: PreTrainedConfig) -> None:
    """Reject a `problem_type` that models with one label per point do not support."""
    if config.problem_type not in (None, "single_label_classification"):
        raise ValueError(f"problem_type={config.problem_type!r}; expected None: every point has one label")
