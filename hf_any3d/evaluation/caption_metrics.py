"""Metrics of captions without a judge: BLEU, ROUGE, METEOR, and cosines of sentence encoders."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from hf_any3d.evaluation.classification import refuse_nan
from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.modeling.point_encoders.text_towers import (
    TextTower,
    TextTowerFamily,
    embed_texts,
    open_text_tower,
    text_tower_settings,
)
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart
from hf_any3d.modeling.pretrained_parts.sources import EncoderSource, resolve_encoder

SENTENCE_BERT = "sentence-transformers/all-mpnet-base-v2"
SIMCSE = "princeton-nlp/sup-simcse-roberta-large"
Similarity = Callable[[Sequence[str], Sequence[str]], np.ndarray]
# Weights of BLEU's orders; 0.33 rather than a third, as in the published figures.
_WEIGHTS = {1: 1.0, 2: 0.5, 3: 0.33, 4: 0.25}
_SMOOTHING = 0.1  # matches of an order without any
_MADE_WITH = {"bleu": "words between blanks, smoothed as nltk's method1", "rouge": "counted as by rouge 1.0.1"}


def caption_metrics(
    results: Sequence[Mapping[str, Any]], sentence_encoder: str | None = SENTENCE_BERT, simcse: str | None = SIMCSE
) -> dict[str, dict[str, Any]]:
    """Compute means over answers, times 100: BLEU, ROUGE, METEOR, and cosines of Sentence-BERT and SimCSE.

    Args:
        results: Answers, with `ground_truth`, the caption, and `model_output`; an empty one counts as "##".
        sentence_encoder: Directory or hub name for the cosines of Sentence-BERT; None leaves them out.
        simcse: The same for SimCSE.

    Returns:
        For each metric `score`, None if there are no answers, and `made_with`, the libraries and models that it was
        made with, since others give other figures than the published ones; or `not_available`, the reason.
    """
    texts = []
    captions = []
    for entry in results:
        caption = entry["ground_truth"]
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{entry['object_id']}: ground_truth is {caption!r}; expected a caption")
        # As the published program: an empty answer counts as a word that no caption has.
        texts.append(entry["model_output"].strip() or "##")
        captions.append(caption)
    scores: dict[str, list[float]] = {}
    for text, caption in zip(texts, captions, strict=True):
        for name, score in (bleu(text, caption) | rouge(text, caption)).items():
            scores.setdefault(name, []).append(score)
    metrics = {name: _mean(values, _MADE_WITH[name.partition("-")[0]]) for name, values in scores.items()}
    try:
        import nltk
        from nltk.corpus import wordnet

        made_with = f"nltk {nltk.__version__}, WordNet {wordnet.get_version()}"
        by_meteor = [meteor(text, caption, wordnet) for text, caption in zip(texts, captions, strict=True)]
    except ImportError as error:
        metrics["meteor"] = {"not_available": f"{error}; pip install nltk"}
    except LookupError:
        metrics["meteor"] = {"not_available": "nltk has no WordNet here; python -m nltk.downloader wordnet"}
    else:
        metrics["meteor"] = _mean(by_meteor, made_with)
    if texts and sentence_encoder is not None:
        metrics["sentence-bert"] = _mean_cosine(open_sentence_encoder, sentence_encoder, texts, captions)
    if texts and simcse is not None:
        metrics["simcse"] = _mean_cosine(open_simcse, simcse, texts, captions)
    return metrics


def _mean_cosine(
    opener: Callable[[str], tuple[Similarity, str]], encoder: str, texts: Sequence[str], captions: Sequence[str]
) -> dict[str, Any]:
    """Return the mean cosine of the features of answers and captions, which an encoder of sentences computes."""
    try:
        cosines, made_with = opener(encoder)
    # Without a network, or with a wrong name, the other metrics are still there.
    except (OSError, ValueError) as error:
        return {"not_available": f"{encoder}: {str(error).strip()}"}
    return _mean(cosines(texts, captions).tolist(), made_with)


def _mean(scores: Sequence[float], made_with: str) -> dict[str, Any]:
    return {"score": 100 * sum(scores) / len(scores) if scores else None, "made_with": made_with}


def _counted_ngrams(words: Sequence[str], order: int) -> Counter:
    """Count the runs of so many words."""
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def bleu(text: str, reference: str) -> dict[str, float]:
    """Compute BLEU-1 to BLEU-4 of a text against one reference, from 0 to 1.

    Words are separated by spaces and compared as written. An order without a match counts a tenth of a match; a text
    without a common word has 0 for all orders.

    Source: Papineni et al., "BLEU"; first smoothing of Chen and Cherry, "A Systematic Comparison of Smoothing
    Techniques for Sentence-Level BLEU". Numbers equal `sentence_bleu` of nltk 3.8.1 with `method1`.
    """
    words = text.split()
    expected = reference.split()
    logs = []
    for order in _WEIGHTS:
        ngrams = _counted_ngrams(words, order)
        wanted = _counted_ngrams(expected, order)
        # A repeated run counts no more often than the reference has it.
        common = (ngrams & wanted).total()
        # Without a common word the smoothing alone would give a score.
        if order == 1 and not common:
            return {f"bleu-{order}": 0.0 for order in _WEIGHTS}
        logs.append(math.log((common or _SMOOTHING) / max(1, ngrams.total())))
    # The penalty of BLEU for texts shorter than the reference
    brevity = 1.0 if len(words) > len(expected) else math.exp(1 - len(expected) / len(words))
    return {f"bleu-{order}": brevity * math.exp(weight * sum(logs[:order])) for order, weight in _WEIGHTS.items()}


def meteor(text: str, reference: str, wordnet: Any) -> float:
    """Compute METEOR, from 0 to 1, with synonyms of nltk's reader of WordNet or an object with its `synsets`.

    Words are separated by spaces, as in the published figures; they match in lower case, by stem and as synonyms.

    Source: Banerjee and Lavie, "METEOR"; nltk's `meteor_score`.
    """
    from nltk.translate.meteor_score import meteor_score

    return float(meteor_score([reference.split()], text.split(), wordnet=wordnet))


def rouge(text: str, reference: str) -> dict[str, float]:
    """Compute the F-scores of ROUGE-1, ROUGE-2 and ROUGE-L of a text against one reference, from 0 to 1.

    Sentences end at full stops and words at spaces; words are compared as written, and repeated ones count once.
    ROUGE-L unites the longest common subsequences of all pairs of sentences. A text that is empty, or all full stops,
    has 0.

    Source: Lin, "ROUGE"; numbers equal those of the package `rouge` 1.0.1 and differ from those of `rouge-score`,
    which stems words and counts repeated ones.
    """
    sentences = _sentences(text)
    expected_sentences = _sentences(reference)
    if not sentences or not expected_sentences:
        return {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    words = sum(sentences, [])
    expected = sum(expected_sentences, [])
    scores = {}
    for order in (1, 2):
        ngrams = _ngrams(words, order)
        wanted = _ngrams(expected, order)
        scores[f"rouge-{order}"] = _f_score(len(ngrams & wanted), len(ngrams), len(wanted))
    # A union over pairs of sentences, as in the version of `rouge` of the published figures.
    common: set[str] = set()
    for wanted in expected_sentences:
        for sentence in sentences:
            common.update(_common_subsequence(wanted, sentence))
    scores["rouge-l"] = _f_score(len(common), len(set(words)), len(set(expected)))
    return scores


def _sentences(text: str) -> list[list[str]]:
    # Spaces between two full stops are a sentence of one empty word.
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _ngrams(words: Sequence[str], order: int) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(order)), strict=False))


def _f_score(common: int, count: int, expected: int) -> float:
    precision = common / count if count else 0.0
    recall = common / expected if expected else 0.0
    # The small number is part of `rouge`, and so of its figures.
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return a longest common subsequence; of several the one that `rouge` 1.0.1 finds."""
    # `lengths[i][j]`: of the longest common subsequence of the first i and the first j words.
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for row, word in enumerate(first, start=1):
        for column, other in enumerate(second, start=1):
            if word == other:
                lengths[row][column] = lengths[row - 1][column - 1] + 1
            else:
                lengths[row][column] = max(lengths[row - 1][column], lengths[row][column - 1])
    common: list[str] = []
    # Back from the end; where both ways are as long, one word of `second` is left out.
    row = len(first)
    column = len(second)
    while row and column:
        if first[row - 1] == second[column - 1]:
            row = row - 1
            column = column - 1
            common.append(first[row])
        elif lengths[row - 1][column] > lengths[row][column - 1]:
            row -= 1
        else:
            column -= 1
    return common


