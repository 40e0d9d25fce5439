"""Rename the tensors of an original checkpoint by a table of patterns, and read sizes from their shapes."""

import re
from collections.abc import Mapping, Sequence

import torch

from hf_any3d.conversions.checkpoints import check_finite, listed

# Patterns with the names that replace the match; the rest of the name is kept. A tuple of names splits a tensor along
# its first axis; None leaves it out.
Names = Mapping[str, str | tuple[str, ...] | None]


def under(theirs: str, ours: str, names: Names) -> dict[str, str | tuple[str, ...] | None]:
    """Return a table for the same tensors below a prefix.

    Args:
        theirs: The original prefix, such as `encoder.`.
        ours: Our prefix.
        names: The table.
    """
    placed: dict[str, str | tuple[str, ...] | None] = {}
    for pattern, name in names.items():
        many = tuple(ours + part for part in name) if isinstance(name, tuple) else name
        placed[f"{re.escape(theirs)}(?:{pattern})"] = ours + many if isinstance(many, str) else many
    return placed


def rename_tensors(original: Mapping[str, torch.Tensor], names: Names) -> dict[str, torch.Tensor]:
    """Rename and split tensors, and leave out those whose new name is None.

    Args:
        original: Tensors by their original names.
        names: The table; the first pattern that matches the beginning of a name counts.

    Raises:
        ValueError: A tensor belongs to no known part, two belong to the same, rows cannot be split equally, or kept
            tensors hold NaN or infinite numbers.
    """
    renamed: dict[str, torch.Tensor] = {}
    owners: dict[str, str] = {}
    kept: dict[str, torch.Tensor] = {}
    unknown, twice = [], []
    for name, tensor in original.items():
        found = next(((match, ours) for pattern, ours in names.items() if (match := re.match(pattern, name))), None)
        if found is None:
            unknown.append(name)
            continue
        match, ours = found
        if ours is None:
            continue
        kept[name] = tensor
        parts = ours if isinstance(ours, tuple) else (ours,)
        for part, piece in zip(parts, split_rows(name, tensor, len(parts)), strict=True):
            # Named groups of the pattern fill the braces in our name.
            key = part.format(**match.groupdict()) + name[match.end() :]
            if first := owners.get(key):
                twice.append(f"{first} and {name}")
            owners[key] = name
            renamed[key] = piece
    check_owners(unknown, twice)
    # Parts that are left out may hold anything.
    check_finite(kept)
    return renamed


def check_owners(unknown: list[str], twice: list[str]) -> None:
    """Check that every tensor had a place of its own.

    Raises:
        ValueError: There are names without a pattern, or pairs of names for one tensor; all are listed.
    """
    for names, problem in ((unknown, "belong to no known part"), (twice, "mean the same part")):
        if names:
            raise ValueError(f"the checkpoint holds tensors that {problem}: {listed(sorted(names))}")


def fits(original: Mapping[str, torch.Tensor], names: Names) -> bool:
    """Return whether a table has a pattern for every name."""
    return all(any(re.match(pattern, name) for pattern in names) for name in original)


def size_of(state: Mapping[str, torch.Tensor], name: str, axis: int = 0) -> int:
    """Return the length of a tensor along an axis, at least 1.

    Raises:
        ValueError: There is no such tensor, it has too few axes, or it is empty.
    """
    if name not in state:
        raise ValueError(f"the checkpoint lacks tensors: {name}")
    if state[name].ndim <= axis:
        raise ValueError(f"{name} has shape {tuple(state[name].shape)}; expected {axis + 1} axes or more")
    if not state[name].shape[axis]:
        raise ValueError(f"{name} has shape {tuple(state[name].shape)}; expected at least 1 along axis {axis}")
    return state[name].shape[axis]


def numbers_in(state: Mapping[str, torch.Tensor], pattern: str) -> set[int]:
    """Return the numbers that the first group of a pattern matches at the beginning of names."""
    return {int(match[1]) for name in state if (match := re.match(pattern, name))}


def count_of(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    """Return how many layers names are numbered by: one more than the highest number.

    Raises:
        ValueError: There are gaps; one name with a huge number would otherwise make a model with as many layers.
    """
    numbers = numbers_in(state, pattern)
    highest = max(numbers, default=-1)
    # A gap would otherwise make a model with fewer layers, or fail with a name that nobody knows.
    if len(numbers) <= highest:
        gap = next(number for number in range(highest) if number not in numbers)
        raise ValueError(
            f"the checkpoint lacks tensors: those of number {gap} of {highest + 1} where names are {pattern}"
        )
    return highest + 1


def split_rows(name: str, tensor: torch.Tensor, count: int) -> Sequence[torch.Tensor]:
    """Split the rows of a tensor into equal parts; one part is the tensor itself, of any shape.

    Raises:
        ValueError: The number of rows is not a multiple of `count`.
    """
    if count == 1:
        return (tensor,)
    if not tensor.ndim or len(tensor) % count:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected rows in {count} equal parts")
    return tensor.tensor_split(count)


def join_rows(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors along their first axis.

    Raises:
        ValueError: The other axes differ.
    """
    if any(not tensor.ndim or tensor.shape[1:] != tensors[0].shape[1:] for tensor in tensors):
        raise ValueError(f"{_shapes(names, tensors)}; expected rows of one shape")
    return torch.cat(list(tensors))


def stack(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack tensors of one shape along a new first axis.

    Raises:
        ValueError: Their shapes differ.
    """
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        raise ValueError(f"{_shapes(names, tensors)}; expected one shape")
    return torch.stack(list(tensors))


def as_vector(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Flatten a tensor `(1, …, 1, channels)` to `(channels,)`.

    Raises:
        ValueError: It has another shape.
    """
    if not tensor.ndim or tensor.numel() != tensor.shape[-1]:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (1, …, 1, channels)")
    return tensor.flatten()


def as_linear(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Turn the weight `(out, in, 1, …)` of a pointwise convolution into that of a linear layer, `(out, in)`.

    Raises:
        ValueError: The kernel is larger than 1.
    """
    if tensor.ndim > 2 and tensor.shape[2:].numel() != 1:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (out, in, 1), a kernel of size 1")
    return tensor.flatten(1) if tensor.ndim > 2 else tensor


def _shapes(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> str:
    return ", ".join(f"{name} has shape {tuple(tensor.shape)}" for name, tensor in zip(names, tensors, strict=True))
