from itertools import combinations, permutations

import pytest

from hf_any3d.evaluation.caption_metrics import bleu, rouge
from tests.evaluation.cases import CASES


@pytest.mark.parametrize("case", CASES["metrics"], ids=lambda case: case["model_output"] or "empty")
def test_published_counting(case):
    text = case["model_output"] or "##"
    scores = bleu(text, case["ground_truth"]) | rouge(text, case["ground_truth"])
    assert {name: 100 * score for name, score in scores.items()} == pytest.approx(case["scores"], rel=1e-12)


# Numbers of nltk 3.8.1 and rouge 1.0.1.
OTHERS = [
    (
        "a red car with a red roof. it is a toy.",
        "A toy car, red. It has a roof.",
        {
            "bleu-1": 0.18181818181818182,
            "bleu-2": 0.042640143271122095,
            "bleu-3": 0.028234511901075607,
            "bleu-4": 0.022416933501922302,
            "rouge-1": 0.4999999950000001,
            "rouge-2": 0.0,
            "rouge-l": 0.4999999950000001,
        },
    ),
    (
        "the chair the chair the chair",
        "the chair is the best chair",
        {
            "bleu-1": 0.6666666666666666,
            "bleu-2": 0.36514837167011077,
            "bleu-3": 0.1522474354853864,
            "bleu-4": 0.10266900960803409,
            "rouge-1": 0.6666666622222223,
            "rouge-2": 0.2857142816326531,
            "rouge-l": 0.6666666622222223,
        },
    ),
    (
        "a table . . with four legs",
        "four legs with a table.",
        {
            "bleu-1": 0.5714285714285714,
            "bleu-2": 0.3086066999241838,
            "bleu-3": 0.12657485247324374,
            "bleu-4": 0.08307018474412793,
            "rouge-1": 0.9090909041322315,
            "rouge-2": 0.4444444395061729,
            "rouge-l": 0.7272727223140496,
        },
    ),
    (
        "chair",
        "a wooden chair with a long back and two arms",
        {
            "bleu-1": 0.00012340980408667956,
            "bleu-2": 3.902560665090632e-05,
            "bleu-3": 2.6999123339997023e-05,
            "bleu-4": 2.1945711360427958e-05,
            "rouge-1": 0.1999999982,
            "rouge-2": 0.0,
            "rouge-l": 0.1999999982,
        },
    ),
]


@pytest.mark.parametrize(("text", "reference", "expected"), OTHERS, ids=lambda value: str(value)[:30])
def test_numbers_of_the_packages_that_made_the_published_tables(text, reference, expected):
    assert bleu(text, reference) | rouge(text, reference) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("text", ["", ".", "...", " ", "\n"])
def test_texts_without_words_score_nothing(text):
    assert set((bleu(text, "a chair.") | rouge(text, "a chair.")).values()) == {0.0}
    assert set((bleu("a chair.", text) | rouge("a chair.", text)).values()) == {0.0}


def test_rouge_l_goes_by_a_longest_common_subsequence():
    words = ("a", "chair", "with", "four", "legs")
    for order in permutations(words):
        longest = max(n for n in range(6) for part in combinations(order, n) if part in set(combinations(words, n)))
        assert rouge(" ".join(order), " ".join(words))["rouge-l"] == pytest.approx(longest / 5), order
