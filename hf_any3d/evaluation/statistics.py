"""Intervals of shares, and tests of differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_any3d.modeling.config_checks import check_numbers


def wilson_interval(right: int, total: int, deviations: float = 1.96) -> tuple[float, float]:
    """Return the interval of the share that `right` of `total` samples stand for, 95 % with 1.96 deviations.

    Unlike the share plus and minus its standard error, it holds for few samples and for shares of 0 and 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    check_numbers(0, total, right=right)
    check_numbers(0, deviations=deviations)
    share = right / total
    spread = deviations**2 / total
    center = (share + spread / 2) / (1 + spread)
    half = deviations / (1 + spread) * float(np.sqrt(share * (1 - share) / total + spread / (4 * total)))
    return max(0.0, center - half), min(1.0, center + half)


def share_at_most(count: int, total: int, confidence: float = 0.95) -> float:
    """Return the share that `count` of `total` samples allow at most, with this confidence: 12 % for 0 of 24.

    Source: C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", 1934; the upper limit alone.
    """
    check_numbers(0, total, count=count)
    check_numbers(0, 1, confidence=confidence)
    if count == total:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(count + 1, total - count, confidence))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the p value of the exact test whether two classifiers are right equally often on the same scans.

    Args:
        only_first: Scans that only the first one answers correctly.
        only_second: Scans that only the second one answers correctly.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; the exact
    form, a binomial test.
    """
    from scipy.stats import binomtest

    disagreements = only_first + only_second
    return float(binomtest(only_first, disagreements).pvalue) if disagreements else 1.0


def disagreement_interval(only_first: int, only_second: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two accuracies on the same scans, for so many disagreements.

    It has 0 in it exactly if `mcnemar` has a p value of at least 5 %. Without any disagreement it is as wide as their
    share may be.

    Args:
        only_first: Scans that only the first classifier answers correctly.
        only_second: Scans that only the second one answers correctly.
        total: All scans.
    """
    disagreements = only_first + only_second
    if not disagreements:
        limit = share_at_most(0, total, 0.975)
        return -limit, limit
    # (2,) shares of the disagreements in which the first one is right
    ends = exact_interval(only_first, disagreements)
    low, high = ((2 * share - 1) * disagreements / total for share in ends)
    return low, high


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Return the exact 95 % interval of the share that `count` of `total` samples stand for (Clopper and Pearson)."""
    return 1 - share_at_most(total - count, total, 0.975), share_at_most(count, total, 0.975)


def expanded_percentiles(resampled: np.ndarray, units: int) -> tuple[float, float]:
    """Return the 95 % interval of a figure from draws (draws,) of units with replacement.

    Percentiles of few units are too narrow: these are the wider ones of the t distribution.

    Source: Hesterberg, "What teachers should know about the bootstrap", 2015, Sec. 5.3, expanded percentiles.
    """
    from scipy.stats import norm, t

    deviations = np.sqrt(units / (units - 1)) * t.ppf(0.975, units - 1)
    outside = norm.cdf(-deviations)
    low, high = np.quantile(resampled, (outside, 1 - outside)).tolist()
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(np.argsort(p_values).tolist()):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
