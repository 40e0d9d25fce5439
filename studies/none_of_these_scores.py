"""Scores of how unlike the learned classes a shape is, compared on the features that `none_of_these.py` has stored.

    python -m studies.none_of_these_scores --kicad FOLDER

AUROC of other classes, and of noise, planes, bars and rooms, against test shapes, with ten scans a class. Sums are of
terms in standard deviations of what scans have that a fold holds out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from hf_any3d.training.few_scans.cross_validation import draw_folds
from hf_any3d.training.few_scans.linear_head import LinearHead, fit_head, whitening
from studies.few_scans import area
from studies.few_scans_draws import CLASSES_OF_A_DRAW, draw
from studies.none_of_these import DRAWS, sets_of

SHOTS = 10
Terms = dict[str, np.ndarray]


def terms_of(head: LinearHead, features: np.ndarray, labels: np.ndarray, bank: np.ndarray, asked: np.ndarray) -> Terms:
    """Compute terms (asked rows,) of unlikeness to features (rows, width) that a head has learned."""
    logits = head.logits(asked)
    terms = {
        "surprise": logsumexp(logits, axis=1) - logits.max(axis=1),
        "highest logit": -logits.max(axis=1),
        "energy": -np.asarray(logsumexp(logits, axis=1)),
    }
    known, things, rows = (head.standardize(values) for values in (features, bank, asked))
    for space, matrix in {"plain": np.eye(known.shape[1]), "whitened": whitening(known, labels)}.items():
        near, away, here = known @ matrix, things @ matrix, rows @ matrix
        means, center = (
            np.stack([near[labels == one].mean(axis=0) for one in np.unique(labels)]),
            near.mean(axis=0),
        )
        apart = cdist(here, near)
        terms[f"{space}, distance"] = np.log(apart.min(axis=1))
        terms[f"{space}, three"] = np.log(np.sort(apart)[:, :3].mean(axis=1))
        terms[f"{space}, side"] = np.log(apart.min(axis=1) / cdist(here, away).min(axis=1))
        terms[f"{space}, angle"] = cdist(here - center, near - center, "cosine").min(axis=1)
        terms[f"{space}, mean"] = np.log(cdist(here, means).min(axis=1))
        terms[f"{space}, mean angle"] = cdist(here - center, means - center, "cosine").min(axis=1)
        terms[f"{space}, relative"] = terms[f"{space}, mean"] - np.log(np.linalg.norm(here - center, axis=1))
    return terms


FOUR = ("distance", "angle", "side")
SCORES: dict[str, tuple[str, ...]] = {
    "distance, side and surprise": ("plain, distance", "plain, side", "surprise"),
    "now: distance, angle, side and surprise, whitened": (*(f"whitened, {term}" for term in FOUR), "surprise"),
    "the same without surprise": tuple(f"whitened, {term}" for term in FOUR),
    "the same to class means": ("whitened, mean", "whitened, mean angle", "whitened, side"),
    "Mahalanobis distance to the nearest class mean": ("whitened, mean",),
    "the same against that to the mean of all": ("whitened, relative",),
    "angle alone": ("whitened, angle",),
    "mean of the three nearest": ("plain, three",),
    "highest logit": ("highest logit",),
    "energy": ("energy",),
}
WEIGHTED = "now, weights learned from classes that were left out"


def held_out(features: np.ndarray, labels: np.ndarray, folds: np.ndarray, bank: np.ndarray) -> Terms:
    """Compute the terms of rows by models of the other folds; a fold may be a class."""
    found: Terms = {}
    for fold in np.unique(folds):
        held = folds == fold
        classes, numbers = np.unique(labels[~held], return_inverse=True)
        head = fit_head(features[~held], numbers, len(classes), 1.0)
        for name, values in terms_of(head, features[~held], numbers, bank, features[held]).items():
            found.setdefault(name, np.empty(len(labels)))[held] = values
    return found


def areas(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, bank: np.ndarray, asked: list[np.ndarray]
) -> dict[str, list[float]]:
    """Compute for each score the AUROC of all but the first of the asked features against the first, known ones."""
    held = held_out(features, labels, folds, bank)
    head = fit_head(features, labels, CLASSES_OF_A_DRAW, 1.0)
    found = [terms_of(head, features, labels, bank, rows) for rows in asked]

    def judged(terms: tuple[str, ...], weigh: Callable[[np.ndarray], np.ndarray]) -> list[float]:
        usual = np.array([held[name].mean() for name in terms])
        spread = np.array([max(held[name].std(), usual[n] * (name == "surprise")) for n, name in enumerate(terms)])
        sums = [weigh((np.stack([own[name] for name in terms], axis=1) - usual) / spread) for own in found]
        return [area(sums[0], other) for other in sums[1:]]

    results = {name: judged(terms, lambda rows: rows.sum(axis=1)) for name, terms in SCORES.items()}
    terms = next(terms for name, terms in SCORES.items() if name.startswith("now"))
    left_out = held_out(features, labels, labels, bank)
    rows = np.concatenate([np.stack([own[name] for name in terms], axis=1) for own in (held, left_out)])
    usual, spread = rows[: len(labels)].mean(axis=0), rows[: len(labels)].std(axis=0)
    model = LogisticRegression(C=0.1).fit((rows - usual) / spread, np.repeat([0, 1], len(labels)))
    results[WEIGHTED] = judged(terms, lambda rows: rows @ model.coef_[0])
    return results


def main(arguments: list[str] | None = None) -> None:
    """Compare the scores on stored features, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kicad", type=Path, required=True, help="folder of the parts")
    parser.add_argument("--sets", nargs="+", default=["embedded", "generated", "parts"])
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/none_of_these"))
    options = parser.parse_args(arguments)
    bank, nothing = (np.load(options.output_dir / f"{name}.npy").astype(float) for name in ("things", "nothing"))
    means = {}
    for set_name, shapes, stored in sets_of(options):
        features, found = stored["copies"].astype(float), []
        for number in range(DRAWS):
            division = draw(shapes, SHOTS, number)
            folds = draw_folds(division.labels, shapes.groups[division.train], 10, 42)
            asked = [features[division.test], features[division.strangers], nothing]
            found.append(areas(features[division.train], division.labels, folds, bank, asked))
        means[set_name] = {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}
    columns = [f"{name}: {kind}" for name in means for kind in ("other classes", "nothing")]
    print("| score | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|", sep="\n")
    for name in means[options.sets[0]]:
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for own in means.values() for value in own[name]) + " |")


if __name__ == "__main__":
    main()
