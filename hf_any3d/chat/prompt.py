"""A prompt as token ids, and many of them as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

IGNORED = -100
SIDES = ("left", "right")


@dataclass
class Prompt:
    """One conversation, ready for the model.

    Attributes:
        input_ids: Token ids, with places for clouds.
        attention_mask: 0 where a token is hidden.
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
    """Put prompts of any lengths into arrays.

    Args:
        prompts: The prompts.
        pad_token_id: Fills up short ones.
        side: "left", as generation wants it, or "right", as training does.
        least: Tokens that a row has at least.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each `(prompts, tokens)` int64.

    Raises:
        ValueError: If the side is another.
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
