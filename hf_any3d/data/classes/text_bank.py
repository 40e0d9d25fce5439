"""Vectors of words that were computed elsewhere, such as names of parts, in a safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_any3d.modeling.point_encoders.part_texts import clean_label
from hf_any3d.utils.atomic_files import atomic_write


class TextBank:
    """Vectors of words that were computed once, for models whose text tower is large or cannot be opened here.

    Labels are found by their cleaned names. A file of a bank is a safetensors file with a vector `(width,)` for each
    word, named by the word.

    Raises:
        ValueError: A word is there twice, or its vector has zeros only, NaN or infinite numbers.

    Example:
        ```python
        words = ["seat", "back", "leg"]
        TextBank(dict(zip(words, model.encode_labels(words)))).save("words.safetensors")
        texts = TextBank.from_file("words.safetensors").encode(["leg", "seat"])  # (2, width)
        ```
    """

    def __init__(self, features: Mapping[str, torch.Tensor]):
        self._features: dict[str, torch.Tensor] = {}
        for label, vector in features.items():
            if clean_label(label) in self._features:
                raise ValueError(f"the text bank has {clean_label(label)!r} twice; expected each word once")
            # In float32 on the CPU, whatever model the vectors come from
            vector = vector.detach().float().cpu()
            # A vector of zeros has no direction, and cosines with it would be NaN.
            if not vector.isfinite().all() or not vector.any():
                raise ValueError(f"the text bank has {label!r} with zeros only, NaN or infinite numbers")
            self._features[clean_label(label)] = nn.functional.normalize(vector, dim=0)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> TextBank:
        """Read a bank."""
        return cls(load_file(path))

    @property
    def words(self) -> tuple[str, ...]:
        """The cleaned words."""
        return tuple(self._features)

    @property
    def width(self) -> int:
        """Channels of a vector."""
        return len(next(iter(self._features.values())))

    def __contains__(self, label: str) -> bool:
        return clean_label(label) in self._features

    def encode(self, labels: Sequence[str]) -> torch.Tensor:
        """Return unit vectors `(labels, width)` of labels.

        Raises:
            ValueError: The bank has no vector of a label; names it and those that it has.
        """
        missing = [label for label in labels if label not in self]
        if missing:
            names = ", ".join(sorted(self._features)[:20])
            raise ValueError(f"the text bank has no vector of {missing[0]!r}; it has {len(self._features)}: {names}")
        return torch.stack([self._features[clean_label(label)] for label in labels])

    def save(self, path: str | os.PathLike) -> None:
        """Write the bank to a safetensors file."""
        with atomic_write(Path(path)) as unfinished:
            # The mark by which other programs know that tensors are torch's
            save_file(self._features, unfinished, {"format": "pt"})
