"""The unknown score of the classifier that comes with the package: fitted, and judged by things of no class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from examples import quickstart
from hf_any3d.data import build_transform
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.modeling.layers.unknown_score import UnknownScore, conformal_level, is_none_of_these, surprise
from hf_any3d.training.few_scans.no_class import SOLID, draw_things
from hf_any3d.training.few_scans.solids import box, rotation, sample_faces
from studies.generated_shapes import draw_shape
from studies.generated_shapes.families import OTHERS, draw_other

SEED = 0
THINGS = 100
"""Things of each kind with which the unknown score is judged."""
SOLIDS_ABOVE = 0.01
"""Share of simple solids that may have a score above 0.5."""
UNLABELED = ("dog", "horse", "house", "tower", "bridge", "ladder", "fence", "mushroom", "umbrella", "goblet")
"""Generated classes that none of the labels describes."""
NEW_FAMILIES = ("ring", "octahedron", "half pipe", "cross", "spring")
"""Families of solids that are none of `hf_any3d.training.few_scans.solids`, from which heads learn."""
UPRIGHT_CLASSES = ("bed", "chair", "lamp", "person", "plant", "sofa", "table")
"""Classes that look like nothing known when they lie on their side."""


def draw_stranger(kind: str, clouds: np.ndarray, upright: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw something of no class, y up, in the unit sphere; see `OTHERS` of `train_default_model.py`."""
    if kind == "lying":
        return turn_up_axis(upright[generator.integers(len(upright))], "y", "x")
    if kind == "sliver":
        cloud = clouds[generator.integers(len(clouds))]
        places = cloud @ generator.normal(size=3)
        part = cloud[places <= np.quantile(places, generator.uniform(0.03, 0.12))]
        part = part[generator.integers(len(part), size=len(cloud))]
        part = part - part.mean(axis=0)
        return (part / np.linalg.norm(part, axis=1).max()).astype(np.float32)
    return draw_other(kind, SEED, int(generator.integers(2**31)))


def draw_new_solid(family: str, generator: np.random.Generator, count: int = 1024) -> np.ndarray:
    """Draw a solid of `NEW_FAMILIES` in any direction, in the unit sphere."""
    angle, across = generator.uniform(0, 2 * np.pi, (2, count))
    if family == "ring":
        radius = 1 + generator.uniform(0.1, 0.4) * np.cos(across)
        height = generator.uniform(0.1, 0.4) * np.sin(across)
        points = np.stack([radius * np.cos(angle), height, radius * np.sin(angle)], axis=1)
    elif family == "octahedron":
        directions = generator.normal(size=(count, 3))
        points = directions / np.abs(directions).sum(axis=1, keepdims=True) * generator.uniform(0.6, 1, 3)
    elif family == "half pipe":
        length = generator.uniform(0.5, 3)
        points = np.stack([np.cos(angle / 2), np.sin(angle / 2), length * generator.random(count)], axis=1)
    elif family == "cross":
        thick, other = generator.uniform(0.05, 0.3, 2)
        points = sample_faces(generator, box(1, thick, other), count)
        points = np.where(generator.random((count, 1)) < 0.5, points, points[:, [1, 0, 2]])
    elif family == "spring":
        turns = generator.uniform(2, 6)
        points = np.stack([np.cos(turns * angle), generator.uniform(0.1, 0.6) * angle, np.sin(turns * angle)], axis=1)
        points = points + generator.normal(size=points.shape) * 0.05
    else:
        raise ValueError(f"family is {family!r}; expected one of {', '.join(NEW_FAMILIES)}")
    points = points @ rotation(generator).T
    points = points - points.mean(axis=0)
    return (points / np.linalg.norm(points, axis=1).max()).astype(np.float32)


