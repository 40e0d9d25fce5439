"""Combinations that tests try: with HF_ANY3D_ALL_PAIRS=1 all of them, otherwise enough to try each value."""

import os
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

S, V = TypeVar("S"), TypeVar("V")
ALL_PAIRS = os.environ.get("HF_ANY3D_ALL_PAIRS") == "1"


def by_turns(subjects: Iterable[S], values: Sequence[V], whole: Collection[S] = ()) -> list[tuple[S, V]]:
    """Pair each subject with one of the values by turns, those in `whole` with all of them."""
    return [
        (subject, value)
        for number, subject in enumerate(subjects)
        for turn, value in enumerate(values)
        if ALL_PAIRS or subject in whole or number % len(values) == turn
    ]


def some(values: Iterable[V], left_out: Collection[V]) -> list[V]:
    """Return the values without some that add little to the others."""
    return [value for value in values if ALL_PAIRS or value not in left_out]
