"""Rendered prompts cut into the pieces that are tokenized on their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from hf_any3d.chat.templates import PLACE_MARK


class Segment(NamedTuple):
    """A piece of a prompt.

    Attributes:
        text: What it says.
        is_place: Whether it is the place of a cloud.
        is_answer: Whether it is the model's to write.
    """

    text: str
    is_place: bool
    is_answer: bool


def cut(text: str, answers: Iterable[Sequence[int]] = ()) -> list[Segment]:
    """Cut a prompt at places of clouds and where answers begin and end.

    Args:
        text: The prompt.
        answers: First character of each answer and the one behind it.
    """
    spans = [(start, min(stop, len(text))) for start, stop in answers]
    places = [match.span() for match in re.finditer(re.escape(PLACE_MARK), text)]
    borders = sorted({0, len(text), *(border for span in (*spans, *places) for border in span)})
    return [
        Segment(
            text[start:stop],
            any(place == (start, stop) for place in places),
            any(first <= start < last for first, last in spans),
        )
        for start, stop in pairwise(borders)
    ]
