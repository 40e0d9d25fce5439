"""Compare runs on the same scans: each figure with an interval, and differences with a paired test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.evaluation.scan_scores import FILE, ScanScores
from hf_any3d.evaluation.statistics import (
    disagreement_interval,
    expanded_percentiles,
    holm,
    mcnemar,
    wilson_interval,
)
from hf_any3d.utils.atomic_files import read_json_object

LEVEL = 0.05
"""Probability below which a difference counts as more than chance."""
FEWEST_DISAGREEMENTS = 6
"""Scans that only one of two runs answers correctly, from which on an exact test can tell them apart at `LEVEL`."""


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with what is known of it.

    Attributes:
        name: Name in the table.
        metrics: Metrics of each split.
        scans: Scores of the scans of each split that has them.
        cost: `trained_parameters`, `seconds` of the training, `memory` in bytes at its peak; those that are known.
        selection_split: Split that selected the weights, or None.
    """

    name: str
    metrics: dict[str, dict[str, float]]
    scans: dict[str, ScanScores]
    cost: dict[str, float] = field(default_factory=dict)
    selection_split: str | None = None

    @classmethod
    def read(cls, path: Path) -> EvaluatedRun:
        """Read the output directory of a training, or the JSON of an evaluation."""
        if path.is_dir():
            report = read_json_object(path / "metrics.json")
            if not report:
                raise ValueError(f"{path} has no metrics.json; expected the output directory of a training")
            scans = read_json_object(path / FILE)
            return cls._of_report(str(path), report, report.get("metrics", {}), scans)
        facts = read_json_object(path)
        if "metrics" not in facts:
            raise ValueError(f"{path}: expected a directory of a training, or JSON of hf-any3d evaluate --output")
        run = cls._of_report(str(path), facts.get("training", {}), facts["metrics"], facts.get("scans", {}))
        return cls(str(facts.get("model", path)), run.metrics, run.scans, run.cost)

    @classmethod
    def _of_report(
        cls, name: str, report: Mapping[str, Any], metrics: dict[str, Any], scans: Mapping[str, Any]
    ) -> EvaluatedRun:
        scores = {split: ScanScores(**of_split) for split, of_split in scans.items()}
        selection_split = "validation" if report.get("selection") else None
        return cls(name, metrics, scores, training_cost(report), selection_split)


def training_cost(report: Mapping[str, Any]) -> dict[str, float]:
    """Return what a training took, of the facts that its report has."""
    peaks = report.get("peak_memory") or {}
    cost = {
        "trained_parameters": report.get("trained_parameters"),
        "seconds": (report.get("seconds") or {}).get("total"),
        # What a GPU held counts where there was one.
        "memory": peaks.get("cuda", peaks.get("process")),
    }
    return {name: value for name, value in cost.items() if value is not None}


def training_report(folder: Path) -> dict[str, Any]:
    """Return what a comparison needs of the report of a training; empty without one."""
    report = read_json_object(folder / "metrics.json")
    names = ("trained_parameters", "seconds", "peak_memory")
    return {name: report[name] for name in names if name in report}


@dataclass(frozen=True)
class Difference:
    """Difference of a run to the first one.

    Attributes:
        value: Metric of the run less that of the first.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Probability of a difference at least this large if both runs were equally good, adjusted for the
            number of comparisons.
        only_run: Scans that only this run answers correctly; None for other metrics than accuracy.
        only_first: Scans that only the first run answers correctly.
    """

    value: float
    low: float
    high: float
    p_value: float
    only_run: int | None = None
    only_first: int | None = None


@dataclass(frozen=True)
class ComparedRun:
    """Row of a comparison; what is not known is None."""

    run: EvaluatedRun
    split: str
    value: float
    low: float | None = None
    high: float | None = None
    difference: Difference | None = None


