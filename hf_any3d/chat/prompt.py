"""Prompts as token ids, and their padding to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

IGNORED = -100
SIDES = ("left", "right")


@dataclass
class Prompt:
    """One conversation as input of the model.

    Attributes:
        input_ids: Token ids, with point tokens in the places of clouds.
        attention_mask: 0 for hidden tokens.
        labels: The ids of answers, -100 elsewhere.
        points: Its clouds, each `(points, channels)` float32, in the order of their places.
    """

    input_ids: list[int] = field(default_factory=list)
    attention_mask: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)

    def add(self, ids: Sequence[int], is_answer: bool = False) -> None:
        """Append tokens."""
        self.input_ids += ids
        self.attention_mask += [1] * len(ids)
        self.labels += ids if is_answer else [IGNORED] * len(ids)

    def shorten(self, length: int) -> None:
        """Keep the first `length` tokens."""
        for values in (self.input_ids, self.attention_mask, self.labels):
            del values[length:]


def pad_prompts(prompts: Sequence[Prompt], pad_token_id: int, side: str, least: int = 0) -> dict[str, np.ndarray]:
    """Pad prompts to arrays.

    Args:
        prompts: The prompts.
        pad_token_id: Id of the padding token.
        side: "left" for generation or "right" for training.
        least: Minimum number of tokens per row.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each `(prompts, tokens)` int64.

    Raises:
        ValueError: The side is unknown.
    """
    if side not in SIDES:
        raise ValueError(f"padding_side={side!r}; expected 'left' or 'right'")
    length = max(least, *(len(prompt.input_ids) for prompt in prompts))
    arrays = {}
    for name, fill in (("input_ids", pad_token_id), ("attention_mask", 0), ("labels", IGNORED)):
        arrays[name] = np.full((len(prompts), length), fill, dtype=np.int64)
        for row, prompt in zip(arrays[name], prompts, strict=True):
            values = getattr(prompt, name)
            start = length - len(values) if side == "left" else 0
            row[start : start + len(values)] = values
    return arrays
