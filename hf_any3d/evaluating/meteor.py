"""METEOR of one text against another, where nltk and its WordNet are at hand."""

from __future__ import annotations

from collections.abc import Callable


class MetricUnavailableError(ImportError):
    """What a metric is made with is not on this machine."""


def open_meteor() -> tuple[Callable[[str, str], float], str]:
    """METEOR as a function of a text and its reference, from 0 to 1, and what it was made with.

    Words stand between blanks, as in the published figures.

    Raises:
        MetricUnavailableError: nltk or its WordNet is missing; says how to get it.

    Source: Banerjee and Lavie, "METEOR".
    """
    try:
        import nltk
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score
    except ImportError as error:
        raise MetricUnavailableError(f"METEOR is not available: {error}; pip install nltk") from None
    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise MetricUnavailableError(
            "METEOR is not available: nltk has no WordNet here; python -m nltk.downloader wordnet"
        ) from None

    def meteor(text: str, reference: str) -> float:
        return float(meteor_score([reference.split()], text.split()))

    return meteor, f"nltk {nltk.__version__}, WordNet {wordnet.get_version()}"
