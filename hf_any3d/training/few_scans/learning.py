"""Learn from few scans: the model of their features, the head, the unknown score, and the head of views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_any3d.data.inputs import count_channels
from hf_any3d.integration.auto import AutoModelForPointCloudClassification
from hf_any3d.modeling.layers.unknown_score import (
    UnknownScore,
    is_none_of_these,
    score_of_signs,
    surprise,
    with_energy,
)
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.modeling.point_features.configuration_point_features import PART_OF
from hf_any3d.modeling.point_features.packaged_encoder import PACKAGED_UP_AXIS
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.few_scans.confidence import Estimate
from hf_any3d.training.few_scans.linear_head import (
    LinearHead,
    Metric,
    draw_folds,
    fit_head,
    fit_temperature,
    heads_of_folds,
    joined_with_scores,
    whitening,
)
from hf_any3d.training.few_scans.one_side import fit_side
from hf_any3d.training.few_scans.plan import WRAP_SHARPNESS, Plan
from hf_any3d.training.few_scans.report import how_judged
from hf_any3d.training.few_scans.request import FewScansArguments, own_up_axis
from hf_any3d.training.few_scans.scans import Examples
from hf_any3d.training.rows import class_names

STATED_FROM = 5
"""Different scans of each class from which on a level of "none of these" is stated: with fewer it does not hold."""
CALIBRATED_FROM = 75
"""Judged scans from which on a temperature is fitted to them: scores got worse with 50, and better with 100."""


def open_model(
    plan: Plan, data: DataArguments, arguments: FewScansArguments, known_up: str | None
) -> PointFeaturesForPointCloudClassification:
    """Build the model that computes the features, with a head that is not fitted, or open an earlier one.

    That has features as they are computed, too; the `known_up` axis of the scans must be its own.
    """
    if arguments.from_model is not None:
        return _open_earlier(arguments.from_model, known_up)
    given: dict[str, Any] = {}
    for part in PART_OF.values():
        if getattr(arguments, part) is not None:
            given[part] = getattr(arguments, part)
    settings: dict[str, Any] = {
        "features": list(_feature_sets(plan, data, arguments, given)),
        "copies": plan.copies,
        "in_channels": count_channels(data.features),
        "normals": data.features[1:2] == ["normals"],
        "up_axis": data.up_axis,
    }
    if arguments.heading == "unknown":
        settings["copy_turn"] = 180.0
    if arguments.encoder is not None:
        settings["encoder_up_axis"] = own_up_axis(arguments.encoder)
    settings["wrap_up_axis"] = own_up_axis(arguments.wrap)
    if arguments.wrap is not None and arguments.wrap_weight is not None:
        # With its head, which AutoModel would leave out.
        given["wrap"] = AutoModelForPointCloudClassification.from_pretrained(arguments.wrap)
        settings["wrap_labels"] = given["wrap"].config.num_labels
    if given:
        return PointFeaturesForPointCloudClassification.from_parts_pretrained(**given, **settings)
    return PointFeaturesForPointCloudClassification(PointFeaturesConfig(**settings)).eval()


def _open_earlier(folder: str, known_up: str | None) -> PointFeaturesForPointCloudClassification:
    """Open a model to which scans are added, without the numbers by which its features are standardized."""
    model = PointFeaturesForPointCloudClassification.from_pretrained(folder)
    assert isinstance(model, PointFeaturesForPointCloudClassification)  # from_pretrained declares any model
    if model.config.wrap_labels is not None:
        raise ValueError(f"--from {folder}: its wrap knows few scans; expected --way both with all scans")
    if known_up not in (None, up := model.config.up_axis):
        raise ValueError(f"--from {folder}: it has {up} up, but these scans have {known_up}; expected them turned")
    model.set_metric(None)
    model.point_features.mean.zero_()
    model.point_features.scale.fill_(1.0)
    return model.eval()


def _feature_sets(
    plan: Plan, data: DataArguments, arguments: FewScansArguments, given: dict[str, Any]
) -> tuple[str, ...]:
    """Return the sets of features: those of the plan, and those of the `given` parts."""
    sets = plan.features
    if arguments.feature_sets is None and data.features[1:2] == ["normals"]:
        sets = ("descriptors", *sets)  # the packaged encoder reads no normals
    if arguments.feature_sets is None or arguments.wrap_weight is not None:
        return (*sets, *(name for name, part in PART_OF.items() if part in given and name not in sets))
    if unused := [part for name, part in PART_OF.items() if part in given and name not in sets]:
        raise ValueError(f"--{unused[0]} {given[unused[0]]} with --feature_sets {' '.join(sets)}, which leave it out")
    return sets


@dataclass(frozen=True)
class Fitted:
    """Head and estimate of few scans, and what else was fitted; the model has it, too."""

    head: LinearHead
    estimate: Estimate | None  # by cross-validation; None if no class has two different scans
    unknown: UnknownScore | None = None  # None as well then
    side: torch.nn.Linear | None = None  # the head of views from one side


@dataclass(frozen=True)
class _Rows:
    """Rows to learn from: features of scans, and of views of them if these are learned, too."""

    features: np.ndarray  # (rows, width) float64
    labels: np.ndarray  # (rows,)
    groups: np.ndarray  # (rows,)
    folds: np.ndarray  # (rows,), -1 for rows that are never held out
    classes: list[str]
    bank: np.ndarray  # (things, width), features of things of no class
    learned: np.ndarray  # (width,) bool, the features in which distances are measured without a metric
    metric: Metric | None

    @property
    def held(self) -> np.ndarray:
        """The rows `(rows,)` that a fold holds out."""
        return self.folds >= 0


def metric_of(config: PointFeaturesConfig) -> Metric | None:
    """Return the stored metric if all features are those of the packaged encoder, but for a wrap's own answers."""
    sets = [name for name in config.features if name != "wrap" or config.wrap_labels is None]
    # Models of before may read clouds that lie; nothing is known of how these differ.
    is_upright = PACKAGED_UP_AXIS in (config.encoder_up_axis, config.up_axis)
    if sets != ["encoder"] or config.encoder_weights != "packaged" or not is_upright:
        return None
    return Metric.packaged(config.hidden_size)


