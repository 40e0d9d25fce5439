"""Tell of a model that learned from few scans: the report, the lines of the command, and the section of the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_any3d.data.checks.near_duplicates import copies_in_words
from hf_any3d.model_card.run_report import RunReport, count_parameters, peak_memory
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.training import program
from hf_any3d.training.few_scans.estimate import Estimate
from hf_any3d.training.few_scans.plan import STATED_FROM, Plan
from hf_any3d.training.few_scans.scans import Scans
from hf_any3d.training.few_scans.validation import CROSS_VALIDATION
from hf_any3d.utils.messages import percent


def report_of(
    model: PointFeaturesForPointCloudClassification,
    scans: Scans,
    plan: Plan,
    estimates: Mapping[str, Estimate],
    seconds: dict[str, float],
) -> RunReport:
    """Return the report of a model, which took so many `seconds` for each part."""
    facts = program.data_facts(scans.data, scans.splits, CROSS_VALIDATION)
    # With those of the earlier model, to which scans were added
    facts["rows"] = {**facts["rows"], "train": len(scans.together.labels)}
    facts["scans of each class"] = scans.together.counts
    facts["near-duplicates"] = scans.together.num_copies
    return RunReport(
        # Parts of a report for trainings stay empty where nothing was trained.
        data=facts,
        encoder={},
        adapter={},
        # The linear head alone was fitted; all else of the model is frozen.
        trained_parameters=count_parameters(model.classifier)[1],
        total_parameters=count_parameters(model)[1],
        seconds=seconds,
        peak_memory=peak_memory(),
        metrics={split: estimate.metrics() for split, estimate in estimates.items()},
        class_accuracy={split: estimate.class_accuracy() for split, estimate in estimates.items()},
        selection={},
        training={
            "method": "frozen features with a linear head",
            "features": list(model.config.features),
            "copies": model.config.copies,
            "copy_turn": model.config.copy_turn,
            "copy_scale": list(model.config.copy_scale),
            "copy_jitter": model.config.copy_jitter,
            "metric": "stored with the package" if model.config.metric else "features standardized by the scans",
            "strength": plan.strength,
            "drawn things of no class": model.config.unknown.bank_rows,
            "chosen": plan.reason,
        },
    )


def section_of(config: PointFeaturesConfig, estimates: Mapping[str, Estimate]) -> str:
    """Return the Markdown of the card about the confidence of the model."""
    if not estimates:
        return "Not evaluated: no class has two distinct scans."
    section = "\n\n".join(estimate.section() for estimate in estimates.values())
    if config.unknown.share is not None:
        section += f'\n\n"None of these" {_how_often_unknown(config, estimates[CROSS_VALIDATION])}.'
    return section


def lines_of(
    config: PointFeaturesConfig, scans: Scans, plan: Plan, estimates: dict[str, Estimate], num_things: int
) -> list[str]:
    """Return the lines of the command: what was seen, how it was learned, how sure it is, and what would help.

    `num_things` drawn things of no class were asked for.
    """
    labeled = scans.together
    # The rarest class first, which is the one that further scans would help most.
    by_count = sorted((number, name) for name, number in labeled.counts.items())
    (least, rarest), (most, commonest) = by_count[0], by_count[-1]
    counts = f"{least} ({rarest}) to {most} ({commonest})" if least < most else f"{most} each"
    pairs = [(labeled.names[first], labeled.names[second]) for first, second in labeled.twins]
    copies = copies_in_words(labeled.num_copies, pairs)
    seen = f"{len(labeled.labels)} scans of {len(labeled.classes)} classes, {counts}; {copies}"
    origin = scans.origin if scans.earlier is None else f"{scans.origin} and the earlier ones"
    lines = [f"{origin}: {seen}; up axis {config.up_axis}"]
    found = scans.found_up_axis
    if found is not None:
        lines[0] += f" (found: {found.count} of {found.seen} scans look upright with it; else pass --up_axis)"
    # Tell how the scans are learned, and why so.
    turned = "any orientation" if config.copy_turn >= 180 else "orientation as scanned"
    mean = f"mean of {config.copies} copies, {turned}, " if config.copies > 1 else ""
    head = "with a linear head"
    if config.wrap_labels is not None:
        head += ", averaged with the predictions of a trained adapter"
    lines.append(f"method: frozen {' and '.join(config.features)} features, {mean}{head}; {plan.reason}")
    if plan.learns_views:
        lines.append(
            "views: the model also trains on a one-sided view of each scan; predict does not warn about such views"
        )
    estimate = estimates.get(CROSS_VALIDATION)
    # One scan of each class: the model is saved, and says that nobody knows how good it is.
    if estimate is None:
        sure = "not evaluated, as no class has two distinct scans; add a second scan of each class"
        confused = "not evaluated"
        unknown = f"off; it needs at least {STATED_FROM} distinct scans of each class"
    else:
        sure = f"{estimate.text()}, by {estimate.how}; the saved model is trained on all {len(labeled.labels)}"
        confused = estimate.confusion_text()
        unknown = _when_unknown(config, estimate, scans.processor.features, num_things)
    lines.append(f"accuracy: {sure}")
    for split, of_split in estimates.items():
        if split != CROSS_VALIDATION:
            lines.append(f"{split}: {of_split.text()}")
    return [*lines, f"confused: {confused}", f"none of these: {unknown}"]


def _how_often_unknown(config: PointFeaturesConfig, estimate: Estimate) -> str:
    """Tell how many scans of the classes are labeled "none of these": a mean, and what so few scans can promise."""
    assert config.unknown.share is not None
    return (
        f"wrongly flags about {percent(config.unknown.share)} % of scans of known classes (at most "
        f"{percent(estimate.refused_at_most)} % with 95 % confidence, from {estimate.total} held-out scans)"
    )


def _when_unknown(config: PointFeaturesConfig, estimate: Estimate, channels: Sequence[str], num_things: int) -> str:
    """Describe how often a scan is labeled "none of these"."""
    if config.unknown.share is not None:
        unknown = f"{_how_often_unknown(config, estimate)}, and flags some unfamiliar objects"
    elif "wrap" in config.features:
        unknown = "off: the adapter may have been trained on the scans that would set its threshold"
    else:
        unknown = f"off; it needs at least {STATED_FROM} distinct scans of each class"
    # Things were asked for, and could not be drawn.
    if num_things and not config.unknown.bank_rows and len(channels) > 1:
        unknown += f"; synthetic non-objects were not used, as they have no {', '.join(channels[1:])}"
    return unknown
