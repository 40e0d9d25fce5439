"""How sure an accuracy on few scans is, in numbers and words."""

import numpy as np
import pytest

from hf_any3d.evaluation.statistics import wilson_interval
from hf_any3d.training.few_scans.estimate import Estimate
from hf_any3d.training.few_scans.plan import MOST_SCANS, TABLE, plan_for

NAMES = ["ball", "cone", "stick"]


def test_the_interval_is_wilsons():
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, Table I.
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(right, total) == pytest.approx((low, high), abs=1e-4)
    assert wilson_interval(29, 29)[1] == 1.0
    assert wilson_interval(0, 1)[0] == 0 and wilson_interval(1, 1)[1] == 1
    # With one deviation of the mean it is narrower: the roots of (share - p)^2 = deviations^2 p (1 - p) / total.
    for deviations in (1.0, 2.5):
        low, high = wilson_interval(3, 10, deviations)
        for root in (low, high):
            assert (0.3 - root) ** 2 == pytest.approx(deviations**2 * root * (1 - root) / 10)
        assert low < 0.3 < high


@pytest.fixture
def estimate() -> Estimate:
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    predicted = np.array([0, 0, 1, 2, 2, 2, 0])
    logits = np.eye(3)[predicted] * 4
    logits[-1] = np.nan  # was never held out
    return Estimate.from_logits(logits, labels, NAMES, "cross-validation in 2 folds")


def test_rows_that_were_never_held_out_do_not_count(estimate):
    assert (estimate.right, estimate.total) == (3, 6)
    assert estimate.metrics()["accuracy"] == 0.5 and estimate.metrics()["clouds"] == 6
    assert estimate.class_accuracy() == pytest.approx({"ball": 2 / 3, "cone": 0, "stick": 1})
    right, wrong = np.log(np.exp(4) + 2) - 4, np.log(np.exp(4) + 2)
    assert estimate.loss == pytest.approx((3 * right + 3 * wrong) / 6)


def test_words_name_counts_interval_and_confused_classes(estimate):
    assert estimate.text() == "50 % (3 of 6 scans; 95 % interval 19 to 81 %)"
    assert estimate.confusion_text() == (
        "cone predicted as stick (2), ball predicted as cone (1); more scans of cone would help most (0 of 2 correct)"
    )
    section = estimate.section()
    assert "by cross-validation in 2 folds" in section and "| cone | 2 | 0 | stick 2 |" in section
    perfect = Estimate.from_logits(np.eye(3), np.arange(3), NAMES, "a test split")
    assert perfect.confusion_text() == "no classes confused"


def test_the_plan_depends_on_the_number_of_scans_alone():
    assert plan_for({"ball": 1, "stick": 1}) == TABLE[1]
    assert plan_for({"ball": 5, "stick": 40, "cone": 30}) == plan_for({"a": 30, "b": 30, "c": 30})
    assert plan_for({"ball": MOST_SCANS, "stick": 1}).way == "trained"
    chosen = plan_for({"ball": 5, "stick": 5}, copies=1, way=None, strength=None)
    assert (chosen.copies, chosen.reason, chosen.way) == (1, "as requested", "features")


def test_large_logits_have_a_finite_loss():
    found = Estimate.from_logits(np.array([[1e4, 0.0], [1e4, 0.0]]), np.array([0, 1]), ["a", "b"], "")
    assert found.loss == pytest.approx(5e3)


@pytest.mark.parametrize(("usual", "row"), [(1, 1), (5, 1), (20, 1), (21, 21), (30, 21)])
def test_the_plan_is_that_of_the_usual_number_of_scans(usual, row):
    assert plan_for({"a": usual, "b": usual, "c": 1}) == TABLE[row]
    assert plan_for({"a": usual - 1, "b": usual + 1, "c": usual}) == TABLE[row]
    assert plan_for({"a": MOST_SCANS}).way == "features" and plan_for({"a": MOST_SCANS + 1}).way == "trained"
    assert plan_for({"a": usual, "b": usual}, copies=TABLE[row].copies) == TABLE[row]  # is no request
