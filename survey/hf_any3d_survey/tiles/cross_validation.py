"""Cross-validation on tiles: folds of whole places, and what models say of those that they have not learned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hf_any3d.training.few_scans.linear_head import fit_temperature
from hf_any3d_survey.local_features import LocalFeaturesForPointCloudSegmentation
from hf_any3d_survey.local_features.fitting import logits_of
from hf_any3d_survey.tiles.confidence import Judged, TilesEstimate
from hf_any3d_survey.tiles.examples import Examples
from hf_any3d_survey.tiles.tile_set import TileSet
from hf_any3d_survey.tiles.unknown_score import set_known_points


def judge_held_out(
    tiles: TileSet,
    examples: Examples,
    fit: Callable[..., LocalFeaturesForPointCloudSegmentation],
    most: int,
    seed: int,
) -> Judged | None:
    """Judge by folds of whole places; tiles of one place alone are folds of their own. None for a single tile.

    Args:
        tiles: The tiles.
        examples: Their rows.
        fit: Returns a model of the rows `kept`, by their numbers.
        most: Number of folds at most.
        seed: Of the folds, and of what the unknown score knows.
    """
    rows = examples.rows
    has_places = tiles.num_places > 1
    # Tiles of one place show the same street, so that one of them tells too much about the next. Those that share
    # ground would tell of the very same points.
    unit = rows.places if has_places else tiles.twins[rows.tiles]
    numbers = np.unique(unit)
    count = len(numbers)
    if count < 2:
        return None
    folds = _folds(unit, min(count, most), seed)
    # Judged as they are; thinned copies are learned only.
    is_whole = rows.copies == 0
    kept_logits = []
    kept_labels = []
    kept_folds = []
    terms: dict[str, list[torch.Tensor]] = {}
    # (units, true classes, answered classes), weighted points
    matrices = np.zeros((count, len(tiles.classes.names), len(tiles.classes.names)))
    for fold in np.unique(folds):
        is_held = (folds == fold) & is_whole
        held = rows.part(is_held)
        kept = np.flatnonzero(folds != fold)
        # A fold without labeled points, or whose others show a single class, tells nothing.
        if not len(held.labels) or len(np.unique(rows.labels[kept])) < 2:
            continue
        model = fit(kept=kept)
        # Held-out points are measured against what this fold's model has learned, as later scans will be.
        set_known_points(model, rows, kept, seed)
        logits, standard = logits_of(model, held.features)
        for name, values in model.unknown_terms(torch.from_numpy(standard), torch.from_numpy(logits)).items():
            terms.setdefault(name, []).append(values.detach())
        # Half of the rows were drawn by class; weighted, the confusion is that of all points.
        drawn = np.zeros_like(examples.labeled)
        # (tiles, classes), the number of rows that were drawn of each
        np.add.at(drawn, (held.tiles, held.labels), 1)
        weights = examples.labeled[held.tiles, held.labels] / drawn[held.tiles, held.labels]
        np.add.at(matrices, (np.searchsorted(numbers, unit[is_held]), held.labels, logits.argmax(axis=1)), weights)
        kept_logits.append(logits)
        kept_labels.append(held.labels)
        kept_folds.append(np.full(len(logits), fold))
    if not kept_logits:
        return None
    logits = np.concatenate(kept_logits)
    labels = np.concatenate(kept_labels)
    name = "site" if has_places and tiles.are_places else tiles.kind
    how = f"{len(kept_logits)} training runs, each holding out whole {name}s"
    if has_places:
        how += f"; the interval holds for new {name}s of the same kind"
    else:
        how += "; all tiles are from one site, so expect lower scores on other sites"
    matrices = matrices[matrices.sum(axis=(1, 2)) > 0]
    estimate = TilesEstimate(matrices, tiles.classes.names, how, name)
    # Points of a place say much the same, so that few of each are enough.
    temperature = fit_temperature(logits.astype(np.float64)[::20], labels[::20])
    joined = {name: torch.cat(values) for name, values in terms.items()}
    return Judged(estimate, temperature, joined, np.concatenate(kept_folds))


def _folds(units: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Assign units, such as places, to folds of about equal numbers of rows."""
    numbers, sizes = np.unique(units, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(numbers))
    filled = np.zeros(count)
    fold_of = {}
    # The largest first, each to the emptiest fold, as in packing; the permutation decides among equal ones.
    for place in sorted(order, key=lambda place: -sizes[place]):
        fold = int(filled.argmin())
        fold_of[numbers[place]] = fold
        filled[fold] += sizes[place]
    return np.array([fold_of[unit] for unit in units])