# Figures by which runs are compared, the most telling of each task first.
_METRICS = ("mean_iou", "instance_miou", "map_25", "accuracy", "chamfer_l1")
_LOWER_IS_BETTER = ("chamfer_l1",)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; differences are to the first one.

    Attributes:
        metric: Name of the metric.
        runs: The runs, in the order given.
        scans: Scans of all runs, each with the score of each run; empty if scores of scans are not known.
        left_out: Scans that some of the runs were not judged on.
        why_no_test: Reason for differences without a test; empty if there is one.
        units: Scans, or places with several scans, that intervals and tests draw from.
    """

    metric: str
    runs: list[ComparedRun]
    scans: list[tuple[dict[str, Any], ...]]
    left_out: int = 0
    why_no_test: str = ""
    units: int = 0

    @property
    def lower_is_better(self) -> bool:
        """True for distances."""
        return self.metric in _LOWER_IS_BETTER

    def disagreements(self) -> list[tuple[dict[str, Any], ...]]:
        """Return the scans whose answers are right in some runs and wrong in others."""
        return [scan for scan in self.scans if len({one.get("answer") == one.get("true") for one in scan}) > 1]


def compare_runs(runs: Sequence[EvaluatedRun], split: str | None = None, seed: int = 0) -> Comparison:
    """Compare runs on the scans that all of them were judged on.

    Args:
        runs: Two or more runs.
        split: Split to compare on; by default the same one for all, as far as they have it.
        seed: Seed of the resampling.

    Raises:
        ValueError: The runs have no metric, split or scan in common, or other true classes for the same scan.
    """
    splits = [_split_of(run, runs, split) for run in runs]
    metric = _common_metric(runs, splits)
    scores = [run.scans.get(name) for run, name in zip(runs, splits, strict=True)]
    known = [one for one in scores if one is not None and one.metric == metric and one.scans]
    if len(known) < len(runs):
        return _without_test(metric, runs, splits, scores)
    scans = _common_scans(runs, known)
    if not scans:
        raise ValueError(
            f"{runs[0].name} and {runs[1].name} were judged on different scans; evaluate all on the same: --on FOLDER"
        )
    counts = _counts(metric, scans)
    if counts.shape[1] < 2:
        return _without_test(metric, runs, splits, scores)
    total = len({scan["digest"] for one in known for scan in one.scans})
    generator = np.random.default_rng(seed)
    resampled = _resample(counts, generator)
    differences = [_difference(metric, counts, resampled, number, generator) for number in range(1, len(runs))]
    adjusted = holm([difference.p_value for difference in differences])
    to_first = [None, *(replace(one, p_value=p) for one, p in zip(differences, adjusted, strict=True))]
    compared = []
    for number, (run, name) in enumerate(zip(runs, splits, strict=True)):
        value = float(mean_ratio(counts[number].sum(axis=0)))
        low, high = _interval(metric, counts[number], resampled[number])
        compared.append(ComparedRun(run, name, value, low, high, to_first[number]))
    return Comparison(metric, compared, scans, total - len(scans), units=counts.shape[1])


def _without_test(
    metric: str, runs: Sequence[EvaluatedRun], splits: Sequence[str], scores: Sequence[ScanScores | None]
) -> Comparison:
    """Return the figures of runs that cannot be tested, and why."""
    unknown = [run.name for run, one in zip(runs, scores, strict=True) if one is None or not one.scans]
    if metric == "map_25":
        reason = "average precision is not computed scan by scan"
    elif unknown:
        reason = f"{unknown[0]} has no scores of single scans; evaluate all runs on the same scans: --on FOLDER"
    else:
        reason = "one scan says nothing about others"
    rows = zip(runs, splits, strict=True)
    compared = [ComparedRun(run, split, run.metrics[split][metric]) for run, split in rows]
    return Comparison(metric, compared, [], why_no_test=reason)


def mean_ratio(counts: np.ndarray) -> np.ndarray:
    """Return the mean over groups of numerator by denominator from counts (…, 2, groups), without empty groups."""
    numerators = counts[..., 0, :].astype(np.float64)
    denominators = counts[..., 1, :]
    ratios = np.divide(numerators, denominators, out=np.full_like(numerators, np.nan), where=denominators > 0)
    # A draw of scans may have none of a group; each has one of some.
    return np.nanmean(ratios, axis=-1)


# Splits by how well they judge a model: weights are often selected on the validation split.
_SPLITS = ("test", "cross-validation", "all", "validation")


def _split_of(run: EvaluatedRun, runs: Sequence[EvaluatedRun], wanted: str | None) -> str:
    """Return the split of a run to compare: the one that is wanted, else one of all runs, else its best one."""
    if wanted is not None:
        if wanted not in run.metrics:
            raise ValueError(f"{run.name} has no split {wanted!r}; there are {', '.join(run.metrics)}")
        return wanted
    # Splits of other names, such as places that were held out, come last.
    own = sorted(run.metrics, key=lambda name: _SPLITS.index(name) if name in _SPLITS else len(_SPLITS))
    if not own:
        raise ValueError(f"{run.name} was not evaluated; evaluate all runs on the same scans: --on FOLDER")
    shared = [name for name in own if all(name in other.metrics for other in runs)]
    return (shared or own)[0]


def _common_metric(runs: Sequence[EvaluatedRun], splits: Sequence[str]) -> str:
    metrics = [run.metrics[split] for run, split in zip(runs, splits, strict=True)]
    for name in _METRICS:
        if all(name in of_run for of_run in metrics):
            return name
    raise ValueError(
        f"{runs[0].name} has {', '.join(metrics[0])}, and {runs[-1].name} {', '.join(metrics[-1])}; expected models "
        "of one task"
    )


def _common_scans(runs: Sequence[EvaluatedRun], scores: Sequence[ScanScores]) -> list[tuple[dict[str, Any], ...]]:
    """Return the scans that all runs were judged on, found by the checksums of their points."""
    # Of scans with the same points the first one counts, since the others are no further evidence.
    by_digest = [{scan["digest"]: scan for scan in reversed(of_run.scans)} for of_run in scores]
    found = []
    for scan in by_digest[0].values():
        same = [of_run.get(scan["digest"]) for of_run in by_digest]
        known = tuple(one for one in same if one is not None)
        if len(known) < len(scores):
            continue
        for run, one in zip(runs, known, strict=True):
            if _truth(one) != _truth(scan):
                raise ValueError(f"{scan['scan']} has other true labels in {run.name} than in {runs[0].name}")
        found.append(known)
    # In the order of the first run, which was reversed
    return found[::-1]


def _truth(scan: Mapping[str, Any]) -> Any:
    """Return what is true of a scan, whatever a model answers."""
    if "classes" in scan:
        return {name: counts["points"] for name, counts in scan["classes"].items() if counts["points"]}
    return scan.get("true")


def _counts(metric: str, scans: Sequence[tuple[dict[str, Any], ...]]) -> np.ndarray:
    """Return the counts of each run and unit from which `mean_ratio` computes the metric, (runs, units, 2, groups).

    A unit is a scan, or all scans of one place, which are no independent evidence.
    """
    groups = _groups(metric, scans)
    number_of = {name: number for number, name in enumerate(groups)}
    places = [scan[0].get("place", number) for number, scan in enumerate(scans)]
    unit_of = {place: number for number, place in enumerate(dict.fromkeys(places))}
    # Scans of a single place are all there is to draw from.
    if len(unit_of) == 1:
        places = list(range(len(scans)))
        unit_of = {place: place for place in places}
    counts = np.zeros((len(scans[0]), len(unit_of), 2, len(groups)))
    for place, scan in zip(places, scans, strict=True):
        for number, one in enumerate(scan):
            of_unit = counts[number, unit_of[place]]
            if metric == "accuracy":
                of_unit[:, 0] += (one["answer"] == one["true"], 1)
            elif metric == "mean_iou":
                for name, points in one["classes"].items():
                    union = points["points"] + points["answered"] - points["right"]
                    of_unit[:, number_of[name]] += (points["right"], union)
            else:
                of_unit[:, number_of[one.get("group", "")]] += (one["value"], 1)
    return counts


def _groups(metric: str, scans: Sequence[tuple[dict[str, Any], ...]]) -> list[str]:
    """Return the names of the groups over which a metric is averaged."""
    names: dict[str, None] = {}
    for scan in scans:
        for one in scan:
            if metric == "mean_iou":
                names |= dict.fromkeys(one["classes"])
            else:
                names[one.get("group", "")] = None
    return list(names)


_DRAWS = 5000
# Draws that are in memory at a time, each as large as the number of scans.
_AT_ONCE = 250


def _resample(counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the metric of each run in units drawn with replacement, the same ones for all runs, (runs, draws)."""
    units = counts.shape[1]
    found = []
    for _ in range(_DRAWS // _AT_ONCE):
        # How often each draw has each unit: (draws, units)
        drawn = generator.multinomial(units, np.full(units, 1 / units), size=_AT_ONCE)
        found.append([mean_ratio(np.tensordot(drawn, of_run, axes=1)) for of_run in counts])
    return np.concatenate(found, axis=1)


def _interval(metric: str, counts: np.ndarray, resampled: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a metric: Wilson's for accuracy, for others percentiles of resampled units."""
    if metric == "accuracy":
        right, total = counts.sum(axis=0)[:, 0].astype(int).tolist()
        return wilson_interval(right, total)
    return expanded_percentiles(resampled, len(counts))


def _difference(
    metric: str, counts: np.ndarray, resampled: np.ndarray, number: int, generator: np.random.Generator
) -> Difference:
    """Return the difference of a run to the first one; its p value is not adjusted."""
    first, run = counts[0], counts[number]
    value = float(mean_ratio(run.sum(axis=0)) - mean_ratio(first.sum(axis=0)))
    low, high = expanded_percentiles(resampled[number] - resampled[0], len(run))
    if metric != "accuracy":
        return Difference(value, low, high, _exchange_test(first, run, generator))
    only_run = int((run[:, 0, 0] > first[:, 0, 0]).sum())
    only_first = int((run[:, 0, 0] < first[:, 0, 0]).sum())
    # Few disagreements are hardly ever drawn in other proportions, and their exact interval is wider.
    exact_low, exact_high = disagreement_interval(only_run, only_first, len(run))
    p_value = mcnemar(only_first, only_run)
    return Difference(value, min(low, exact_low), max(high, exact_high), p_value, only_run, only_first)


# All ways to exchange the runs of so many scans are tried; of more, `_DRAWS` random ones.
_ALL_EXCHANGES = 12


def _exchange_test(first: np.ndarray, second: np.ndarray, generator: np.random.Generator) -> float:
    """Return how often runs whose counts of units (units, 2, groups) are exchanged at random differ at least as much.

    Source: Noreen, "Computer-intensive methods for testing hypotheses", 1989 (approximate randomization).
    """
    units = len(first)

    def count_as_large(exchanged: np.ndarray) -> int:
        # (exchanges, 2, groups), what is exchanged in each
        moved = np.tensordot(exchanged, second - first, axes=1)
        differences = mean_ratio(second.sum(axis=0) - moved) - mean_ratio(first.sum(axis=0) + moved)
        # Equal sums in another order of additions count as equal.
        return int((np.abs(differences) >= observed - 1e-12).sum())

    observed = abs(float(mean_ratio(second.sum(axis=0)) - mean_ratio(first.sum(axis=0))))
    if units <= _ALL_EXCHANGES:
        exchanged = (np.arange(2**units)[:, None] >> np.arange(units)) & 1
        return count_as_large(exchanged) / len(exchanged)
    as_large = sum(count_as_large(generator.integers(2, size=(_AT_ONCE, units))) for _ in range(_DRAWS // _AT_ONCE))
    # The runs as they are count as one more.
    return (1 + as_large) / (1 + _DRAWS)
