"""Sets of shapes for `few_scans.py`, and their draws: which shapes are learned from, tested with, and unknown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from hf_any3d import load_point_dataset
from studies.generated_shapes import CLASSES, draw_shape
from studies.generated_shapes.families import OTHERS, draw_other

UNSEEN = ("chair", "door", "lamp", "plant", "sofa", "storage", "table", "tool", "vehicle", "window")
"""Embedded classes that no compared encoder has seen, with or without their labels."""
SHOTS = (1, 2, 3, 5, 10, 20)
"""Shapes of a class to learn from."""
CLASSES_OF_A_DRAW = 10
SEED = 7
"""Of the generated shapes."""
TEST_SHAPES = 20
"""Generated shapes of a class to test with; before them come those to learn from."""
STRANGERS, OTHERS_OF_A_KIND = 200, 50


@dataclass(frozen=True)
class Shapes:
    """Shapes of a set.

    Args:
        points: `(shapes, 1024, 3)`.
        labels: `(shapes,)`; negative for shapes of no class to learn.
        groups: `(shapes,)`, near-duplicates have the same.
        names: Names of the classes.
        pool: `(shapes,)`, whether a shape may be learned from.
    """

    points: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    names: tuple[str, ...]
    pool: np.ndarray


@dataclass(frozen=True)
class Draw:
    """One division of a set: numbers of the shapes to learn from, to test with, and of other classes."""

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    strangers: np.ndarray


def embedded_shapes(unseen: bool) -> Dataset:
    """Load the embedded shapes of the classes in `UNSEEN`, or those of the others that may be learned from.

    The shapes to learn from are of the training split; those to compare with are of both splits, since no encoder has
    seen any of them.
    """
    splits = load_point_dataset("shapes")
    rows = concatenate_datasets([splits["train"], splits["test"]]) if unseen else splits["train"]
    names = rows.features["label"].names
    numbers = {names.index(name) for name in UNSEEN}
    return rows.filter(lambda label: (label in numbers) == unseen, input_columns="label")


def embedded() -> Shapes:
    """Load the ten embedded classes, and test shapes of the eight others as strangers."""
    known = embedded_shapes(unseen=True).with_format("numpy")
    rows = load_point_dataset("shapes")["test"].with_format("numpy")
    others = rows.select(np.flatnonzero(~np.isin(rows["label"][:], known["label"][:])))
    points = np.concatenate([known["points"][:], others["points"][:]])
    names = known.features["label"].names
    labels = np.array([UNSEEN.index(names[label]) for label in known["label"]] + [-1] * len(others))
    groups = np.concatenate([known["group"][:], others["group"][:]])
    return Shapes(points, labels, groups, UNSEEN, labels >= 0)


def generated(odd: bool) -> Shapes:
    """Generate the 24 classes of the results, or those on which the strengths of the penalty are chosen."""
    names = tuple(list(CLASSES)[int(odd) :: 2])
    count = max(SHOTS) + TEST_SHAPES
    points = np.stack([draw_shape(name, SEED, index) for name in names for index in range(count)])
    index = np.tile(np.arange(count), len(names))
    return Shapes(points, np.repeat(np.arange(len(names)), count), np.arange(len(points)), names, index < max(SHOTS))


def parts(folder: Path) -> Shapes:
    """Load the electronic parts; the training split may be learned from."""
    splits = [Dataset.from_parquet(str(folder / f"{name}.parquet")).with_format("numpy") for name in ("train", "test")]
    points, labels, groups = (
        np.concatenate([np.asarray(rows[name][:]) for rows in splits]) for name in ("points", "label", "group")
    )
    found, numbers = np.unique(labels, return_inverse=True)
    names = tuple(splits[0].features["label"].names[label] for label in found)
    return Shapes(points.astype(np.float32), numbers, groups, names, np.arange(len(labels)) < len(splits[0]))


def nothing_known(kinds: Sequence[str] = tuple(OTHERS), seed: int = SEED) -> np.ndarray:
    """Draw noise, planes, bars and rooms `(kinds * OTHERS_OF_A_KIND, 1024, 3)`, kind by kind."""
    return np.stack([draw_other(kind, seed, index) for kind in kinds for index in range(OTHERS_OF_A_KIND)])


SETS: dict[str, Callable[[], Shapes]] = {
    "embedded": embedded,
    "generated": lambda: generated(odd=True),
    "choice": lambda: generated(odd=False),
}


def draw(shapes: Shapes, shots: int, number: int) -> Draw:
    """Draw ten classes and some shapes of each; a smaller number of shots is part of a larger one."""
    generator = np.random.default_rng([SEED, number])
    chosen = np.sort(generator.permutation(len(shapes.names))[:CLASSES_OF_A_DRAW])
    train, labels = [], []
    for place, label in enumerate(chosen):
        rows = generator.permutation(np.flatnonzero((shapes.labels == label) & shapes.pool))
        # One shape of each group, so that k shapes are k different ones.
        _, first = np.unique(shapes.groups[rows], return_index=True)
        kept = rows[np.sort(first)][:shots]
        train += list(kept)
        labels += [place] * len(kept)
    fresh = ~np.isin(shapes.groups, shapes.groups[train])
    # Generated shapes to learn from are never tested with, whatever the number of shots.
    fresh &= ~shapes.pool if not shapes.pool[shapes.labels >= 0].all() else True
    test = np.flatnonzero(np.isin(shapes.labels, chosen) & fresh)
    strangers = generator.permutation(np.flatnonzero(~np.isin(shapes.labels, chosen) & fresh))[:STRANGERS]
    places = {label: place for place, label in enumerate(chosen)}
    test_labels = np.array([places[label] for label in shapes.labels[test]])
    return Draw(np.array(train), np.array(labels), test, test_labels, strangers)
