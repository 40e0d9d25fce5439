"""Words about a model that learned from few scans: its accuracy and interval, card, metrics and lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_any3d.data.near_duplicates import copies_in_words
from hf_any3d.evaluation.classification import by_name
from hf_any3d.evaluation.confusion import class_accuracies, confusion_matrix, mean_class_accuracy, overall_accuracy
from hf_any3d.evaluation.scan_scores import ScanScores, probabilities, save_scan_scores
from hf_any3d.evaluation.statistics import share_at_most, wilson_interval
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters, peak_memory
from hf_any3d.model_card.saving import write_run_card
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.registry import NONE_OF_THESE
from hf_any3d.training import program
from hf_any3d.training.few_scans.plan import STATED_FROM, Plan
from hf_any3d.training.few_scans.request import FewScansArguments
from hf_any3d.training.few_scans.scans import Examples, LabeledScans, Scans
from hf_any3d.training.trainer import replacing_model
from hf_any3d.utils.markdown import inline
from hf_any3d.utils.messages import percent

CROSS_VALIDATION = "cross-validation"
# Usual scans of a class below which an estimate is too low: by 6 points at two a class, by 2 at five.
_FEW = 4
_MOST_PAIRS = 3


@dataclass(frozen=True)
class Estimate:
    """Accuracy of a classifier on scans that it did not learn from."""

    matrix: np.ndarray  # (classes, classes) counts; row = true class, column = predicted class
    classes: list[str]  # also "none of these" if that is an answer
    loss: float  # mean cross-entropy
    how: str  # where the predictions come from, such as "cross-validation in 5 folds"
    counted: np.ndarray  # (rows,) bool, the rows that have an answer
    scans: ScanScores  # of the rows that have an answer

    @classmethod
    def from_logits(
        cls, logits: np.ndarray, labels: np.ndarray, classes: list[str], how: str, refused: np.ndarray | None = None
    ) -> Estimate:
        """Judge logits (rows, classes) by labels (rows,); rows of NaN do not count.

        The model calls the rows where `refused` (rows,) is true none of its classes.
        """
        # Rows that no fold holds out have no answer.
        counted = np.asarray(~np.isnan(logits).any(axis=1))
        logits, labels, answers = logits[counted], labels[counted], logits[counted].argmax(axis=1)
        if refused is not None and refused[counted].any():
            # A refusal is an answer of its own, in a last column.
            answers = np.where(refused[counted], len(classes), answers)
            classes = [*classes, NONE_OF_THESE]
        # (classes, classes), with a last row and column for refusals if there are any
        matrix = confusion_matrix(answers, labels, len(classes))
        # The loss stays the same, and exponentials of large logits do not overflow.
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
        scans = ScanScores.of_classes(answers, labels, probabilities(logits).max(axis=1), classes)
        return cls(matrix, classes, float(losses.mean()), how, counted, scans)

    @property
    def total(self) -> int:
        """Scans that were judged."""
        return int(self.matrix.sum())

    @property
    def right(self) -> int:
        """Scans whose class was predicted."""
        return int(np.trace(self.matrix))

    @property
    def accuracy(self) -> float:
        """Share of right scans."""
        return overall_accuracy(self.matrix)

    @property
    def interval(self) -> tuple[float, float]:
        """Interval that holds the accuracy on further scans of this kind with a probability of 95 %."""
        return wilson_interval(self.right, self.total)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a report."""
        low, high = self.interval
        return {
            "accuracy": self.accuracy,
            "mean_class_accuracy": mean_class_accuracy(self.matrix),
            "loss": self.loss,
            "accuracy_low": low,
            "accuracy_high": high,
            "clouds": float(self.total),
        }

    def class_accuracy(self) -> dict[str, float]:
        """Return the accuracy of each class that was judged."""
        return by_name(self.classes, class_accuracies(self.matrix))

    @property
    def refused(self) -> int:
        """Scans that were called none of these."""
        # Refusals are the last column.
        return int(self.matrix[:, -1].sum()) if NONE_OF_THESE in self.classes else 0

    @property
    def refused_at_most(self) -> float:
        """Share of further scans of this kind that are called none of these at most, with a confidence of 95 %."""
        return share_at_most(self.refused, self.total)

    def confused(self) -> list[tuple[str, str, int]]:
        """Return pairs of classes that were confused, (true, predicted, times), the most frequent first."""
        # The diagonal holds what was right.
        wrong = self.matrix - np.diag(np.diag(self.matrix))
        pairs = [
            (self.classes[true], self.classes[other], int(wrong[true, other]))
            for true, other in np.argwhere(wrong > 0).tolist()
        ]
        return sorted(pairs, key=lambda pair: -pair[2])

    def text(self) -> str:
        """Return accuracy, counts and interval in words."""
        low, high = self.interval
        return (
            f"{percent(self.accuracy)} % ({self.right} of {self.total} scans; 95 % interval {percent(low)} to "
            f"{percent(high)} %)"
        )

    def confusion_text(self) -> str:
        """Return which classes were confused, and which needs scans most, in words."""
        # Not to answer is no confusion.
        pairs = [pair for pair in self.confused() if pair[1] != NONE_OF_THESE]
        if not pairs and not self.refused:
            return "no classes confused"
        shown = ", ".join(f"{true} predicted as {other} ({times})" for true, other, times in pairs[:_MOST_PAIRS])
        shown = shown or "no classes confused"
        more = f" and {len(pairs) - _MOST_PAIRS} more pairs" if len(pairs) > _MOST_PAIRS else ""
        more += f"; {self.refused} called {NONE_OF_THESE}" if self.refused else ""
        # The class with the lowest accuracy gains most from further scans.
        scores = self.class_accuracy()
        name = min(scores, key=lambda name: scores[name])
        number = self.classes.index(name)
        right = int(self.matrix[number, number])
        total = int(self.matrix[number].sum())
        return f"{shown}{more}; more scans of {name} would help most ({right} of {total} correct)"

    def section(self) -> str:
        """Return the Markdown of a card's section."""
        lines = [f"Accuracy {self.text()}, by {self.how}."]
        rows = []
        for number, name in enumerate(self.classes):
            scans = int(self.matrix[number].sum())
            # No scan is of the class "none of these", which has no row.
            if scans:
                taken = [f"{inline(other)} {times}" for true, other, times in self.confused() if true == name]
                right = int(self.matrix[number, number])
                rows.append(f"| {inline(name)} | {scans} | {right} | {', '.join(taken)} |")
        return "\n".join([*lines, "", "| class | scans | correct | predicted as |", "|---|---|---|---|", *rows])


