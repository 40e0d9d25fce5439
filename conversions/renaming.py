"""Renaming the tensors of an original checkpoint by a table of patterns."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from hf_any3d.conversions.checkpoints import check_finite, listed
from hf_any3d.conversions.shapes import split_rows

# Patterns with the names that they become, to which is added what stands behind the match. A tuple of names splits a
# tensor along its first axis; None leaves it out.
Names = Mapping[str, str | tuple[str, ...] | None]


def under(theirs: str, ours: str, names: Names) -> dict[str, str | tuple[str, ...] | None]:
    """A table for the same tensors where they stand below a prefix.

    Args:
        theirs: The original prefix, such as `encoder.`.
        ours: What stands in front of our names instead.
        names: The table.
    """
    placed: dict[str, str | tuple[str, ...] | None] = {}
    for pattern, name in names.items():
        many = tuple(ours + part for part in name) if isinstance(name, tuple) else name
        placed[f"{re.escape(theirs)}(?:{pattern})"] = ours + many if isinstance(many, str) else many
    return placed


def rename_tensors(original: Mapping[str, torch.Tensor], names: Names) -> dict[str, torch.Tensor]:
    """Rename and split tensors, and leave out those that the table gives no name.

    Args:
        original: Tensors by their original names.
        names: The table; the first pattern that matches the beginning of a name counts.

    Raises:
        ValueError: If a tensor belongs to no known part, two belong to the same, rows cannot be split equally, or
            there are NaN or infinite numbers in what is kept.
    """
    renamed: dict[str, torch.Tensor] = {}
    owners: dict[str, str] = {}
    kept: dict[str, torch.Tensor] = {}
    unknown, twice = [], []
    for name, tensor in original.items():
        match, ours = next(
            ((match, ours) for pattern, ours in names.items() if (match := re.match(pattern, name))), (None, None)
        )
        if match is None:
            unknown.append(name)
        if ours is None:
            continue
        kept[name] = tensor
        parts = ours if isinstance(ours, tuple) else (ours,)
        for part, piece in zip(
            parts, split_rows(name, tensor, len(parts)) if len(parts) > 1 else (tensor,), strict=True
        ):
            key = part.format(**match.groupdict()) + name[match.end() :]
            if first := owners.get(key):
                twice.append(f"{first} and {name}")
            owners[key] = name
            renamed[key] = piece
    if unknown:
        raise ValueError(f"the checkpoint holds tensors that belong to no known part: {listed(sorted(unknown))}")
    if twice:
        raise ValueError(f"the checkpoint holds tensors that mean the same part: {listed(sorted(twice))}")
    check_finite(kept)
    return renamed


def fits(original: Mapping[str, torch.Tensor], names: Names) -> bool:
    """Whether a table knows all names."""
    return all(any(re.match(pattern, name) for pattern in names) for name in original)
