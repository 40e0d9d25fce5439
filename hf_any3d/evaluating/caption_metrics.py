"""Metrics of captions that need no judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_any3d.evaluating.bleu import bleu
from hf_any3d.evaluating.meteor import MetricUnavailableError, open_meteor
from hf_any3d.evaluating.rouge import rouge
from hf_any3d.evaluating.sentence_similarity import SENTENCE_BERT, SIMCSE, open_sentence_encoder, open_simcse

_COUNTED = {"bleu": "words between blanks, smoothed as nltk's method1", "rouge": "counted as by rouge 1.0.1"}


def caption_metrics(
    results: Sequence[Mapping[str, Any]], sentence_encoder: str | None = SENTENCE_BERT, simcse: str | None = SIMCSE
) -> dict[str, dict[str, Any]]:
    """Means over answers, times 100: BLEU, ROUGE, METEOR, and cosines of Sentence-BERT and SimCSE.

    Metrics by models are no figures of the published table unless the models are those it was made with, so each says
    what it was made with. One that cannot be had here says why, and the others are made nonetheless.

    Args:
        results: Answers, with `ground_truth`, the caption, and `model_output`; an empty one counts as "##".
        sentence_encoder: Directory or hub name for the cosines of Sentence-BERT; None leaves them out.
        simcse: The same for SimCSE.

    Returns:
        For each metric `score` and `made_with`, or `not_available`. Scores are None for no answers.

    Raises:
        ValueError: A ground truth is no text or empty.
    """
    pairs = []
    for entry in results:
        if not isinstance(entry["ground_truth"], str) or not entry["ground_truth"].strip():
            raise ValueError(f"{entry['object_id']}: ground_truth is {entry['ground_truth']!r}; expected a caption")
        pairs.append((entry["model_output"].strip() or "##", entry["ground_truth"]))
    scores: dict[str, list[float]] = {}
    for pair in pairs:
        for name, score in (bleu(*pair) | rouge(*pair)).items():
            scores.setdefault(name, []).append(score)
    told = {name: _told(values, _COUNTED[name.partition("-")[0]]) for name, values in scores.items()}

    try:
        meteor, made_with = open_meteor()
        told["meteor"] = _told([meteor(*pair) for pair in pairs], made_with)
    except MetricUnavailableError as error:
        told["meteor"] = {"not_available": str(error)}
    texts, captions = ([pair[side] for pair in pairs] for side in (0, 1))
    openers = {"sentence-bert": (open_sentence_encoder, sentence_encoder), "simcse": (open_simcse, simcse)}
    for name, (opener, encoder) in openers.items():
        if encoder is None or not pairs:
            continue
        try:
            cosines, made_with = opener(encoder)
        except (OSError, ValueError) as error:
            told[name] = {"not_available": f"{encoder}: {str(error).strip()}"}
        else:
            told[name] = _told(cosines(texts, captions).tolist(), made_with)
    return told


def _told(scores: Sequence[float], made_with: str) -> dict[str, Any]:
    return {"score": 100 * sum(scores) / len(scores) if scores else None, "made_with": made_with}
