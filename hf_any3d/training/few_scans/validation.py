"""Judge what was fitted to few scans: by the answers of heads of folds, and on splits of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from datasets import Dataset

from hf_any3d.modeling.layers.unknown_score import is_none_of_these
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.training.few_scans.estimate import Estimate
from hf_any3d.training.few_scans.fitting import Fitted
from hf_any3d.training.few_scans.labeled_scans import LabeledScans
from hf_any3d.training.few_scans.linear_head import LinearHead
from hf_any3d.training.rows import class_names
from hf_any3d.utils.messages import percent

CROSS_VALIDATION = "cross-validation"
# Usual scans of a class below which an estimate is too low: by 6 points at two a class, by 2 at five.
_FEW = 4


def validate(
    model: PointFeaturesForPointCloudClassification,
    fitted: Fitted,
    scans: LabeledScans,
    judging: Mapping[str, tuple[Dataset, np.ndarray]],
) -> dict[str, Estimate]:
    """Judge a model by cross-validation, and on splits of their own.

    Args:
        model: The model with what was fitted.
        fitted: The head, and the answers of heads of folds.
        scans: The scans that were learned.
        judging: Rows of each split that only judges, and their features `(rows, width)`.

    Returns:
        Estimates by the names of the splits; that of the folds first, unless no class has two different scans.
    """
    estimates = {}
    # Nothing is held out where each class has one scan: then nobody knows how good the head is.
    if fitted.rows.held_out.any():
        estimates[CROSS_VALIDATION] = _judge_by_folds(model.config, fitted, scans)
    for split, (rows, features) in judging.items():
        estimates[split] = _judge_split(model, fitted.head, rows, features)
    return estimates


def _judge_by_folds(config: PointFeaturesConfig, fitted: Fitted, learned: LabeledScans) -> Estimate:
    """Judge the answers for scans; views of them, which follow if they are learned, only add to how it was judged."""
    rows = fitted.rows
    logits = fitted.answers.logits
    scans = slice(len(learned.labels))
    views = slice(len(learned.labels), None)
    how = _how_judged(config, fitted, learned)
    if fitted.learns_views:
        of_views = Estimate.from_logits(logits[views], rows.labels[views], rows.classes, "", fitted.refused[views])
        how += f"; accuracy on views {percent(of_views.accuracy)} %"
    return Estimate.from_logits(logits[scans], rows.labels[scans], rows.classes, how, fitted.refused[scans])


def _how_judged(config: PointFeaturesConfig, fitted: Fitted, learned: LabeledScans) -> str:
    """Tell how an estimate was made: by which folds and heads, and what it leaves out."""
    folds = fitted.rows.folds
    how = f"cross-validation in {folds.max() + 1} folds"
    if fitted.is_joined:
        how += " of the linear head alone (the trained model is not evaluated, as it was trained on all scans)"
    elif "wrap" in config.features:
        how += " (too optimistic if the adapter was trained on these scans)"
    # A head of a fold has learned one scan of a class less than the saved one, which is half of two.
    if np.median(list(learned.counts.values())) < _FEW:
        how += "; the final model is trained on more scans, so expect it to be slightly better"
    # Classes of one scan are learned, but no fold can hold it out.
    is_judged = folds[: len(learned.labels)] >= 0
    alone = [name for label, name in enumerate(learned.classes) if not is_judged[learned.labels == label].any()]
    if alone:
        how += f"; not evaluated: {', '.join(alone)}, with a single distinct scan"
    if fitted.is_calibrated:
        how += "; scores are calibrated on the held-out folds"
    return how


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
