"""Verdicts about single answers, and the published figures over all of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hf_any3d.evaluating.replies import INVALID, read_class, read_same, read_score


def verdict_on(
    kind: str, reply: str, entry: Mapping[str, Any], classes: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """What a judge's reply says about one answer.

    An invalid class is replaced by a random one, which depends on the seed and the object alone: judging in another
    order, or in two goes, draws the same.

    Args:
        kind: Of the protocol.
        reply: What the judge wrote.
        entry: The answer, with `object_id` and `ground_truth`.
        classes: Names of the classes, for "class".
        seed: Governs random classes.

    Returns:
        `score`, `reason` and `is_valid`; for "class" also `class` and `class_name`.
    """
    if kind == "same":
        same = read_same(reply)
        return {"score": same.score, "reason": same.reason, "is_valid": same.verdict != INVALID}
    if kind == "caption":
        share = read_score(reply)
        return {"score": share.score, "reason": share.reason, "is_valid": share.score >= 0}
    found = read_class(reply, len(classes))
    number = found.number
    if number is None:
        number = random.Random(f"{seed} {entry['object_id']}").randrange(len(classes))
    return {
        "score": int(number == entry["ground_truth"]),
        "class": number,
        "class_name": classes[number],
        "reason": found.reason,
        "is_valid": found.number is not None,
    }


def figures(kind: str, verdicts: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """The figures of a protocol, in percent; None where nothing is left to divide by.

    - "class": `accuracy`, correct answers of all, lucky ones among them; `clean_accuracy`, without the invalid ones,
      some of which (`lucky`) the random class made correct.
    - "same": `accuracy`, correct answers of the valid ones.
    - "caption": `score`, the mean over the valid ones.

    Each with `total` and `invalid`.

    Source: the published protocols of PointLLM and MiniGPT-3D.
    """
    valid = [verdict["score"] for verdict in verdicts if verdict["is_valid"]]
    counts: dict[str, float | int | None] = {"total": len(verdicts), "invalid": len(verdicts) - len(valid)}
    share = 100 * sum(valid) / len(valid) if valid else None
    if kind == "same":
        return {"accuracy": share, "correct": sum(valid), **counts}
    if kind == "caption":
        return {"score": sum(valid) / len(valid) if valid else None, **counts}
    correct = sum(verdict["score"] for verdict in verdicts)
    accuracy = 100 * correct / len(verdicts) if verdicts else None
    lucky = correct - sum(valid)
    return {"accuracy": accuracy, "clean_accuracy": share, "correct": correct, "lucky": lucky, **counts}
