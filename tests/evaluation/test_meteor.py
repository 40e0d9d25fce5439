import pytest

from hf_any3d.evaluation.caption_metrics import caption_metrics, meteor

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
    assert meteor(text, reference, Synonyms({"grand", "big"})) == pytest.approx(expected)


def test_synonyms_need_the_source():
    assert meteor("sofa", "couch", Synonyms()) == 0 < meteor("sofa", "couch", Synonyms({"sofa", "couch"}))


def test_the_metric_or_the_way_to_it_is_reported_with_the_others():
    result = caption_metrics([{"object_id": "a", "ground_truth": "a couch", "model_output": "a sofa"}], None, None)
    assert result["rouge-1"]["score"] > 0
    if "not_available" in result["meteor"]:
        assert "python -m nltk.downloader wordnet" in result["meteor"]["not_available"]
    else:
        assert result["meteor"]["score"] > 90
        assert result["meteor"]["made_with"].startswith(f"nltk {nltk.__version__}, WordNet 3")