def open_sentence_encoder(name: str) -> tuple[Similarity, str]:
    """Open a sentence encoder, with the pooling that its files name.

    Returns:
        A function from texts and as many references to their cosines, -1 to 1; and name and revision of the weights.
    """
    source = resolve_encoder(name)
    name_or_path = str(source.path if source.revision is None else source.name)
    encoder = PretrainedPart(name_or_path, source.revision, source.checksum)
    pooling = text_tower_settings(name, source.revision)["text_pooling"]
    config = Any2PointConfig(parts={"encoder": encoder.to_dict()}, text_pooling=pooling)
    return _cosines(open_text_tower(config)), _name_and_revision(source)


def open_simcse(name: str) -> tuple[Similarity, str]:
    """Open SimCSE, trained on the pooler's outputs; see `open_sentence_encoder`."""
    source = resolve_encoder(name)
    config = AutoConfig.from_pretrained(source.path)
    model, report = AutoModel.from_pretrained(source.path, dtype=torch.float32, output_loading_info=True)
    # transformers would initialize a missing pooler at random, and its cosines would mean nothing.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{source.name} lacks {', '.join(missing[:8])}; expected a trained encoder with its pooler")
    # By name and commit, since only the weights have been downloaded so far.
    name_or_path = source.path if source.revision is None else source.name
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=source.revision or "main")
    starts_after_padding = config.model_type in ("roberta", "xlm-roberta", "camembert")
    # These models number positions from the padding's id on.
    max_length = config.max_position_embeddings - (config.pad_token_id + 1 if starts_after_padding else 0)
    family = TextTowerFamily(
        name="SimCSE",
        model_types=(config.model_type,),
        model_class=None,
        text_config=lambda config: config,
        width=lambda config: config.hidden_size,
        features=lambda model, inputs, pooling: model(**inputs).pooler_output,
        max_length=lambda config: max_length,
    )
    return _cosines(TextTower(model, tokenizer, family)), _name_and_revision(source)


def _cosines(tower: TextTower) -> Similarity:
    def cosines(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
        cosines = (embed_texts(tower, texts) * embed_texts(tower, references)).sum(axis=1)
        refuse_nan(cosines)
        return cosines

    return cosines


def _name_and_revision(source: EncoderSource) -> str:
    return f"{source.name} at {source.revision or source.file_checksum}"
