import sys

import pytest

from hf_any3d.evaluation import caption_metrics
from hf_any3d.evaluation.caption_metrics import MetricUnavailableError, meteor_by, open_meteor

nltk = pytest.importorskip("nltk")


class Synonyms:
    """A stub of nltk's WordNet with given words."""

    def __init__(self, *groups):
        self.groups = groups

    def synsets(self, word):
        return [Group(group) for group in self.groups if word in group]


class Group:
    def __init__(self, words):
        self.words = words

    def lemmas(self):
        return [Word(word) for word in self.words]


class Word:
    def __init__(self, word):
        self.word = word

    def name(self):
        return self.word


def score(precision, recall, chunks, matches):
    """The published formula."""
    mean = 10 * precision * recall / (recall + 9 * precision)
    return mean * (1 - 0.5 * (chunks / matches) ** 3)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("a red chair", "A red chair", score(1, 1, 1, 3)),
        ("two red chairs", "red chair", score(2 / 3, 1, 1, 2)),
        ("a grand chair", "a big old chair", score(1, 3 / 4, 2, 3)),
        ("chair red", "red chair", score(1, 1, 2, 2)),
        ("a lamp.", "the lamp", 0.0),
        ("##", "the lamp", 0.0),
    ],
)
def test_words_match_as_written_by_their_stems_and_as_synonyms(text, reference, expected):
    assert meteor_by(Synonyms({"grand", "big"}))(text, reference) == pytest.approx(expected)


def test_synonyms_need_the_source():
    assert meteor_by(Synonyms())("sofa", "couch") == 0 < meteor_by(Synonyms({"sofa", "couch"}))("sofa", "couch")


def test_missing_libraries_are_reported_with_the_other_metrics(monkeypatch):
    results = [{"object_id": "a", "ground_truth": "A lamp.", "model_output": "a lamp"}]
    monkeypatch.setitem(sys.modules, "nltk", None)
    result = caption_metrics(results, None, None)
    assert "pip install nltk" in result["meteor"]["not_available"] and result["rouge-1"]["score"] > 0


def test_wordnet_is_asked_for_by_name(monkeypatch):
    from nltk.corpus import wordnet

    if "ensure_loaded" in vars(type(wordnet)):
        pytest.skip("WordNet is at hand and was read before")
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(MetricUnavailableError, match="python -m nltk.downloader wordnet"):
        open_meteor()


def test_the_metric_is_available_with_wordnet():
    try:
        meteor, made_with = open_meteor()
    except MetricUnavailableError:
        pytest.skip("no WordNet on this machine")
    assert meteor("a sofa", "a couch") > 0.9 and made_with.startswith(f"nltk {nltk.__version__}, WordNet 3")
