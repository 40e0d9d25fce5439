"""Learn classes from few scans in seconds: frozen features with a linear head, and how sure it is of its answers.

`learn_few_scans` is told from top to bottom: what is checked before (`preparation.py`), what is computed (`scans.py`),
what is fitted (here, and `linear_head.py`), by what it is judged (`cross_validation.py`), and what is said of it
(`report.py`). `learn_scans` also takes requests of the other ways.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict

from hf_any3d.data.axes import turn_up_axis
from hf_any3d.model_card.run_report import RunReport, Stopwatch
from hf_any3d.modeling.layers.unknown_score import (
    UnknownScore,
    is_none_of_these,
    score_of_terms,
    surprise,
    with_energy,
)
from hf_any3d.modeling.point_encoders.packaged_encoder import PACKAGED_UP_AXIS
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.pipelines import default_model
from hf_any3d.training import program
from hf_any3d.training.few_scans.cross_validation import (
    HeldOutAnswers,
    TrainingRows,
    answer_held_out,
    draw_folds,
    projection_of,
)
from hf_any3d.training.few_scans.linear_head import (
    LinearHead,
    Metric,
    fit_head,
    fit_temperature,
    joined_with_scores,
)
from hf_any3d.training.few_scans.one_side import fit_side
from hf_any3d.training.few_scans.plan import STATED_FROM, WRAP_SHARPNESS, WRAP_WEIGHT, Plan
from hf_any3d.training.few_scans.preparation import prepare
from hf_any3d.training.few_scans.report import CROSS_VALIDATION, Estimate, how_judged, lines_of, save
from hf_any3d.training.few_scans.request import BothWays, FewScans, FewScansArguments
from hf_any3d.training.few_scans.scans import (
    Examples,
    compute_examples,
    compute_features,
    compute_things,
    hint_of_axis,
    implied_up_axis,
)
from hf_any3d.training.program import figures, train
from hf_any3d.training.rows import class_names
from hf_any3d.training.scan_sizes import record_sizes
from hf_any3d.training.tasks import Classification
from hf_any3d.utils.atomic_files import release_claims, temporary_folder

CALIBRATED_FROM = 75
"""Judged scans from which on a temperature is fitted to them: scores got worse with 50, and better with 100."""


@dataclass(frozen=True)
class Learned:
    """A model that was saved."""

    report: RunReport
    lines: list[str]


def learn_few_scans(request: FewScans | Sequence[str], rows: DatasetDict | None = None) -> Learned:
    """Learn the classes of few scans, and save model, card and metrics.json.

    Raises:
        PointCloudFileError: No file of the folder can be read.
        ValueError: There is one class or one scan in all, two labels for the same scan, or settings that do not fit.
        OSError: There is no such folder, or an encoder that was asked for is neither on the hub nor in the cache.
    """
    stopwatch = Stopwatch()
    if not isinstance(request, FewScans):
        request = FewScans.parse(request)
    # A folder that cannot be written is an error before the features are computed.
    program.claim_output(Path(request.arguments.output_dir))
    with stopwatch.part("data"):
        prepared = prepare(request, rows)
    model = prepared.model
    train_rows = prepared.splits["train"]
    with stopwatch.part("features"):
        # Before the model has a head, with which features are standardized, so that those in the cache stay valid.
        has_views = request.arguments.one_sided or prepared.learns_views
        examples = compute_examples(model, train_rows, prepared.processor, prepared.scans, prepared.earlier, has_views)
        examples = replace(examples, learns_views=prepared.learns_views)
        # (rows, width) each, of splits that only judge; without them, few scans are judged by folds alone.
        features_of_splits = {}
        for split in prepared.splits:
            if split in ("validation", "test"):
                features_of_splits[str(split)] = compute_features(model, prepared.splits[split], prepared.processor)
    # Drawn for each run: a bank that is stored would be of one up axis and number of points.
    with stopwatch.part("things of no class"):
        things = compute_things(model, prepared.processor, prepared.num_things)
    with stopwatch.part("head"):
        model.config.id2label = dict(enumerate(examples.scans.classes))
        model.config.label2id = {name: number for number, name in enumerate(examples.scans.classes)}
        model.classifier = torch.nn.Linear(model.config.hidden_size, len(examples.scans.classes))
        # An earlier model has one for features that are standardized otherwise.
        model.side_head = None
        model.config.one_sided = False
        # By these a later file is known to be of another unit.
        record_sizes(model.config, prepared.data, train_rows)
        fitted = fit_few_scans(model, examples, things, prepared.plan, request.arguments)
        estimates = {}
        if fitted.estimate is not None:
            estimates[CROSS_VALIDATION] = fitted.estimate
        for split, features in features_of_splits.items():
            estimates[split] = _judge_split(model, fitted.head, prepared.splits[split], features)
    report = save(prepared, examples, estimates, stopwatch)
    # Only after the last file, so that a killed run leaves its mark.
    release_claims()
    hint = None
    if prepared.is_axis_assumed:
        hint = hint_of_axis(train_rows, prepared.data.up_axis)
    return Learned(report, lines_of(prepared, estimates, hint))


@dataclass(frozen=True)
class Fitted:
    """Head and estimate of few scans, and what else was fitted; the model has it, too."""

    head: LinearHead
    estimate: Estimate | None  # by cross-validation; None if no class has two different scans
    unknown: UnknownScore | None = None  # None as well then
    side: torch.nn.Linear | None = None  # the head of views from one side


def fit_few_scans(
    model: PointFeaturesForPointCloudClassification,
    examples: Examples,
    things: np.ndarray,
    plan: Plan,
    arguments: FewScansArguments,
) -> Fitted:
    """Fit head and unknown score; judge the head by folds, if a class has two scans.

    If views are learned, those of all scans are further rows, of the same labels, groups and folds.

    Args:
        model: Gets what is fitted.
        examples: The scans with their features.
        things: `(things, width)`, features of things of no class.
        plan: Has the strength of the head.
        arguments: Folds, and the share of a trained model's own answers.
    """
    # A wrap that has learned the classes gives answers beside its features.
    answer_columns = _columns_of_answers(model.config, examples.scans.classes)
    rows = _training_rows(model.config, examples, things, answer_columns, arguments)
    # The head learns from all scans; heads of the folds only judge, and calibrate.
    head = fit_head(rows.features, rows.labels, len(rows.classes), plan.strength, rows.metric)
    # (rows, classes) logits, of each row by a head that has not seen its group
    answers = answer_held_out(rows, plan.strength)
    # Views are no further evidence: they are of the same scans.
    is_calibrated = int(rows.held_out[: len(examples.scans.labels)].sum()) >= CALIBRATED_FROM
    if is_calibrated:
        temperature = fit_temperature(answers.logits[rows.held_out], rows.labels[rows.held_out])
        head = head.cooled(temperature)
        answers = replace(answers, logits=answers.logits / temperature)
    if answer_columns is not None:
        assert arguments.wrap_weight is not None
        head = joined_with_scores(head, answer_columns, arguments.wrap_weight, WRAP_SHARPNESS)
    model.set_metric(None if rows.metric is None else torch.from_numpy(rows.metric.matrix))
    model.set_head(
        torch.from_numpy(head.weight).float(),
        torch.from_numpy(head.bias).float(),
        torch.from_numpy(head.mean).float(),
        torch.from_numpy(head.scale).float(),
    )
    # Nothing is held out where each class has one scan: then nobody knows how good the head is.
    if not rows.held_out.any():
        return Fitted(head, None)
    terms = _fit_unknown_score(model, rows, head, answers)
    if rows.views is not None and arguments.one_sided and not examples.learns_views:
        weight, bias = fit_side(head.standardize(rows.features), head.standardize(rows.views), rows.folds)
        model.set_side_head(torch.from_numpy(weight).float(), bias)
    estimate = _estimate(model.config, examples, rows, answers, terms, answer_columns is not None, is_calibrated)
    return Fitted(head, estimate, model.unknown_score, model.side_head)


def _columns_of_answers(config: PointFeaturesConfig, classes: list[str]) -> np.ndarray | None:
    """Return the columns of the features with a trained model's own answers, in the order of the classes.

    None without such a model, or if it only gives features.
    """
    if config.wrap_labels is None:
        return None
    wrap_config: Any = config.wrap_config
    # Its classes may stand in another order than those of the scans.
    learned = [wrap_config.id2label[number] for number in range(config.wrap_labels)]
    if sorted(learned) != sorted(classes):
        raise ValueError(f"--wrap has learned the classes {learned}; expected those of the scans, {classes}")
    sets_before = list(config.features).index("wrap")
    # Features of all sets stand side by side, in the order of the config.
    start = sum(list(config.widths().values())[:sets_before])
    return start + np.array([learned.index(name) for name in classes])


def _training_rows(
    config: PointFeaturesConfig,
    examples: Examples,
    things: np.ndarray,
    answer_columns: np.ndarray | None,
    arguments: FewScansArguments,
) -> TrainingRows:
    """Return the rows to learn from, with their folds."""
    scans = examples.scans
    # In double precision, in which heads are fitted
    features = examples.features.astype(np.float64)
    views = examples.views
    labels = scans.labels
    groups = scans.groups
    folds = draw_folds(labels, groups, arguments.folds, arguments.seed)
    if examples.learns_views:
        assert views is not None
        # A view is in the group and fold of its scan, so that no head is judged by a view of what it has learned.
        features = np.concatenate([features, views])
        labels = np.tile(labels, 2)
        groups = np.tile(groups, 2)
        folds = np.tile(folds, 2)
    if answer_columns is not None:
        # A trained model is sure of the scans that it has learned: neither head nor distances may rely on that.
        things = things.copy()
        features[:, answer_columns] = 0.0
        things[:, answer_columns] = 0.0
        if views is not None:
            views = views.copy()
            views[:, answer_columns] = 0.0
    # Distances are measured in all features but descriptors beside learned ones: these make classes that were not
    # learned harder to tell.
    widths = config.widths()
    counts = [name != "descriptors" or len(widths) == 1 for name in widths]
    learned = np.repeat(counts, list(widths.values()))
    sets = [name for name in config.features if name != "wrap" or config.wrap_labels is None]
    # Of clouds that lie, nothing is known of how they differ.
    is_upright = PACKAGED_UP_AXIS in (config.encoder_up_axis, config.up_axis)
    metric = None
    if sets == ["encoder"] and config.encoder_weights == "packaged" and is_upright:
        metric = Metric.packaged(config.hidden_size)
    return TrainingRows(
        features=features,
        labels=labels,
        groups=groups,
        folds=folds,
        classes=scans.classes,
        things=things,
        learned=learned,
        views=views,
        metric=metric,
    )


def _fit_unknown_score(
    model: PointFeaturesForPointCloudClassification, rows: TrainingRows, head: LinearHead, answers: HeldOutAnswers
) -> dict[str, torch.Tensor]:
    """Fit the unknown score to rows that heads of the folds have judged; return their terms `(judged,)`."""
    config = model.config
    judged = torch.from_numpy(rows.held_out)
    logits = torch.from_numpy(answers.logits[rows.held_out]).float()  # (judged, classes)
    terms = {name: values[judged] for name, values in answers.terms.items()}
    terms["surprise"] = surprise(logits)
    # Logits that are joined with the answers of a trained model have another energy than those that were judged.
    if rows.metric is not None and config.wrap_labels is None:
        terms = with_energy(terms, logits)
    # In the metric in which distances are taken later, too
    standard = head.standardize(rows.features)
    features = torch.from_numpy(standard).float()
    model.fit_unknown_score(
        features[judged],
        logits,
        torch.from_numpy(rows.groups[rows.held_out]),
        torch.from_numpy(head.standardize(rows.things)).float() if len(rows.things) else None,
        terms,
        projection_of(rows, standard, rows.labels),
    )
    different_scans = [len(np.unique(rows.groups[rows.labels == label])) for label in range(len(rows.classes))]
    # Of few scans the level is too low, and a trained model has usually seen the scans that the folds hold out.
    if min(different_scans) < STATED_FROM or "wrap" in config.features:
        config.unknown.share = None
    score = model.unknown_score
    assert score is not None
    # Scans that are alone in their class calibrate nothing, but what is like them is known.
    score.features = torch.cat([score.features, score.project(features[~judged])])
    config.unknown.rows = len(features)
    return terms


def _estimate(
    config: PointFeaturesConfig,
    examples: Examples,
    rows: TrainingRows,
    answers: HeldOutAnswers,
    terms: dict[str, torch.Tensor],
    is_joined: bool,
    is_calibrated: bool,
) -> Estimate:
    """Judge the answers for scans; views of them, which follow if they are learned, only add to how it was judged."""
    # As `predict` does: a scan that gets no label counts as wrong, whatever class has the highest logit.
    refused = np.zeros(len(rows.labels), bool)
    refused[rows.held_out] = is_none_of_these(score_of_terms(terms, config), config).numpy()
    scans = slice(len(examples.scans.labels))
    views = slice(len(examples.scans.labels), None)
    accuracy_of_views = None
    if examples.learns_views:
        of_views = Estimate.from_logits(answers.logits[views], rows.labels[views], rows.classes, "", refused[views])
        accuracy_of_views = of_views.accuracy
    how = how_judged(examples.scans, rows.folds, config, is_joined, is_calibrated, accuracy_of_views)
    return Estimate.from_logits(answers.logits[scans], rows.labels[scans], rows.classes, how, refused[scans])


def _judge_split(
    model: PointFeaturesForPointCloudClassification, head: LinearHead, rows: Dataset, features: np.ndarray
) -> Estimate:
    """Judge a model on a split that it has not learned from; what is of no learned class counts as wrong."""
    names = class_names(rows)
    # By name: numbers of classes may differ between splits.
    labels = np.array([names[label] for label in rows.with_format(None)["label"][:]])
    learned = list(model.config.id2label.values())
    others = sorted({*labels[~np.isin(labels, learned)]})
    # Further classes get columns, so that the table of confusions can show them.
    classes = learned + others
    # Not -inf, so that the loss of a class that was not learned stays finite.
    logits = np.full((len(rows), len(classes)), -1e3)
    logits[:, : len(learned)] = head.logits(features)
    standard = torch.from_numpy(head.standardize(features)).float()
    unknown = model.score_unknown(standard, torch.from_numpy(logits[:, : len(learned)]).float())
    refused = None if unknown is None else is_none_of_these(unknown.numpy(), model.config)
    numbers = np.array([classes.index(label) for label in labels])
    return Estimate.from_logits(logits, numbers, classes, "its own split", refused)


def learn_scans(request: FewScans | BothWays | program.TrainingTask, rows: DatasetDict | None = None) -> Learned:
    """Learn in the way that a request asks for, and save model, card and metrics.json.

    `rows` are the scans if they are loaded.
    """
    if isinstance(request, FewScans):
        return learn_few_scans(request, rows)
    if isinstance(request, BothWays):
        # Train a classifier, and average its answers with those of a head on frozen features; one model has both.
        scans = request.scans
        if rows is None:
            rows = scans.load()
        # What is wrong with the scans or their folder is found before the minutes of a training.
        program.claim_output(Path(scans.arguments.output_dir))
        prepare(scans, rows)
        with temporary_folder() as folder, _without_lines_on(str(folder)):
            trained = str(folder / "wrap")
            _train_into(trained, request.classification, scans, rows)
            arguments = replace(scans.arguments, wrap=trained, wrap_weight=WRAP_WEIGHT)
            return learn_few_scans(replace(scans, arguments=arguments), rows)
    report = train(request, rows)
    return Learned(report, figures(report))


def _train_into(folder: str, classification: Classification, scans: FewScans, rows: DatasetDict) -> None:
    """Train a classifier, and save it in a folder."""
    # The request may be used again.
    training = copy(classification.training)
    data = copy(classification.data)
    training.output_dir = folder
    up_axis = scans.data.up_axis or implied_up_axis(scans.data, rows["train"]) or PACKAGED_UP_AXIS
    starts_from_packaged = classification.model.model_name_or_path == default_model()
    if starts_from_packaged and up_axis != PACKAGED_UP_AXIS:
        # It goes on learning from what it knows. The model of both turns clouds for it as for the encoder.
        data.up_axis = PACKAGED_UP_AXIS

        def turn(row: dict[str, Any]) -> dict[str, Any]:
            points = np.array(row["points"])  # a copy, since rows may be views
            points[:, :3] = turn_up_axis(points[:, :3], up_axis, PACKAGED_UP_AXIS)
            return {"points": points}

        rows = rows.map(turn)
    train(replace(classification, training=training, data=data), rows)


@contextmanager
def _without_lines_on(folder: str) -> Iterator[None]:
    """Silence the advice of a training about a folder that is removed afterwards."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return folder not in record.getMessage()

    program.logger.addFilter(is_of_others)
    try:
        yield
    finally:
        program.logger.removeFilter(is_of_others)
