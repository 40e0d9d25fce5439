"""The unknown score of the classifier that comes with the package: fitted, and judged by things of no class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from examples import quickstart
from hf_any3d.data import build_transform
from hf_any3d.data.point_arrays import turn_up_axis
from hf_any3d.modeling.layers.unknown_score import KNOWN_SHARE, UnknownScore, surprise
from hf_any3d.training.little_data.no_class import draw_things
from studies.generated_shapes import draw_shape
from studies.generated_shapes.families import OTHERS, draw_other

SEED = 0
MOST_LIKE = {"noise": "noise", "plane": "sheet", "bar": "bar", "room": "room"}
"""Judged kind -> kind of the bank that is most like it."""
THINGS = 100
"""Things of each kind with which the unknown score is judged."""
UNLABELED = ("dog", "horse", "house", "tower", "bridge", "ladder", "fence", "mushroom", "umbrella", "goblet")
"""Generated classes that none of the labels describes."""
UPRIGHT_CLASSES = ("bed", "chair", "lamp", "person", "plant", "sofa", "table")
"""Classes that look like nothing known when they lie on their side."""


def draw_stranger(kind: str, clouds: np.ndarray, upright: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw something of no class, y up, in the unit sphere; see `WithOthers`."""
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


def calibrate(model: Any, learned: Dataset, held_out: Dataset, things: np.ndarray | None) -> dict[str, Any]:
    """Fit temperature and unknown score to shapes that a model has not learned from.

    Args:
        model: The model.
        learned: Rows that it has learned from.
        held_out: Rows that it has not.
        things: `(things, points, 3)` of no class, for the bank of the score; None for none.

    Returns:
        `temperature`, and the settings of `UnknownScoreConfigMixin`.
    """
    clouds, labels = as_found(held_out)
    features, logits = outputs_of(model, clouds)
    targets = torch.from_numpy(labels)
    losses = {t: nn.functional.cross_entropy(logits / t, targets).item() for t in np.geomspace(0.3, 3, 93).tolist()}
    temperature = min(losses, key=losses.__getitem__)
    own, _ = outputs_of(model, np.stack(quickstart.plain_rows(learned)["points"][:]))
    score = UnknownScore(*own.shape, 0 if things is None else len(things))
    if things is not None:
        score.bank = outputs_of(model, things)[0]
    pairs = score.signs(features, torch.cdist(features, own).amin(dim=1), surprise(logits / temperature))
    found = {name: [values.mean().item(), values.std().item()] for name, values in pairs.items()}
    # As `fit_unknown_score` does: certainty does not outweigh distance.
    found["unknown_surprise"][1] = max(found["unknown_surprise"])
    signs = torch.stack([(values - found[name][0]) / found[name][1] for name, values in pairs.items()]).sum(dim=0)
    threshold = torch.quantile(signs, KNOWN_SHARE).item()
    # No held-out shape, as stored or turned, is without a label.
    highest = torch.sigmoid(signs.max() - threshold).item()
    return {
        "temperature": temperature,
        **found,
        "unknown_threshold": threshold,
        "unknown_far": round(0.05 * np.ceil(highest / 0.05), 2),
    }


def finish(model: Any, rows: Dataset, calibration: dict[str, Any], things: np.ndarray | None) -> None:
    """Set the unknown score of a model whose head is calibrated; see `calibrate`."""
    features, logits = outputs_of(model, np.stack(quickstart.plain_rows(rows)["points"][:]))
    bank = None if things is None else outputs_of(model, things)[0]
    model.fit_unknown_score(features, logits, rows["group"], bank)
    # What the model says of the shapes it learned from is no measure of what it says of others.
    for name in calibration.keys() - {"temperature"}:
        setattr(model.config, name, calibration[name])


def calibration_error(scores: torch.Tensor, right: torch.Tensor, bins: int = 10) -> float:
    """Compute the expected calibration error of scores `(rows,)` in bins of equal width."""
    place = (scores * bins).long().clamp(max=bins - 1)
    gaps = [(right[place == b].float() - scores[place == b]).sum().abs() for b in range(bins)]
    return float(sum(gaps) / len(scores))


def judge_doubt(model: Any, test: Dataset) -> dict[str, dict[str, float]]:
    """Compare the unknown scores of test shapes with those of other things; also the calibration error.

    Returns:
        Kind of thing -> `auroc`, against the test shapes, and the shares that are `flagged` (score above 0.5) and get
        `no label`; "test shapes" has the `calibration error` too.
    """
    clouds, labels = as_found(test)
    features, logits = outputs_of(model, clouds)
    known, far = model.score_unknown(features, logits), model.config.unknown_far
    scores, classes = logits.softmax(-1).max(-1)
    right = classes == torch.from_numpy(labels)
    found = {"test shapes": {**shares_of(known, far), "calibration error": calibration_error(scores, right)}}
    generator, stored = np.random.default_rng(SEED + 1), np.stack(quickstart.plain_rows(test)["points"][:])
    names = test.features["label"].names
    upright = stored[np.isin(test["label"], [names.index(name) for name in UPRIGHT_CLASSES if name in names])]
    things = {
        kind: [draw_stranger(kind, stored, upright, generator) for _ in range(THINGS)]
        for kind in ("solid", *OTHERS, "sliver", "lying")
    }
    things["generated " + ", ".join(UNLABELED)] = [
        draw_shape(name, SEED, index) for name in UNLABELED for index in range(THINGS // len(UNLABELED))
    ]
    for kind, points in things.items():
        unknown = model.score_unknown(*outputs_of(model, np.stack(points)))
        above = (unknown[:, None] > known).float() + (unknown[:, None] == known).float() / 2
        found[kind] = {"auroc": above.mean().item(), **shares_of(unknown, far)}
    return found


def shares_of(unknown: torch.Tensor, far: float) -> dict[str, float]:
    """Return which shares of unknown scores are flagged and get no label."""
    return {"flagged": (unknown > 0.5).float().mean().item(), "no label": (unknown > far).float().mean().item()}


def compare_banks(model: Any, learned: Dataset, held_out: Dataset) -> dict[str, dict[str, dict[str, float]]]:
    """Judge the score on held-out shapes without a bank, with one, and with one that lacks what is most like a kind.

    Args:
        model: A model with any unknown score, or none; it has another one afterwards.
        learned: Rows that it has learned from.
        held_out: Rows that it has not.

    Returns:
        Name of the bank -> what `judge_doubt` returns.
    """
    banks: dict[str, np.ndarray | None] = {"none": None, "all": draw_things()}
    banks |= {f"without {kind}": draw_things(without=kind) for kind in MOST_LIKE.values()}
    found = {}
    for name, things in banks.items():
        calibration = calibrate(model, learned, held_out, things)
        # The first time alone; afterwards the best temperature is 1.
        model.classifier.calibrate(calibration["temperature"])
        finish(model, learned, calibration, things)
        found[name] = judge_doubt(model, held_out)
    return found


def doubt_table(doubts: dict[str, dict[str, float]]) -> str:
    """Format what the model makes of things that it does not know."""
    lines = ["| shown | AUROC | flagged, % | no label, % |", "|---|---|---|---|"]
    for kind, row in doubts.items():
        area = f"{row['auroc']:.2f}" if "auroc" in row else "–"
        lines.append(f"| {kind} | {area} | {100 * row['flagged']:.0f} | {100 * row['no label']:.0f} |")
    return "\n".join(lines)