def fit_few_scans(
    model: PointFeaturesForPointCloudClassification,
    examples: Examples,
    bank: np.ndarray,
    plan: Plan,
    arguments: FewScansArguments,
) -> Fitted:
    """Fit head and unknown score; judge the head by folds, if a class has two scans.

    If views are learned, those of all scans are further rows, of the same labels, groups and folds.
    """
    config, views = model.config, examples.views
    answers = _answers_of_wrap(config, examples.scans.classes)
    rows = _rows_of(model, examples, bank, answers, arguments)
    metric = rows.metric
    # The head learns from all scans; heads of the folds only judge, and calibrate.
    head = fit_head(rows.features, rows.labels, len(rows.classes), plan.strength, metric)
    logits, signs = _held_out(rows, plan.strength)
    is_calibrated = int((rows.held[: len(examples.scans.labels)]).sum()) >= CALIBRATED_FROM
    if is_calibrated:
        temperature = fit_temperature(logits[rows.held], rows.labels[rows.held])
        head, logits = head.cooled(temperature), logits / temperature
    if answers is not None:
        assert arguments.wrap_weight is not None
        head = joined_with_scores(head, answers, arguments.wrap_weight, WRAP_SHARPNESS)
    model.set_metric(None if metric is None else torch.from_numpy(metric.matrix))
    model.set_head(*(torch.from_numpy(getattr(head, name)).float() for name in ("weight", "bias", "mean", "scale")))
    if not rows.held.any():
        return Fitted(head, None)
    signs = _fit_unknown(model, rows, head, logits, signs)
    if views is not None and arguments.one_sided and not examples.learns_views:
        weight, bias = fit_side(head.standardize(rows.features), head.standardize(views), rows.folds)
        model.set_side_head(torch.from_numpy(weight).float(), bias)
    refused = np.zeros(len(rows.labels), bool)
    refused[rows.held] = is_none_of_these(score_of_signs(signs, config), config).numpy()
    how = how_judged(examples, rows.folds, config, answers is not None, is_calibrated)
    own = len(examples.scans.labels)
    if examples.learns_views:
        of_views = Estimate.from_logits(logits[own:], rows.labels[own:], rows.classes, how, refused[own:])
        how += f", with {100 * of_views.accuracy:.0f} % of the views right"
    estimate = Estimate.from_logits(logits[:own], rows.labels[:own], rows.classes, how, refused[:own])
    return Fitted(head, estimate, model.unknown_score, model.side_head)


def _rows_of(
    model: PointFeaturesForPointCloudClassification,
    examples: Examples,
    bank: np.ndarray,
    answers: np.ndarray | None,
    arguments: FewScansArguments,
) -> _Rows:
    """Return the rows to learn from, with their folds."""
    scans, features, views = examples.scans, examples.features.astype(np.float64), examples.views
    labels, groups = scans.labels, scans.groups
    folds = draw_folds(labels, groups, arguments.folds, arguments.seed)
    if examples.learns_views:
        assert views is not None
        features = np.concatenate([features, views])
        labels, groups, folds = (np.tile(values, 2) for values in (labels, groups, folds))
    if answers is not None:
        # The wrap is sure of the scans that it has learned: neither head nor distances may rely on that.
        bank = bank.copy()
        features[:, answers] = bank[:, answers] = 0.0
        if views is not None:
            views[:, answers] = 0.0
    # Beside learned features, descriptors make classes that were not learned harder to tell.
    widths = model.config.widths()
    are_learned = [name != "descriptors" or len(widths) == 1 for name in widths]
    learned = np.repeat(are_learned, list(widths.values()))
    return _Rows(features, labels, groups, folds, scans.classes, bank, learned, metric_of(model.config))


