"""The page of an evaluation: the worst scans first, and how many of the surest answers are right."""

import numpy as np
import pytest

from hf_any3d.visualization.evaluation_page import coverage_curve, worst_first


def scans_of(answers, scores):
    return [{"true": "ball", "answer": answer, "score": score} for answer, score in zip(answers, scores, strict=True)]


def test_sure_mistakes_come_first_and_sure_right_answers_last():
    scans = scans_of(["ball", "cone", "ball", "cone", "ball"], [0.9, 0.4, 0.5, 0.8, 0.7])
    assert worst_first(scans) == [3, 1, 2, 4, 0]


@pytest.mark.parametrize("count", [10, 57, 3000])
def test_the_curve_ends_at_the_accuracy_of_all_answers_and_falls_where_scores_are_right(count):
    generator = np.random.default_rng(count)
    scores = generator.random(count)
    answers = np.where(generator.random(count) < scores, "ball", "cone")
    shares, accuracies = coverage_curve(scans_of(answers, scores))
    assert shares[-1] == 100 and accuracies[-1] == pytest.approx(100 * np.mean(answers == "ball"))
    assert len(shares) <= 100 and np.all(np.diff(shares) > 0)
    assert accuracies[0] >= accuracies[-1]
