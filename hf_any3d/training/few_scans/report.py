"""Describe a model that learned from few scans: its card, metrics, and the lines of the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters, peak_memory
from hf_any3d.model_card.saving import write_run_card
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.few_scans.confidence import Estimate
from hf_any3d.training.few_scans.plan import Plan, advice_for
from hf_any3d.training.few_scans.request import FewScansArguments
from hf_any3d.training.few_scans.scans import Examples, Scans, equal
from hf_any3d.training.trainer import remove_model

CROSS_VALIDATION = "cross-validation"
# Usual scans of a class below which an estimate is too low: by 6 points at two a class, by 2 at five.
_FEW = 4


def how_judged(
    examples: Examples, folds: np.ndarray, config: PointFeaturesConfig, is_joined: bool, is_calibrated: bool
) -> str:
    """Tell how an estimate was made: by which folds and heads, and what it leaves out."""
    scans = examples.scans
    how = f"cross-validation in {folds.max() + 1} folds"
    if is_joined:
        how += " of the linear head alone (the wrap, which has seen all scans, is not judged and usually adds to it)"
    elif "wrap" in config.features:
        how += " (flattering if the wrap has learned from these scans)"
    if np.median(list(scans.counts.values())) < _FEW:
        how += ", by heads that learned from fewer scans, so that some points more can be expected"
    own = folds[: len(scans.labels)] >= 0
    alone = [name for label, name in enumerate(scans.classes) if not own[scans.labels == label].any()]
    how += f", without {', '.join(alone)}, alone in the class" if alone else ""
    return how + (", which also calibrates the scores" if is_calibrated else "")


def save(
    model: PointFeaturesForPointCloudClassification,
    processor: PointCloudProcessor,
    examples: Examples,
    facts: dict[str, Any],
    plan: Plan,
    judged: dict[str, Estimate],
    stopwatch: Stopwatch,
    arguments: FewScansArguments,
) -> RunReport:
    """Write everything; metrics.json last, which marks the run as complete."""
    config = model.config
    report = RunReport(
        data=facts,
        encoder={},
        adapter={},
        trained_parameters=count_parameters(model.classifier)[1],
        total_parameters=count_parameters(model)[1],
        seconds=stopwatch.stop(),
        peak_memory=peak_memory(),
        metrics={split: estimate.metrics() for split, estimate in judged.items()},
        class_accuracy={split: estimate.class_accuracy() for split, estimate in judged.items()},
        selection={},
        training={
            "way": "frozen features with a linear head",
            "features": list(config.features),
            "copies": config.copies,
            "copy_turn": config.copy_turn,
            "copy_scale": list(config.copy_scale),
            "copy_jitter": config.copy_jitter,
            "metric": "stored with the package" if config.metric else "features standardized by the scans",
            "strength": plan.strength,
            "drawn things of no class": config.unknown_bank_rows,
            "chosen": plan.reason,
        },
    )
    folder = Path(arguments.output_dir)
    remove_model(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    examples.save(folder)
    sure = "\n\n".join(estimate.section() for estimate in judged.values()) or "Unknown: no class has two scans."
    write_run_card(model, report, processor.num_points, sure, folder, arguments.license)
    return report


def lines_of(
    origin: str,
    scans: Scans,
    plan: Plan,
    judged: dict[str, Estimate],
    config: PointFeaturesConfig,
    channels: Sequence[str],
    unlike: int,
    stated_from: int,
) -> list[str]:
    """Return the lines of the command: what was seen, how it was learned, how sure it is, and what would help."""
    seen = f"{origin}: {_seen(scans)}; up axis {config.up_axis}"
    estimate = judged.get(CROSS_VALIDATION)
    if estimate is None:
        sure = "accuracy: unknown, as no class has two different scans; with a second one of each it is estimated"
        confused, unknown = "confused: unknown, for the same reason", "none of these: never said, for the same reason"
    else:
        sure = f"accuracy: {estimate.text()}, by {estimate.how}; the saved model learned from all {len(scans.labels)}"
        confused = f"confused: {estimate.confusion_text()}"
        unknown = f"none of these: {_when_unknown(config, channels, unlike, stated_from)}"
    splits = [f"{split}: {found.text()}" for split, found in judged.items() if split != CROSS_VALIDATION]
    return [seen, _way(scans, plan, config), sure, *splits, confused, unknown]


def _seen(scans: Scans) -> str:
    """Tell how many scans and near-duplicates there are."""
    by_count = sorted((number, name) for name, number in scans.counts.items())
    (least, rarest), (most, commonest) = by_count[0], by_count[-1]
    counts = f"{least} ({rarest}) to {most} ({commonest})" if least < most else f"{most} each"
    copies = f"{scans.num_copies} near-duplicates"
    if pairs := equal(scans.groups.tolist()):
        copies += f", such as {scans.names[pairs[0][0]]} and {scans.names[pairs[0][1]]}"
    return f"{len(scans.labels)} scans of {len(scans.classes)} classes, {counts}; {copies}"


def _way(scans: Scans, plan: Plan, config: PointFeaturesConfig) -> str:
    """Tell how the scans are learned, and which way might be better."""
    turned = "any heading" if config.copy_turn >= 180 else "heading as scanned"
    mean = f"mean of {config.copies} copies, {turned}, " if config.copies > 1 else ""
    head = "with a linear head"
    if config.wrap_labels is not None:
        head += ", averaged with the answers of a trained wrap"
    way = f"way: frozen {' and '.join(config.features)} features, {mean}{head}; {plan.reason}"
    if config.wrap_labels is None and (advice := advice_for(scans.counts)):
        way += f"; {advice}"
    return way


def _when_unknown(config: PointFeaturesConfig, channels: Sequence[str], unlike: int, stated_from: int) -> str:
    """Tell of how many scans "none of these" is said."""
    if config.unknown_share is not None:
        unknown = f"said of at most {100 * config.unknown_share:.0f} % of further scans like these, by those that "
        unknown += "were held out, and of part of what is unlike them"
    elif "wrap" in config.features:
        unknown = "never said, as the wrap may have seen the scans by which its level would be found"
    else:
        unknown = f"never said, as its level takes {stated_from} different scans of each class"
    if not config.unknown_bank_rows and unlike and len(channels) > 1:
        unknown += f"; it knows no drawn things, which have no {', '.join(channels[1:])}"
    return unknown
