"""Sizes read off the tensors of a checkpoint, and changes of shape that say what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch


def size_of(state: Mapping[str, torch.Tensor], name: str, axis: int = 0) -> int:
    """How long a tensor is along an axis, at least 1.

    Raises:
        ValueError: If there is no such tensor, it has too few axes, or none of its numbers.
    """
    if name not in state:
        raise ValueError(f"the checkpoint lacks tensors: {name}")
    if state[name].ndim <= axis:
        raise ValueError(f"{name} has shape {tuple(state[name].shape)}; expected {axis + 1} axes or more")
    if not state[name].shape[axis]:
        raise ValueError(f"{name} has shape {tuple(state[name].shape)}; expected at least 1 along axis {axis}")
    return state[name].shape[axis]


def numbers_in(state: Mapping[str, torch.Tensor], pattern: str) -> set[int]:
    """The numbers that the first group of a pattern finds at the beginning of names."""
    return {int(match[1]) for name in state if (match := re.match(pattern, name))}


def count_of(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    """One more than the highest number.

    Raises:
        ValueError: If there are gaps; a name with a large number would otherwise make a model of as many layers.
    """
    numbers = numbers_in(state, pattern)
    highest = max(numbers, default=-1)
    if len(numbers) <= highest:
        gap = next(number for number in range(highest) if number not in numbers)
        raise ValueError(
            f"the checkpoint lacks tensors: those of number {gap} of {highest + 1} where names are {pattern}"
        )
    return highest + 1


def split_rows(name: str, tensor: torch.Tensor, count: int) -> Sequence[torch.Tensor]:
    """Equal shares of the rows.

    Raises:
        ValueError: If they cannot be shared equally.
    """
    if not tensor.ndim or len(tensor) % count:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected rows in {count} equal parts")
    return tensor.tensor_split(count)


def join_rows(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows of several tensors below each other.

    Raises:
        ValueError: If their rows differ.
    """
    if any(not tensor.ndim or tensor.shape[1:] != tensors[0].shape[1:] for tensor in tensors):
        raise ValueError(f"{_shapes(names, tensors)}; expected rows of one shape")
    return torch.cat(list(tensors))


def stack(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors of one shape along a new first axis.

    Raises:
        ValueError: If their shapes differ.
    """
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        raise ValueError(f"{_shapes(names, tensors)}; expected one shape")
    return torch.stack(list(tensors))


def as_vector(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor `(1, …, 1, channels)` as `(channels,)`.

    Raises:
        ValueError: If it has another shape.
    """
    if not tensor.ndim or tensor.numel() != tensor.shape[-1]:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (1, …, 1, channels)")
    return tensor.flatten()


def as_linear(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The weight `(out, in, 1, …)` of a convolution over single points as that of a linear layer, `(out, in)`.

    Raises:
        ValueError: If the convolution reads several points.
    """
    if tensor.ndim > 2 and tensor.shape[2:].numel() != 1:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (out, in, 1), a kernel of size 1")
    return tensor.flatten(1) if tensor.ndim > 2 else tensor


def _shapes(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> str:
    return ", ".join(f"{name} has shape {tuple(tensor.shape)}" for name, tensor in zip(names, tensors, strict=True))
