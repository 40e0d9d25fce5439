import pytest

from hf_any3d.evaluation.llm_judge.verdicts import read_class, read_same, read_score
from tests.evaluation.cases import CASES

PARSING = CASES["judge_parsing"]


@pytest.mark.parametrize(("reply", "expected"), PARSING["open"])
def test_same_or_not_is_read_as_published(reply, expected):
    assert list(read_same(reply)) == expected


@pytest.mark.parametrize(("reply", "truth", "expected"), PARSING["closed"])
def test_classes_are_read_as_published(reply, truth, expected):
    number, label, reason = read_class(reply, 40)
    if expected[0] == "random":
        assert (number, label, reason) == (None, *expected[2:])
    else:
        assert [int(number == truth), number, label, reason] == expected


@pytest.mark.parametrize(("reply", "expected"), PARSING["caption"])
def test_scores_are_read_as_published(reply, expected):
    assert list(read_score(reply)) == expected


@pytest.mark.parametrize("reply", ["", " ", "\n", "#", "##", "###", "9" * 5000 + "#chair#x", "40#chair#x", "7#car"])
def test_malformed_replies_are_invalid(reply):
    assert read_same(reply).verdict == "INVALID"
    assert read_class(reply, 40)[:2] == (None, "INVALID")
    if not reply.startswith(("40", "7")):
        assert read_score(reply).score == -1


def test_the_first_of_several_answers_counts():
    assert read_class("perhaps 3#bed#soft\n4#bench#hard", 40)[:2] == (3, "bed")
    assert read_score("I say 20#little, later 30#more") == (20, "little, later 30")
    assert read_same("\n  t # both are cars").verdict == "T"
