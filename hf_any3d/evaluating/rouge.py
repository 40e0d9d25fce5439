"""ROUGE of one text against another, counted as in the published tables of point cloud captions."""

from __future__ import annotations

from collections.abc import Sequence


def rouge(text: str, reference: str) -> dict[str, float]:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L of a text against one reference, from 0 to 1.

    Sentences end at full stops and words at blanks; words are compared as written, and each counts once however often
    it stands there. ROUGE-L takes together the longest common subsequences of all pairs of sentences. A text that is
    empty, or all full stops, has 0.

    Returns:
        "rouge-1", "rouge-2" and "rouge-l".

    Source: Lin, "ROUGE"; numbers equal those of the package `rouge` 1.0.1, which differ from those of `rouge-score`:
    that one stems words and counts them as often as they stand there.
    """
    own, there = _sentences(text), _sentences(reference)
    if not own or not there:
        return {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    words, expected = sum(own, []), sum(there, [])
    scores = {}
    for order in (1, 2):
        runs, wanted = _runs(words, order), _runs(expected, order)
        scores[f"rouge-{order}"] = _f(len(runs & wanted), len(runs), len(wanted))
    common = {word for wanted in there for some in own for word in _common_subsequence(wanted, some)}
    scores["rouge-l"] = _f(len(common), len(set(words)), len(set(expected)))
    return scores


def _sentences(text: str) -> list[list[str]]:
    # Nothing but blanks between two full stops is a sentence of one empty word.
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _runs(words: Sequence[str], order: int) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(order)), strict=False))


def _f(common: int, count: int, expected: int) -> float:
    precision = common / count if count else 0.0
    recall = common / expected if expected else 0.0
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """A longest common subsequence; of several the one that the published counting finds."""
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for row, word in enumerate(first, start=1):
        for column, other in enumerate(second, start=1):
            if word == other:
                lengths[row][column] = lengths[row - 1][column - 1] + 1
            else:
                lengths[row][column] = max(lengths[row - 1][column], lengths[row][column - 1])
    found: list[str] = []
    row, column = len(first), len(second)
    while row and column:
        if first[row - 1] == second[column - 1]:
            row, column = row - 1, column - 1
            found.append(first[row])
        elif lengths[row - 1][column] > lengths[row][column - 1]:
            row -= 1
        else:
            column -= 1
    return found
