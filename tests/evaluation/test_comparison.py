"""Figures, intervals and paired tests of runs on the same scans."""

import itertools

import numpy as np
import pytest

from hf_any3d.evaluation.comparison import EvaluatedRun, compare_runs
from hf_any3d.evaluation.confusion import confusion_matrix
from hf_any3d.evaluation.labels import mean_iou
from hf_any3d.evaluation.scan_scores import ScanScores
from hf_any3d.evaluation.statistics import disagreement_interval, holm, mcnemar
from tests.turns import some

NAMES = ["ball", "cone", "stick"]


def run_of(name, scores, digests=None):
    digests = digests or [f"{number:032}" for number in range(len(scores.scans))]
    scans = scores.named([f"{number}.ply" for number in range(len(digests))], digests)
    value = {"accuracy": 0.5, "mean_iou": 0.5, "instance_miou": 0.5, "chamfer_l1": 0.5}[scores.metric]
    return EvaluatedRun(name, {"test": {scores.metric: value}}, {"test": scans})


def classified(right):
    labels = np.zeros(len(right), int)
    return ScanScores.of_classes(np.where(right, 0, 1), labels, np.full(len(right), 0.5), NAMES)


def scores_of(metric, generator, count):
    """Scores of random scans; a better model for a larger draw."""
    if metric == "accuracy":
        return classified(generator.random(count) < 0.7)
    if metric == "mean_iou":
        # Points have the same true classes in all runs.
        true = np.random.default_rng(0).integers(3, size=(count, 50))
        answers = np.where(generator.random((count, 50)) < 0.8, true, generator.integers(3, size=(count, 50)))
        return ScanScores.of_points([confusion_matrix(*pair, 3) for pair in zip(answers, true, strict=True)], NAMES)
    groups = [NAMES[number % 3] for number in range(count)] if metric == "chamfer_l1" else None
    return ScanScores.of_values(metric, generator.random(count).tolist(), groups)


@pytest.mark.parametrize("metric", ["accuracy", "mean_iou", "instance_miou", "chamfer_l1"])
def test_every_metric_has_intervals_around_it_and_differences_whatever_the_order_of_the_scans(metric):
    generator = np.random.default_rng(1)
    runs = [run_of(name, scores_of(metric, generator, 40)) for name in "abc"]
    comparison = compare_runs(runs)
    first = comparison.runs[0]
    for row in comparison.runs:
        assert row.low < row.value < row.high
    for row in comparison.runs[1:]:
        assert row.difference.value == pytest.approx(row.value - first.value)
        assert row.difference.low < row.difference.value < row.difference.high
        assert 0 < row.difference.p_value <= 1
    # A run has the same figures as itself.
    same = compare_runs([runs[0], runs[0]]).runs[1].difference
    assert same.value == 0 and same.low == pytest.approx(-same.high) and same.p_value == 1
    # Accuracies may differ on scans that were not seen: by at most 3.7 of 40 (Clopper and Pearson).
    assert same.high == (pytest.approx(1 - 0.025 ** (1 / 40)) if metric == "accuracy" else 0)
    order = generator.permutation(40)
    scans = runs[1].scans["test"].scans
    shuffled = EvaluatedRun("b", runs[1].metrics, {"test": ScanScores(metric, [scans[place] for place in order])})
    again = compare_runs([runs[0], shuffled, runs[2]])
    assert [vars(row.difference or 0) for row in again.runs[1:]] == [
        vars(row.difference or 0) for row in comparison.runs[1:]
    ]


def test_the_mean_iou_is_that_of_all_points_together():
    generator = np.random.default_rng(2)
    true, answers = generator.integers(3, size=(2, 9, 30))
    matrices = [confusion_matrix(*pair, 3) for pair in zip(answers, true, strict=True)]
    run = run_of("a", ScanScores.of_points(matrices, NAMES))
    assert compare_runs([run, run]).runs[0].value == pytest.approx(mean_iou(np.sum(matrices, axis=0)))


@pytest.mark.parametrize("seed", range(5))
def test_exchanging_answers_in_all_ways_is_mcnemars_exact_test(seed):
    first, second = np.random.default_rng(seed).integers(2, size=(2, 12)).astype(float)
    runs = [
        run_of(name, ScanScores.of_values("instance_miou", right)) for name, right in (("a", first), ("b", second))
    ]
    only_first, only_second = int((first > second).sum()), int((first < second).sum())
    exact = compare_runs(runs).runs[1].difference.p_value
    assert exact == pytest.approx(mcnemar(only_first, only_second))


def test_an_interval_has_no_difference_in_it_exactly_if_the_test_finds_none():
    for first, second in itertools.product(range(12), repeat=2):
        low, high = disagreement_interval(first, second, 40)
        assert (low <= 0 <= high) == (mcnemar(first, second) >= 0.05), (first, second)
        assert low <= (first - second) / 40 <= high


@pytest.mark.parametrize("count", some([12, 40], left_out=[40]))
def test_intervals_of_differences_hold_the_true_one_in_95_of_100_cases(count):
    generator = np.random.default_rng(count)
    held = 0
    for _ in range(120):
        # The second run is better by 0.1 on average.
        first, noise = generator.normal(0.5, 0.1, size=(2, count))
        scores = [ScanScores.of_values("instance_miou", values) for values in (first, noise + 0.1)]
        runs = [run_of(name, of_run) for name, of_run in zip("ab", scores, strict=True)]
        difference = compare_runs(runs).runs[1].difference
        held += difference.low <= 0.1 <= difference.high
    # Of 120 cases, 95 % are 114 with a standard deviation of 2.4.
    assert held >= 107


def test_p_values_are_uniform_or_larger_where_runs_are_equally_good():
    generator = np.random.default_rng(3)
    found = []
    for _ in range(60):
        scores = [ScanScores.of_values("instance_miou", generator.random(10)) for _ in range(2)]
        runs = [run_of("a", scores[0]), run_of("b", scores[1])]
        found.append(compare_runs(runs).runs[1].difference.p_value)
    # 95 % of binomial counts are below 8 of 60 at a level of 5 %.
    assert np.mean(np.array(found) < 0.05) < 8 / 60 and np.mean(found) == pytest.approx(0.5, abs=0.12)


def test_p_values_are_adjusted_for_their_number():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_only_scans_of_all_runs_count_and_places_are_drawn_as_one():
    right = np.array([True, False] * 10)
    digests = [f"{number}" for number in range(20)]
    some = run_of("b", classified(right[:12]), digests[8:])
    comparison = compare_runs([run_of("a", classified(right), digests), some])
    assert len(comparison.scans) == 12 and comparison.left_out == 8
    with pytest.raises(ValueError, match="judged on different scans; evaluate all on the same: --on FOLDER"):
        compare_runs([run_of("a", classified(right)), run_of("b", classified(right[:3]), ["x", "y", "z"])])
    # Ten places of two equal scans are no more evidence than ten scans.
    scores = [scores_of("mean_iou", np.random.default_rng(seed), 10) for seed in (4, 5)]
    twice = []
    for of_run in scores:
        placed = [{**scan, "place": place} for place, scan in enumerate(of_run.scans)]
        twice.append(ScanScores("mean_iou", [*placed, *placed]))
    once = compare_runs([run_of(name, of_run) for name, of_run in zip("ab", scores, strict=True)])
    doubled = compare_runs([run_of(name, of_run) for name, of_run in zip("ab", twice, strict=True)])
    assert vars(once.runs[1].difference) == pytest.approx(vars(doubled.runs[1].difference))
