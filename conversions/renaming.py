"""Rename the tensors of an original checkpoint by a table of patterns, and read sizes from their shapes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from hf_any3d.conversions.tensor_checks import check_finite, listed

# Patterns with the names that replace the match; the rest of the name is kept. A tuple of names splits a tensor along
# its first axis; None leaves it out.
Names = Mapping[str, str | tuple[str, ...] | None]


HEAD: Names = {r"0\.": "hidden.0.", r"1\.": "norms.0.", r"4\.": "hidden.1.", r"5\.": "norms.1.", r"8\.": "out."}
"""The head of classifiers that start from Point-BERT's program, two hidden layers."""


def under(theirs: str, ours: str, names: Names) -> dict[str, str | tuple[str, ...] | None]:
    """Return a table for the same tensors below a prefix."""
    placed: dict[str, str | tuple[str, ...] | None] = {}
    for pattern, name in names.items():
        below = f"{re.escape(theirs)}(?:{pattern})"
        if name is None:
            placed[below] = None
        elif isinstance(name, tuple):
            placed[below] = tuple(ours + part for part in name)
        else:
            placed[below] = ours + name
    return placed


def matches_some(pattern: str, names: Iterable[str]) -> bool:
    """Return whether a pattern matches the beginning of some name."""
    return any(re.match(pattern, name) for name in names)


def is_left_out(name: str, names: Names) -> bool:
    """Return whether `rename_tensors` leaves out a tensor of this name."""
    found = _first_match(name, names)
    return found is not None and found[1] is None


def count_left_out(original: Mapping[str, torch.Tensor], names: Names) -> dict[str, int]:
    """Count the tensors that `rename_tensors` leaves out, by the first word of their names."""
    counts: Counter[str] = Counter()
    for name in original:
        if is_left_out(name, names):
            counts[name.partition(".")[0]] += 1
    return dict(counts)


def rename_tensors(original: Mapping[str, torch.Tensor], names: Names) -> dict[str, torch.Tensor]:
    """Rename and split tensors by the first pattern that matches the beginning of their name, or leave them out."""
    renamed: dict[str, torch.Tensor] = {}
    owners: dict[str, str] = {}
    kept: dict[str, torch.Tensor] = {}
    unknown = []
    twice = []
    for name, tensor in original.items():
        found = _first_match(name, names)
        if found is None:
            unknown.append(name)
            continue
        match, ours = found
        # Known, and not needed.
        if ours is None:
            continue
        kept[name] = tensor
        parts = ours if isinstance(ours, tuple) else (ours,)
        # Parts of equal height, such as queries, keys and values of one matrix.
        pieces = tensor.tensor_split(len(parts)) if len(parts) > 1 else (tensor,)
        for part, piece in zip(parts, pieces, strict=True):
            # Named groups of the pattern fill the braces in our name.
            key = part.format(**match.groupdict()) + name[match.end() :]
            # Two tensors under one name: one of them would be lost without a word.
            first = owners.get(key)
            if first:
                twice.append(f"{first} and {name}")
            owners[key] = name
            renamed[key] = piece
    for unplaced, problem in ((unknown, "belong to no known part"), (twice, "mean the same part")):
        if unplaced:
            raise ValueError(f"the checkpoint holds tensors that {problem}: {listed(sorted(unplaced))}")
    # Parts that are left out may hold anything.
    check_finite(kept)
    return renamed


def fits(original: Mapping[str, torch.Tensor], names: Names) -> bool:
    """Return whether a table has a pattern for every name."""
    return all(_first_match(name, names) is not None for name in original)


def _first_match(name: str, names: Names) -> tuple[re.Match[str], str | tuple[str, ...] | None] | None:
    """Return the match of the first pattern of a table that fits a name, and what replaces it; None if none fits."""
    for pattern, ours in names.items():
        match = re.match(pattern, name)
        if match is not None:
            return match, ours
    return None


def numbers_in(state: Mapping[str, torch.Tensor], pattern: str) -> set[int]:
    """Return the numbers that the first group of a pattern matches at the beginning of names."""
    numbers = set()
    for name in state:
        match = re.match(pattern, name)
        if match is not None:
            numbers.add(int(match[1]))
    return numbers


def count_of(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    """Return how many layers names are numbered by; a gap is found when names are compared with a model's."""
    return len(numbers_in(state, pattern))


def heads_of(width: int, heads: int | None = None, head_width: int = 64) -> int:
    """Return the number of attention heads, which no tensor shows; by default those of the released models' width."""
    if width % (heads or head_width):
        raise ValueError(
            f"the number of attention heads is unknown, as a width of {width} is not a multiple of "
            f"{heads or head_width}; give num_attention_heads, where the original program has others"
        )
    return heads or width // head_width


def as_vector(tensor: torch.Tensor) -> torch.Tensor:
    """Flatten a tensor `(1, …, 1, channels)` to `(channels,)`."""
    return tensor.reshape(tensor.shape[-1])


def as_linear(tensor: torch.Tensor) -> torch.Tensor:
    """Turn the weight `(out, in, 1, …)` of a pointwise convolution into that of a linear layer, `(out, in)`."""
    return tensor.reshape(tensor.shape[:2]) if tensor.ndim > 2 else tensor