def outputs_of(model: Any, clouds: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pooled features `(clouds, width)` and logits `(clouds, labels)`."""
    with torch.no_grad():
        parts = torch.from_numpy(np.asarray(clouds, np.float32)).split(32)
        features = torch.cat([model.eval().act(part).pooler_output for part in parts])
        return features, model.classifier(features)


def as_found(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the clouds of rows as stored and with a random heading each, and their labels twice."""
    plain, turn = quickstart.plain_rows(rows), build_transform({"rotate": {"axis": "y"}})
    generator = np.random.default_rng(SEED)
    clouds = np.stack(plain["points"][:])
    return np.concatenate([clouds, np.stack([turn(cloud, generator) for cloud in clouds])]), np.tile(plain["label"], 2)


def calibrate(model: Any, learned: Dataset, held_out: Dataset, solids: int = 0) -> dict[str, Any]:
    """Fit temperature and unknown score to shapes that a model has not learned from.

    Args:
        model: The model.
        learned: Rows that it has learned from.
        held_out: Rows that it has not.
        solids: Simple solids to draw, of which at most `SOLIDS_ABOVE` may get a score above 0.5.

    Returns:
        `temperature`, and the settings of `UnknownSettings`.
    """
    clouds, labels = as_found(held_out)
    features, logits = outputs_of(model, clouds)
    targets = torch.from_numpy(labels)
    losses = {t: nn.functional.cross_entropy(logits / t, targets).item() for t in np.geomspace(0.3, 3, 93).tolist()}
    temperature = min(losses, key=losses.__getitem__)
    if solids:
        of_solids = outputs_of(model, draw_things(solids, clouds.shape[1], seed=SEED + 3, kinds=(SOLID,)))[1]
        warmer = [t for t in losses if t >= temperature]
        are_low = [((of_solids / t).softmax(-1).amax(-1) > 0.5).float().mean() <= SOLIDS_ABOVE for t in warmer]
        temperature = warmer[are_low.index(True)] if True in are_low else warmer[-1]
    own, _ = outputs_of(model, np.stack(quickstart.plain_rows(learned)["points"][:]))
    pairs = UnknownScore(*own.shape).terms(
        features, surprise(logits / temperature), torch.cdist(features, own).amin(dim=1)
    )
    found = {name: [values.mean().item(), values.std().item()] for name, values in pairs.items()}
    # As `fit_unknown_score` does: certainty does not outweigh distance.
    found["surprise"][1] = max(found["surprise"])
    terms = torch.stack([(values - found[name][0]) / found[name][1] for name, values in pairs.items()]).sum(dim=0)
    # Features of another model are at other distances: this level holds for that model alone, see `find_level`.
    return {"temperature": temperature, **found, "threshold": conformal_level(terms)[0]}


def find_level(model: Any, kept_apart: Dataset) -> dict[str, float]:
    """Find the level above which a cloud gets no label, on shapes that the model itself has not learned from.

    Args:
        model: A model with an unknown score; its config gets the level.
        kept_apart: Rows that it has not learned from.

    Returns:
        The `stated` share of known shapes without a label; and that share `measured` in one half of the shapes, by the
        level that the other half gives, the mean over 200 divisions.
    """
    config = model.config
    features, logits = outputs_of(model, as_found(kept_apart)[0])
    sums = torch.logit(model.score_unknown(features, logits).double()) + config.unknown.threshold
    groups, generator, above = np.tile(kept_apart["group"], 2), np.random.default_rng(SEED), []
    for _ in range(200):
        order = generator.permutation(np.unique(groups))
        first = torch.from_numpy(np.isin(groups, order[: len(order) // 2]))
        above.append((sums[~first] > conformal_level(sums[first])[0]).double().mean().item())
    config.unknown.threshold, config.unknown.share = conformal_level(sums)
    return {"stated": config.unknown.share, "measured": float(np.mean(above))}


def finish(model: Any, rows: Dataset, calibration: dict[str, Any]) -> None:
    """Set the unknown score of a model whose head is calibrated; see `calibrate`."""
    features, logits = outputs_of(model, np.stack(quickstart.plain_rows(rows)["points"][:]))
    model.fit_unknown_score(features, logits, rows["group"])
    # What the model says of the shapes it learned from is no measure of what it says of others.
    for name in calibration.keys() - {"temperature"}:
        setattr(model.config.unknown, name, calibration[name])


def calibration_error(scores: torch.Tensor, right: torch.Tensor, bins: int = 10) -> float:
    """Compute the expected calibration error of scores `(rows,)` in bins of equal width."""
    place = (scores * bins).long().clamp(max=bins - 1)
    gaps = [(right[place == b].float() - scores[place == b]).sum().abs() for b in range(bins)]
    return float(sum(gaps) / len(scores))


def judge_doubt(model: Any, test: Dataset) -> dict[str, dict[str, float]]:
    """Compare the unknown scores of test shapes with those of other things; also the calibration error.

    Returns:
        Kind of thing -> `auroc`, against the test shapes, and the share that gets `no label`; "test shapes" has the
        `calibration error` too.
    """
    clouds, labels = as_found(test)
    features, logits = outputs_of(model, clouds)
    known, config = model.score_unknown(features, logits), model.config
    scores, classes = logits.softmax(-1).max(-1)
    right = classes == torch.from_numpy(labels)
    error = calibration_error(scores, right)
    found = {
        "test shapes": {
            "no label": share_of(known, config),
            "score": scores.mean().item(),
            "above 0.5": share_above(scores, known, config),
            "calibration error": error,
        }
    }
    generator, stored = np.random.default_rng(SEED + 1), np.stack(quickstart.plain_rows(test)["points"][:])
    names = test.features["label"].names
    upright = stored[np.isin(test["label"], [names.index(name) for name in UPRIGHT_CLASSES if name in names])]
    things = {
        kind: [draw_stranger(kind, stored, upright, generator) for _ in range(THINGS)]
        for kind in ("solid", *OTHERS, "sliver", "lying")
    }
    things["simple solids"] = list(draw_things(THINGS, seed=SEED + 2, kinds=(SOLID,)))
    things[f"simple solids of other families: {', '.join(NEW_FAMILIES)}"] = [
        draw_new_solid(family, generator) for family in NEW_FAMILIES for _ in range(THINGS // len(NEW_FAMILIES))
    ]
    things["generated " + ", ".join(UNLABELED)] = [
        draw_shape(name, SEED, index) for name in UNLABELED for index in range(THINGS // len(UNLABELED))
    ]
    for kind, points in things.items():
        features, logits = outputs_of(model, np.stack(points))
        unknown, scores = model.score_unknown(features, logits), logits.softmax(-1).amax(-1)
        above = (unknown[:, None] > known).float() + (unknown[:, None] == known).float() / 2
        found[kind] = {
            "auroc": above.mean().item(),
            "no label": share_of(unknown, config),
            "score": scores.mean().item(),
            "above 0.5": share_above(scores, unknown, config),
        }
    return found


def share_of(unknown: torch.Tensor, config: Any) -> float:
    """Return the share of unknown scores with which a cloud gets no label."""
    return is_none_of_these(unknown, config).float().mean().item()


def share_above(scores: torch.Tensor, unknown: torch.Tensor, config: Any) -> float:
    """Return the share of clouds that get a label with a score above 0.5."""
    return ((scores > 0.5) & ~is_none_of_these(unknown, config)).float().mean().item()


def doubt_table(doubts: dict[str, dict[str, float]]) -> str:
    """Format what the model makes of things that it does not know."""
    lines = ["| shown | AUROC | no label, % | score | label above 0.5, % |", "|---|---|---|---|---|"]
    for kind, row in doubts.items():
        area = f"{row['auroc']:.2f}" if "auroc" in row else "–"
        shares = f"{100 * row['no label']:.0f} | {row['score']:.2f} | {100 * row['above 0.5']:.0f}"
        lines.append(f"| {kind} | {area} | {shares} |")
    return "\n".join(lines)
