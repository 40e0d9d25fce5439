"""METEOR of one text against another, where nltk and its WordNet are at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Meteor = Callable[[str, str], float]


class MetricUnavailableError(ImportError):
    """What a metric is made with is not on this machine."""


def open_meteor() -> tuple[Meteor, str]:
    """METEOR as a function of a text and its reference, from 0 to 1, and what it was made with.

    Raises:
        MetricUnavailableError: nltk or its WordNet is missing; says how to get it.
    """
    try:
        import nltk
        from nltk.corpus import wordnet
    except ImportError as error:
        raise MetricUnavailableError(f"METEOR is not available: {error}; pip install nltk") from None
    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise MetricUnavailableError(
            "METEOR is not available: nltk has no WordNet here; python -m nltk.downloader wordnet"
        ) from None
    return meteor_by(wordnet), f"nltk {nltk.__version__}, WordNet {wordnet.get_version()}"


def meteor_by(wordnet: Any) -> Meteor:
    """METEOR with a source of synonyms, nltk's reader of WordNet or one with its `synsets`.

    Words stand between blanks, as in the published figures; they match in small letters, by their stems, and as
    synonyms.

    Source: Banerjee and Lavie, "METEOR"; nltk's `meteor_score`.
    """
    from nltk.translate.meteor_score import meteor_score

    def meteor(text: str, reference: str) -> float:
        return float(meteor_score([reference.split()], text.split(), wordnet=wordnet))

    return meteor
