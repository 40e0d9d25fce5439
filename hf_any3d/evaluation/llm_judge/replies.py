"""What judges' replies say: whatever a language model writes becomes a verdict, or is told to be none."""

from __future__ import annotations

import re
from typing import NamedTuple

INVALID = "INVALID"
# Tried at the first of several digits alone, so that a reply of a million takes no hours.
_CLASS = re.compile(r"(?<!\d)\d+#[^#]*#.*")
_SCORE = re.compile(r"(?<!\d)\d*#.*")


class SameVerdict(NamedTuple):
    """Whether two texts name the same kind of object.

    Attributes:
        score: 1 for the same, 0 otherwise.
        verdict: "T", "F" or "INVALID".
        reason: What the judge says about it; the whole reply where it is invalid.
    """

    score: int
    verdict: str
    reason: str


class ClassVerdict(NamedTuple):
    """Which class a text speaks of.

    Attributes:
        number: Of the class; None where the reply is invalid.
        label: The class as the judge wrote it, or "INVALID".
        reason: What the judge says about it.
    """

    number: int | None
    label: str
    reason: str


class ScoreVerdict(NamedTuple):
    """How much of a caption a text mentions.

    Attributes:
        score: 0 to 100; -1 where the reply is invalid.
        reason: What the judge says about it; the whole reply where it is invalid.
    """

    score: int
    reason: str


def whole_text(reply: str) -> str:
    """A reply that any file takes: halves of characters (lone surrogates) become the mark for what is unreadable."""
    return reply.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_same(reply: str) -> SameVerdict:
    """Read `T#reason` or `F#reason`: the first letter counts, in either case."""
    reply = reply.lstrip()
    letter = reply[:1].upper()
    if letter not in ("T", "F"):
        return SameVerdict(0, INVALID, reply)
    return SameVerdict(int(letter == "T"), letter, reply[2:])


def read_class(reply: str, num_classes: int) -> ClassVerdict:
    """Read the first `number#class#reason` in a reply; a class "NA" or a number that is none of them is invalid."""
    found = _CLASS.search(reply)
    if found is None:
        return ClassVerdict(None, INVALID, reply.strip())
    number, label, reason = (part.strip() for part in found.group().split("#")[:3])
    # Longer than any class is told by its length: Python refuses to read numbers of thousands of digits.
    if len(number) > 9 or int(number) >= num_classes or label == "NA":
        return ClassVerdict(None, INVALID, found.group().strip())
    return ClassVerdict(int(number), label, reason)


def read_score(reply: str) -> ScoreVerdict:
    """Read the first `score#reason` in a reply; a score that is not 0 to 100 is invalid."""
    found = _SCORE.search(reply)
    if found is None:
        return ScoreVerdict(-1, reply.strip())
    score, reason = (part.strip() for part in found.group().split("#")[:2])
    if not score or len(score) > 9 or int(score) > 100:
        return ScoreVerdict(-1, found.group().strip())
    return ScoreVerdict(int(score), reason)
