"""Cross-validation on few scans: folds, and what models say of scans that they have not learned from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from hf_any3d.modeling.layers.unknown_score import UnknownScore
from hf_any3d.training.few_scans.linear_head import LinearHead, Metric, fit_head, whitening


@dataclass(frozen=True)
class TrainingRows:
    """Rows to learn from: features of scans, and of views of them if these are learned, too."""

    features: np.ndarray  # (rows, width) float64
    labels: np.ndarray  # (rows,)
    groups: np.ndarray  # (rows,)
    folds: np.ndarray  # (rows,), -1 for rows that are never held out
    classes: list[str]
    things: np.ndarray  # (things, width), features of things of no class
    learned: np.ndarray  # (width,) bool, the features in which distances are measured without a metric
    views: np.ndarray | None  # (scans, width), features of a view of each scan from one side
    metric: Metric | None

    @property
    def held_out(self) -> np.ndarray:
        """The rows `(rows,)` that a fold holds out."""
        return self.folds >= 0


@dataclass(frozen=True)
class HeldOutAnswers:
    """Answers of models of the other folds for each row; NaN for rows that no fold holds out."""

    logits: np.ndarray  # (rows, classes)
    terms: dict[str, torch.Tensor]  # (rows,) each, summands of the unknown score by their fields in the config


def draw_folds(labels: np.ndarray, groups: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Divide rows into at most so many folds with about equal shares of each class; rows of a group stay together.

    A group of several classes counts as its most frequent one. There are no more folds than the largest class has
    groups, whose order is drawn by the seed.

    Returns:
        (rows,) fold numbers from 0; -1 for rows of classes with a single group, which are never held out.
    """
    # Rows of each group: near-duplicates in two folds would judge a head by what it has learned.
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    by_class: dict[int, list[np.ndarray]] = {}
    for rows in members:
        by_class.setdefault(int(np.bincount(labels[rows]).argmax()), []).append(rows)
    generator = np.random.default_rng(seed)
    # With more folds than groups, some would hold out nothing.
    count = min(most, max(map(len, by_class.values())))
    folds = np.full(len(labels), -1)
    place = 0
    for label in sorted(by_class):
        owned = by_class[label]
        if len(owned) < 2:
            continue
        # The next class goes on where this one ends, so that folds differ by one group at most.
        for number in generator.permutation(len(owned)):
            folds[owned[number]] = place % count
            place += 1
    return folds


def held_out_logits(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, num_classes: int, strength: float
) -> np.ndarray:
    """Return logits (rows, classes) of each row by a head that was fitted to the other folds; NaN for fold -1."""
    logits = np.full((len(labels), num_classes), np.nan)
    for held, head in heads_of_folds(features, labels, folds, num_classes, strength):
        logits[held] = head.logits(features[held])
    return logits


def heads_of_folds(
    features: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    num_classes: int,
    strength: float,
    metric: Metric | None = None,
) -> Iterator[tuple[np.ndarray, LinearHead]]:
    """Yield which rows a fold holds out, (rows,) bool, and the head of the others; none for fold -1."""
    for fold in sorted(set(folds.tolist()) - {-1}):
        held = folds == fold
        yield held, fit_head(features[~held], labels[~held], num_classes, strength, metric)


def answer_held_out(rows: TrainingRows, strength: float) -> HeldOutAnswers:
    """Let models of the other folds answer for each row: logits, and the terms of the unknown score.

    Without a stored metric, features are standardized without the rows that are held out, too: what is far from all
    scans in one feature alone would else be as near as the others, since it widens that feature's deviation itself.
    """
    logits = np.full((len(rows.labels), len(rows.classes)), np.nan)
    terms: dict[str, torch.Tensor] = {}
    folds = heads_of_folds(rows.features, rows.labels, rows.folds, len(rows.classes), strength, rows.metric)
    for held_out, head in folds:
        logits[held_out] = head.logits(rows.features[held_out])
        learned = ~held_out
        # (learned rows, width) standardized by the head's own mean and deviation
        standard = head.standardize(rows.features[learned])
        projection = projection_of(rows, standard, rows.labels[learned])
        projected = None if projection is None else projection.shape[1]
        score = UnknownScore(len(standard), standard.shape[1], len(rows.things), projected)
        score.projection = projection
        score.features = score.project(torch.from_numpy(standard).float())
        if len(rows.things):
            score.bank = score.project(torch.from_numpy(head.standardize(rows.things)).float())
        features = torch.from_numpy(head.standardize(rows.features[held_out])).float()
        # Surprise is added later, by logits that a temperature has calibrated.
        without_surprise = torch.zeros(len(features))
        for name, values in score.terms(features, without_surprise).items():
            if name not in terms:
                terms[name] = torch.full((len(rows.labels),), torch.nan)
            terms[name][torch.from_numpy(held_out)] = values
    return HeldOutAnswers(logits, terms)


def projection_of(rows: TrainingRows, standard: np.ndarray, labels: np.ndarray) -> torch.Tensor | None:
    """Return the projection of the unknown score by standardized features (rows, width), learned ones alone.

    In a stored metric there is none: it is a whitening by far more shapes.
    """
    if rows.metric is not None:
        return None
    # (width, projected) rows of features in which distances are not measured stay 0
    projection = np.zeros((len(rows.learned), rows.learned.sum()))
    projection[rows.learned] = whitening(standard[:, rows.learned], labels)
    return torch.from_numpy(projection).float()
