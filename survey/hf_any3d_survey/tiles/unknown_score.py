"""Unknown score of a model of tiles: how unlike all learned points another one is."""

from __future__ import annotations

import numpy as np
import torch

from hf_any3d.modeling.layers.unknown_score import REFUSED_SHARE, UnknownScore
from hf_any3d.training.few_scans.linear_head import whitening
from hf_any3d_survey.local_features import LocalFeaturesForPointCloudSegmentation
from hf_any3d_survey.local_features.fitting import Rows
from hf_any3d_survey.tiles.confidence import Judged

STATED_FROM = 3
"""Places from which on a level of "none of these" is stated."""
_UNKNOWN_ROWS, _UNKNOWN_WIDTH = 512, 16


def set_known_points(model: LocalFeaturesForPointCloudSegmentation, rows: Rows, kept: np.ndarray, seed: int) -> None:
    """Let the model know the points that it has learned, `kept`, by which it sees how unlike them others are."""
    generator = np.random.default_rng(seed)
    # Enough for a covariance of a hundred features
    count = len(kept)
    some = kept[generator.choice(count, min(count, 20_000), replace=False)]
    standard = model.local_features.standardize(torch.from_numpy(rows.features[some])).numpy()
    # The directions in which points of a class differ most from those of others.
    features = standard.astype(np.float64)
    # After this, points of one class differ equally in all directions, so what still varies tells classes apart.
    white = whitening(features, rows.labels[some])
    spread = np.cov((features @ white).T)
    values, directions = np.linalg.eigh(spread)
    kept = directions[:, np.argsort(-values)[:_UNKNOWN_WIDTH]]
    directions = white @ kept
    # Rows that are stored with the model, to which distances are taken
    known = generator.choice(len(some), min(len(some), _UNKNOWN_ROWS), replace=False)
    score = UnknownScore(len(known), standard.shape[1], 0, directions.shape[1])
    score.projection = torch.from_numpy(directions).float()
    score.features = score.project(torch.from_numpy(standard[known]))
    model.unknown_score = score
    model.config.unknown.rows, model.config.unknown.width = len(known), directions.shape[1]


def add_unknown_score(model: LocalFeaturesForPointCloudSegmentation, rows: Rows, judged: Judged, seed: int) -> None:
    """Give a model that has learned the rows an unknown score, calibrated by points of tiles that were held out."""
    set_known_points(model, rows, np.arange(len(rows.labels)), seed)
    config = model.config
    for name, values in judged.terms.items():
        # Terms are of different sizes; by mean and deviation of held-out points each counts alike.
        usual = float(values.mean())
        deviation = max(float(values.std()), 1e-3)
        setattr(config.unknown, name, [usual, max(usual, deviation) if name == "surprise" else deviation])
    # The level that no fold exceeds by more than the share: points of a place are alike, so that it is places that
    # have to be counted.
    sums = torch.zeros(len(judged.folds))
    for name, values in judged.terms.items():
        usual, deviation = getattr(config.unknown, name)
        sums += (values - usual) / deviation
    levels = [np.quantile(sums[judged.folds == fold].numpy(), 1 - REFUSED_SHARE) for fold in np.unique(judged.folds)]
    config.unknown.threshold = float(max(levels))
    # A share is promised only where enough places were held out to have seen it.
    is_stated = judged.estimate.unit != "tile" and len(judged.estimate.matrices) >= STATED_FROM
    config.unknown.share = REFUSED_SHARE if is_stated else None