def how_judged(
    scans: LabeledScans,
    folds: np.ndarray,
    config: PointFeaturesConfig,
    is_joined: bool,
    is_calibrated: bool,
    accuracy_of_views: float | None,
) -> str:
    """Tell how an estimate was made: by which folds and heads, and what it leaves out."""
    how = f"cross-validation in {folds.max() + 1} folds"
    if is_joined:
        how += " of the linear head alone (the trained model is not evaluated, as it was trained on all scans)"
    elif "wrap" in config.features:
        how += " (too optimistic if the adapter was trained on these scans)"
    # A head of a fold has learned one scan of a class less than the saved one, which is half of two.
    if np.median(list(scans.counts.values())) < _FEW:
        how += "; the final model is trained on more scans, so expect it to be slightly better"
    # Classes of one scan are learned, but no fold can hold it out.
    is_judged = folds[: len(scans.labels)] >= 0
    alone = [name for label, name in enumerate(scans.classes) if not is_judged[scans.labels == label].any()]
    if alone:
        how += f"; not evaluated: {', '.join(alone)}, with a single distinct scan"
    if is_calibrated:
        how += "; scores are calibrated on the held-out folds"
    if accuracy_of_views is not None:
        how += f"; accuracy on views {percent(accuracy_of_views)} %"
    return how


def save(
    model: PointFeaturesForPointCloudClassification,
    scans: Scans,
    examples: Examples,
    plan: Plan,
    estimates: dict[str, Estimate],
    stopwatch: Stopwatch,
    arguments: FewScansArguments,
) -> RunReport:
    """Write everything; metrics.json last, which marks the run as complete."""
    facts = program.data_facts(scans.data, scans.splits, CROSS_VALIDATION)
    # With those of the earlier model, to which scans were added
    facts["rows"] = {**facts["rows"], "train": len(scans.together.labels)}
    facts["scans of each class"] = scans.together.counts
    facts["near-duplicates"] = scans.together.num_copies
    report = RunReport(
        # Parts of a report for trainings stay empty where nothing was trained.
        data=facts,
        encoder={},
        adapter={},
        # The linear head alone was fitted; all else of the model is frozen.
        trained_parameters=count_parameters(model.classifier)[1],
        total_parameters=count_parameters(model)[1],
        seconds=stopwatch.stop(),
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
    folder = Path(arguments.output_dir)
    scan_scores = {split: estimates[split].scans.of_rows(rows) for split, rows in scans.judging.items()}
    if CROSS_VALIDATION in estimates:
        estimate = estimates[CROSS_VALIDATION]
        names = np.array(scans.together.names)[estimate.counted].tolist()
        digests = np.array(scans.together.digests)[estimate.counted].tolist()
        scan_scores[CROSS_VALIDATION] = estimate.scans.named(names, digests)
    sure = "\n\n".join(estimate.section() for estimate in estimates.values()) or (
        "Not evaluated: no class has two distinct scans."
    )
    if model.config.unknown.share is not None:
        said = _how_often_unknown(model.config, estimates[CROSS_VALIDATION])
        sure += f'\n\n"None of these" {said}.'
    with replacing_model(folder) as new:
        model.save_pretrained(new)
        scans.processor.save_pretrained(new)
        examples.save(new)
        save_scan_scores(new, scan_scores)
        write_run_card(model, report, scans.processor.num_points, sure, new, arguments.license, folder)
    return report


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
    lines = [f"{scans.origin}: {seen}; up axis {config.up_axis}"]
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
    if scans.learns_views:
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
