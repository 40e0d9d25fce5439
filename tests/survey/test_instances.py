"""Figures of numbered things, by hand and beside a plain table of all pairs."""

import numpy as np
import pytest

from hf_any3d_survey.evaluation.instances import compare_instances, instance_figures
from tests.errors import raises

# By number: 1 is found, 2 is merged with 3, 4 is too small, 9 is invented on the background.
TRUE = np.repeat([1, 1, 2, 3, 4, 0, 0], [30, 10, 12, 20, 5, 15, 20])
PREDICTED = np.repeat([7, 0, 8, 8, 8, 9, -1], [30, 10, 12, 20, 5, 15, 20])


def table(predicted, true, least_points=10):
    """Matched, predicted and true things and the mean best IoU, from masks of all pairs."""
    predicted_masks = [
        predicted == n for n in np.unique(predicted) if n > 0 and (predicted == n).sum() >= least_points
    ]
    true_masks = [true == n for n in np.unique(true) if n > 0 and (true == n).sum() >= least_points]
    ious = np.array([[(a & b).sum() / (a | b).sum() for b in predicted_masks] for a in true_masks])
    matched = min((ious >= 0.5).any(axis=1).sum(), (ious >= 0.5).any(axis=0).sum())
    return int(matched), len(predicted_masks), len(true_masks), float(ious.max(axis=1).mean())


def test_figures_of_several_scans_are_counted_together():
    one = compare_instances(PREDICTED, TRUE)
    none = compare_instances(np.zeros(20, int), np.ones(20, int))
    together = instance_figures([one, none])
    assert (together["found"], together["true_things"], together["predicted_things"]) == (2, 4, 3)
    assert together["recall"] == 0.5 and together["mean_best_iou"] < instance_figures([one])["mean_best_iou"]
    alone = instance_figures([none])
    assert alone["precision"] is None and alone["recall"] == 0 and alone["f1"] == 0
    nothing = instance_figures([compare_instances(np.zeros(5, int), np.zeros(5, int))])
    assert nothing["f1"] is None and nothing["mean_best_iou"] is None
    assert instance_figures([])["f1"] is None


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 30, 1500)
    predicted = np.where(rng.uniform(size=1500) < 0.3, rng.integers(0, 40, 1500), true * 17 % 50)
    figures = instance_figures([compare_instances(predicted, true)])
    found = [figures[name] for name in ("found", "predicted_things", "true_things", "mean_best_iou")]
    assert found == pytest.approx(table(predicted, true))


def test_at_exactly_one_half_a_thing_has_one_partner():
    # Two halves of one thing are each half of it: one is right, the other is invented.
    comparison = compare_instances(np.repeat([1, 2], 10), np.ones(20, int))
    assert comparison.matched == 1 and instance_figures([comparison])["invented"] == 1


def test_ten_thousand_things_need_no_table_of_all():
    true = np.repeat(np.arange(1, 20_001), 10)
    assert compare_instances(true + 5, true).matched == 20_000


def test_arrays_of_other_points_are_refused():
    with raises(ValueError, naming="predicted and true"):
        compare_instances(TRUE[:-1], TRUE)
