"""Sizes read off the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch


def size_of(state: Mapping[str, torch.Tensor], name: str, axis: int = 0) -> int:
    """How long a tensor is along an axis.

    Raises:
        ValueError: If there is no such tensor, or it has too few axes.
    """
    if name not in state:
        raise ValueError(f"the checkpoint lacks tensors: {name}")
    if state[name].ndim <= axis:
        raise ValueError(f"{name} has shape {tuple(state[name].shape)}; expected {axis + 1} axes or more")
    return state[name].shape[axis]


def numbers_in(state: Mapping[str, torch.Tensor], pattern: str) -> set[int]:
    """The numbers that the first group of a pattern finds at the beginning of names."""
    return {int(match[1]) for name in state if (match := re.match(pattern, name))}


def count_of(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    """One more than the highest number; gaps are told where all tensors are compared with the model's."""
    return max(numbers_in(state, pattern), default=-1) + 1
