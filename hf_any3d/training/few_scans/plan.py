"""The way of learning that wins with so many scans a class: one measured table, and its plan for given scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import DatasetDict

from hf_any3d.training.few_scans.examples import Examples
from hf_any3d.training.few_scans.request import FewScans, FewScansArguments
from hf_any3d.training.rows import class_names

FEATURES, TRAINED, BOTH = WAYS = ("features", "trained", "both")
"""Frozen features with a linear head, a model whose weights are trained, and the answers of both together."""
WRAP_WEIGHT, WRAP_SHARPNESS = 0.5, 1.5
"""Share of the trained model in the answers of both, and the factor by which their logits are then too small."""
MOST_SCANS = 400
"""Scans above which training is the way, whatever the table says: its rows were measured below."""
STATED_FROM = 5
"""Different scans of each class from which on a level of "none of these" is stated: with fewer it does not hold."""


@dataclass(frozen=True)
class Plan:
    """A way of learning.

    Attributes:
        way: One of `WAYS`.
        features: Sets of `PointFeaturesConfig`.
        copies: Copies of `PointFeaturesConfig`.
        strength: That of `fit_head`.
        reason: Why so.
        learns_views: Whether a view of each scan from one side is learned, too.
    """

    way: str = FEATURES
    features: tuple[str, ...] = ("encoder",)
    copies: int = 8
    strength: float = 1.0
    reason: str = ""
    learns_views: bool = False


# Scans a class, at least -> the way that won in studies/few_scans.py, on three kinds of shapes.
# Nothing here depends on the scans but their number: choosing among sets
# of features by cross-validation on the scans themselves loses 8 points at five a class against a fixed choice.
# - The encoder alone, with copies, is first or level at every size: descriptors beside it cost up to 6 points with one
#   scan a class, and bring nothing from five on.
# - The answers of a trained model and of the linear head together (`BOTH`) are not surely better: over 24 paired draws
#   with five and ten a class they won 0.2 to 0.8 points on the three kinds of shapes, less than their intervals.
# - Strengths from 0.1 to 10 differ by less than a point in accuracy.
TABLE: dict[int, Plan] = {
    1: Plan(reason="this scored best in tests with 1 to 20 scans per class"),
    21: Plan(reason="as with 20 scans per class; more were not tested"),
}


def plan_for(counts: Mapping[str, int], **requested: Any) -> Plan:
    """Return the plan for so many scans of each class, but for fields of `Plan` that are requested and not None."""
    scans = sum(counts.values())
    usual = float(np.median(list(counts.values())))
    plan = TABLE[max(least for least in TABLE if least <= max(1, usual))]
    if scans > MOST_SCANS:
        plan = Plan(TRAINED, reason=f"with more than {MOST_SCANS} scans a model is trained")
    changes: dict[str, Any] = {}
    for name, value in requested.items():
        if value is not None and value != getattr(plan, name):
            changes[name] = value
    return replace(plan, **changes, reason="as requested") if changes else plan


def plan_of(
    arguments: FewScansArguments,
    counts: Mapping[str, int],
    way: str | None = None,
    earlier: Examples | None = None,
) -> Plan:
    """Choose how so many scans of each class are learned; settings win over the table.

    What is added to `earlier` scans is learned as these were.
    """
    sets = None if arguments.feature_sets is None else tuple(arguments.feature_sets)
    plan = plan_for(counts, way=way, features=sets, copies=arguments.copies, strength=arguments.strength)
    if earlier is None:
        return replace(plan, learns_views=arguments.views)
    learns_views = arguments.views or earlier.learns_views
    return replace(plan, reason="features and copies of the earlier model", learns_views=learns_views)


def choose_way(scans: FewScans, way: str | None = None, trains: bool = False) -> tuple[str, DatasetDict | None]:
    """Choose how scans are learned.

    Args:
        scans: The request to learn them by frozen features.
        way: One of `WAYS`; None for what is asked, or else what the number of scans says.
        trains: Whether something is asked that only a training can do.

    Returns:
        "features", "trained" or "both"; and the scans, if they had to be loaded to count them.
    """
    # Scans are only added to models of frozen features.
    if scans.arguments.from_model is not None:
        return FEATURES, None
    if way is not None:
        return way, None
    if trains:
        return TRAINED, None
    # Only the number of scans can decide, so they are loaded.
    rows = scans.load()
    names = class_names(rows["train"])
    counts = Counter(names[label] for label in rows["train"].with_format(None)["label"][:])
    return plan_of(scans.arguments, counts).way, rows
