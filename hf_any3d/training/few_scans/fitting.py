"""Fit what a model of few scans has: the linear head, its temperature, the unknown score, and the head of views.

Heads of folds are fitted beside it, by whose answers `validation.py` judges it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hf_any3d.modeling.layers.unknown_score import is_none_of_these, score_of_terms, surprise, with_energy
from hf_any3d.modeling.point_encoders.packaged_encoder import PACKAGED_UP_AXIS
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.training.few_scans.cross_validation import (
    HeldOutAnswers,
    TrainingRows,
    answer_held_out,
    draw_folds,
    projection_of,
)
from hf_any3d.training.few_scans.examples import Examples
from hf_any3d.training.few_scans.linear_head import (
    LinearHead,
    Metric,
    fit_head,
    fit_temperature,
    joined_with_scores,
)
from hf_any3d.training.few_scans.one_side import fit_side
from hf_any3d.training.few_scans.plan import STATED_FROM, WRAP_SHARPNESS
from hf_any3d.training.few_scans.request import FewScansArguments

CALIBRATED_FROM = 75
"""Judged scans from which on a temperature is fitted to them: scores got worse with 50, and better with 100."""


@dataclass(frozen=True)
class Fitted:
    """A head that has learned all scans, and what heads of folds say of those that they have not learned.

    Attributes:
        head: The head of the model.
        rows: What it has learned: the scans, and then their views if these are learned, too.
        answers: Answers of the heads of folds, by the temperature of the head.
        refused: `(rows,)` bool, the held-out rows that are none of the classes by these answers.
        learns_views: Whether the second half of the rows are views.
        is_calibrated: Whether a temperature was fitted.
        is_joined: Whether the head also has the answers of a trained model, which the answers have not.
    """

    head: LinearHead
    rows: TrainingRows
    answers: HeldOutAnswers
    refused: np.ndarray
    learns_views: bool
    is_calibrated: bool
    is_joined: bool


def fit_few_scans(
    model: PointFeaturesForPointCloudClassification,
    examples: Examples,
    things: np.ndarray,
    strength: float,
    arguments: FewScansArguments,
) -> Fitted:
    """Fit head and unknown score, and heads of folds, if a class has two scans.

    If views are learned, those of all scans are further rows, of the same labels, groups and folds.

    Args:
        model: Gets what is fitted.
        examples: The scans with their features.
        things: `(things, width)`, features of things of no class.
        strength: Weight of the scans, see `fit_head`.
        arguments: Folds, and the share of a trained model's own answers.
    """
    # A wrap that has learned the classes gives answers beside its features.
    answer_columns = _columns_of_answers(model.config, examples.scans.classes)
    folds = draw_folds(examples.scans.labels, examples.scans.groups, arguments.folds, arguments.seed)
    rows = _training_rows(model.config, examples, things, answer_columns, folds)
    # The head learns from all scans; heads of the folds only judge, and calibrate.
    head = fit_head(rows.features, rows.labels, len(rows.classes), strength, rows.metric)
    # (rows, classes) logits, of each row by a head that has not seen its group
    answers = answer_held_out(rows, strength)
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
    refused = np.zeros(len(rows.labels), bool)
    # Nothing is held out where each class has one scan.
    if rows.held_out.any():
        terms = _fit_unknown_score(model, rows, head, answers)
        # As `predict` does: a scan that gets no label counts as wrong, whatever class has the highest logit.
        refused[rows.held_out] = is_none_of_these(score_of_terms(terms, model.config), model.config).numpy()
        if rows.views is not None and arguments.one_sided and not examples.learns_views:
            weight, bias = fit_side(head.standardize(rows.features), head.standardize(rows.views), rows.folds)
            model.set_side_head(torch.from_numpy(weight).float(), bias)
    is_joined = answer_columns is not None
    return Fitted(head, rows, answers, refused, examples.learns_views, is_calibrated, is_joined)


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
        raise ValueError(f"--wrap was trained on the classes {learned}; expected the classes of the scans, {classes}")
    sets_before = list(config.features).index("wrap")
    # Features of all sets stand side by side, in the order of the config.
    start = sum(list(config.widths().values())[:sets_before])
    return start + np.array([learned.index(name) for name in classes])


def _training_rows(
    config: PointFeaturesConfig,
    examples: Examples,
    things: np.ndarray,
    answer_columns: np.ndarray | None,
    folds: np.ndarray,
) -> TrainingRows:
    """Return the rows to learn from, with their folds; given are those of the scans."""
    scans = examples.scans
    # In double precision, in which heads are fitted
    features = examples.features.astype(np.float64)
    views = examples.views
    labels = scans.labels
    groups = scans.groups
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
