"""The study of transfer: folds, and statistics against cases computed by hand."""

import numpy as np
import pytest

from studies import transfer, transfer_report as report
from studies.transfer_report import Cell


def test_every_embedded_shape_is_tested_once_and_no_group_crosses():
    rows = transfer.load_set("embedded")
    labels, groups = np.asarray(rows["label"]), np.asarray(rows["group"])
    folds = transfer.folds_of(labels, groups, 5, 0)
    assert len(folds) == 574
    assert all(len(np.unique(folds[groups == group])) == 1 for group in np.unique(groups))
    for label in np.unique(labels):
        # As even as the largest group of near-duplicates allows.
        largest = np.unique(groups[labels == label], return_counts=True)[1].max()
        assert np.ptp(np.bincount(folds[labels == label], minlength=5)) <= largest
    assert np.ptp(np.bincount(folds)) <= 12
    tested = []
    for fold in range(5):
        train, test = transfer.rows_of(transfer.Run("embedded", "random", 2, 30, None, 0, fold), labels, folds)
        assert not set(groups[train]) & set(groups[test])
        assert len(train) + len(test) == 574
        tested.extend(test)
    assert sorted(tested) == list(range(574))


def test_the_main_comparison_comes_first_and_stays_balanced():
    names = list(transfer.PARTS)
    assert tuple(names[:2]) == transfer.MAIN
    for name, count in zip(transfer.MAIN, (50, 30), strict=True):
        runs = transfer.PARTS[name]
        assert len(runs) == len(set(runs)) == count
        for first, second in zip(runs[::2], runs[1::2], strict=True):
            assert {first.arm, second.arm} == {"pretrained", "random"}
            assert (first.seed, first.fold) == (second.seed, second.fold)
    paths = [run.path for runs in transfer.PARTS.values() for run in runs]
    assert len(paths) == len(set(paths))


def test_effect_is_the_mean_over_shapes_of_the_means_over_seeds():
    # Two seeds, three shapes in two groups; then one seed, one shape.
    large = report.fold_difference(np.array([[1.0, 0, -1], [1, 1, 0]]), np.array([7, 7, 9]))
    small = report.fold_difference(np.array([[-1.0]]), np.array([3]))
    assert large.sums.tolist() == [[1, -1], [2, 0]]
    assert large.sizes.tolist() == [2, 1]
    assert report.effect([large, small]) == pytest.approx((1.0 + 0.5 - 0.5 - 1) / 4)


def test_interval_has_the_variances_between_groups_and_between_runs():
    # One seed, two groups of one shape: the deviations ±0.5 have the sum of variances 2 * 0.5.
    alone = report.fold_difference(np.array([[1.0, 0.0]]), np.array([0, 1]))
    assert report.interval([alone]) == pytest.approx((0.5 - 1.96 / 2, 0.5 + 1.96 / 2), abs=1e-4)
    # Groups that are equal, totals 2 and 0 of two seeds: variance 2, of which 1 is that of the groups.
    runs = report.fold_difference(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([0, 1]))
    half = 12.7062 * np.sqrt((2 - 1) / 2) / 2
    assert report.interval([runs]) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    # Both folds: the variances 1 and 0.5, four shapes, one degree of freedom.
    low, high = report.interval([runs, alone])
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(12.7062 * np.sqrt(1 + 0.5) / 4, abs=1e-4)


def test_bootstrap_has_the_limits_of_all_replicates():
    # One seed and two groups of one shape: replicates are 1, 0.5, 0.5 and 0.
    fold = report.fold_difference(np.array([[1.0, 0.0]]), np.array([0, 1]))
    assert report.bootstrap_interval([fold], 1000) == (0.0, 1.0)
    # Groups that are equal leave the seeds: 0, 0.5, 0.5 and 1.
    fold = report.fold_difference(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([0, 1]))
    assert report.bootstrap_interval([fold], 1000) == (0.0, 1.0)
    # No variation within folds leaves the folds.
    folds = [report.fold_difference(np.full((2, 3), value), np.arange(3)) for value in (0.0, 1.0)]
    assert report.bootstrap_interval(folds, 1000) == (0.0, 1.0)
    assert report.bootstrap_interval(folds[1:], 1000) == (1.0, 1.0)


def test_interval_contains_the_truth_in_most_simulated_studies():
    found = report.simulate(seeds=3, shapes=100, advantage=0.0, studies=200)
    assert 0.9 <= found["coverage"] <= 0.99
    assert found["effect"] == 0
    found = report.simulate(seeds=3, shapes=40, advantage=4.0, studies=5, replicates=100)
    assert found["power"] == 1
    assert found["bootstrap_half_width"] > found["half_width"]


def test_groups_that_agree_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).normal(size=(1, 50)), 4, axis=1)
    alone = report.interval([report.fold_difference(values, np.arange(200))])
    grouped = report.interval([report.fold_difference(values, np.arange(200) // 4)])
    assert np.ptp(grouped) == pytest.approx(2 * np.ptp(alone), rel=0.02)


def test_mcnemar_is_the_two_sided_binomial_test_of_the_shapes_that_differ():
    first = np.array([True] * 5 + [False] * 1 + [True] * 10)
    second = np.array([False] * 5 + [True] * 1 + [True] * 10)
    # Five against one: 2 * (1 + 6) / 2 ** 6.
    assert report.mcnemar(first, second) == (5, 1, pytest.approx(14 / 64))
    assert report.mcnemar(first, first) == (0, 0, 1.0)


def stored(predictions: list[int], labels: list[int], rows: list[int]) -> dict:
    """Result of a run."""
    fixed = {"cpu_seconds": 2.0, "seconds": 3.0, "train_rows": 4, "trained_parameters": 5}
    return {"predictions": predictions, "labels": labels, "groups": rows, "rows": rows, "losses": [0.5] * 4, **fixed}


def test_an_unfinished_study_is_reported_as_such():
    cells = [Cell("embedded", arm, 2, 30, None) for arm in ("pretrained", "random", "shuffled")]
    labels, rows = [0, 1, 1, 0], [3, 5, 6, 8]
    results = {
        cells[0]: {(0, 0): stored([0, 1, 1, 0], labels, rows), (0, 1): stored([0, 1, 1, 0], labels, rows)},
        cells[1]: {(0, 0): stored([1, 1, 0, 0], labels, rows)},
    }
    summary = report.summarize(dict.fromkeys(cells, 4), results, cells[:2])
    (main,) = summary["main"]
    assert main["found"]["pairs"] == 1
    assert main["found"]["effect"] == 0.5
    assert main["found"]["accuracies"] == [1.0, 0.5]
    text = report.markdown(summary, {"pretrained": "P", "random": "R", "shuffled": "S"})
    assert "unfinished, 1 of 4 pairs" in text
    assert "| embedded | all shapes, 30 epochs | P | 2 | 2 of 4 | 100.0 | 0.500 | 2 |" in text
    assert "| P − R | 1 of 4 | 100.0, 50.0 | +50.0 |" in text
    assert "| embedded | all shapes, 30 epochs | S | 2 | 0 of 4 | not run yet | | |" in text
    finished = report.summarize(dict.fromkeys(cells, 1), results, cells[:2])
    assert "pretraining neither helps nor harms measurably: +50.0 points" in report.verdict(finished["main"][0])