def _answers_of_wrap(config: PointFeaturesConfig, classes: list[str]) -> np.ndarray | None:
    """Return the columns of the features with the wrap's own answers, in the order of the classes; None without."""
    if config.wrap_labels is None:
        return None
    wrap_config: Any = config.wrap_config
    learned = [wrap_config.id2label[number] for number in range(config.wrap_labels)]
    if sorted(learned) != sorted(classes):
        raise ValueError(f"--wrap has learned the classes {learned}; expected those of the scans, {classes}")
    start = sum(list(config.widths().values())[: list(config.features).index("wrap")])
    return start + np.array([learned.index(name) for name in classes])


def _held_out(rows: _Rows, strength: float) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Return what models of the other folds say of each row: logits (rows, classes), and signs of the unknown score.

    Without a stored metric, features are standardized without the rows that are held out, too: what is far from all
    scans in one feature alone would else be as near as the others, since it widens that feature's deviation itself.
    """
    features, labels, bank, count = rows.features, rows.labels, rows.bank, len(rows.classes)
    logits, signs = np.full((len(labels), count), np.nan), {}
    for held, head in heads_of_folds(features, labels, rows.folds, count, strength, rows.metric):
        logits[held] = head.logits(features[held])
        standard = head.standardize(features[~held])
        projection = _projection(rows, standard, labels[~held])
        projected = None if projection is None else projection.shape[1]
        score = UnknownScore(len(standard), features.shape[1], len(bank), projected)
        score.projection = projection
        score.features = score.project(torch.from_numpy(standard).float())
        if len(bank):
            score.bank = score.project(torch.from_numpy(head.standardize(bank)).float())
        found = score.signs(torch.from_numpy(head.standardize(features[held])).float(), torch.zeros(int(held.sum())))
        for name, values in found.items():
            signs.setdefault(name, torch.full((len(labels),), torch.nan))[torch.from_numpy(held)] = values
    return logits, signs


def _projection(rows: _Rows, standard: np.ndarray, labels: np.ndarray) -> torch.Tensor | None:
    """Return the projection of the unknown score by standardized features (rows, width), learned ones alone.

    In a stored metric there is none: it is a whitening by far more shapes.
    """
    if rows.metric is not None:
        return None
    projection = np.zeros((len(rows.learned), rows.learned.sum()))
    projection[rows.learned] = whitening(standard[:, rows.learned], labels)
    return torch.from_numpy(projection).float()


def _fit_unknown(
    model: PointFeaturesForPointCloudClassification,
    rows: _Rows,
    head: LinearHead,
    logits: np.ndarray,
    signs: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Fit the unknown score to rows that heads of the folds have judged; return their signs `(judged,)`."""
    config, held = model.config, rows.held
    standard, judged = torch.from_numpy(head.standardize(rows.features)).float(), torch.from_numpy(held)
    judged_logits = torch.from_numpy(logits[held]).float()
    signs = {name: values[judged] for name, values in signs.items()} | {"unknown_surprise": surprise(judged_logits)}
    # Logits that are joined with the answers of a wrap have another energy than those that were judged.
    if rows.metric is not None and config.wrap_labels is None:
        signs = with_energy(signs, judged_logits)
    different = [len(np.unique(rows.groups[rows.labels == label])) for label in range(len(rows.classes))]
    # A wrap has usually seen the scans that the folds hold out.
    is_stated = min(different) >= STATED_FROM and "wrap" not in config.features
    model.fit_unknown_score(
        standard[judged],
        judged_logits,
        torch.from_numpy(rows.groups[held]),
        torch.from_numpy(head.standardize(rows.bank)).float() if len(rows.bank) else None,
        signs,
        _projection(rows, head.standardize(rows.features), rows.labels),
    )
    config.unknown_share = config.unknown_share if is_stated else None
    score = model.unknown_score
    assert score is not None
    # Scans that are alone in their class calibrate nothing, but what is like them is known.
    score.features = torch.cat([score.features, score.project(standard[~judged])])
    config.unknown_rows = len(standard)
    return signs


def evaluate(
    model: PointFeaturesForPointCloudClassification, head: LinearHead, rows: Dataset, features: np.ndarray
) -> Estimate:
    """Judge a model on a split that it has not learned from; what is of no learned class counts as wrong."""
    names, classes = class_names(rows), list(model.config.id2label.values())
    labels = np.array([names[label] for label in rows.with_format(None)["label"][:]])
    known = np.isin(labels, classes)
    every = classes + sorted({*labels[~known]})
    # Not -inf, so that the loss of a class that was not learned stays finite.
    logits = np.full((len(rows), len(every)), -1e3)
    logits[:, : len(classes)] = own = head.logits(features)
    standard = torch.from_numpy(head.standardize(features)).float()
    unknown = model.score_unknown(standard, torch.from_numpy(own).float())
    refused = None if unknown is None else is_none_of_these(unknown.numpy(), model.config)
    numbers = np.array([every.index(label) for label in labels])
    return Estimate.from_logits(logits, numbers, every, "its own split", refused)
