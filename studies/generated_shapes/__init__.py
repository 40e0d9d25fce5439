"""Parametric shapes in 48 classes, generated from a seed: as many as a study needs, with nothing to download.

    python -m studies.generated_shapes --picture docs/generated_shapes.png

Each class is a function that draws an object: its topology, its number of parts and its proportions. Many classes are
easily confused (stool, chair and bench; mug, jug and pot; hammer and axe; bus and truck; dog and horse). Objects are
stretched, lose a part, are turned and tilted a little; points are drawn evenly over the surface, those that a camera
does not see or that lie beyond a cut are removed, and noise is added.

A shape depends on its seed, class and number alone, so that larger sets begin with the smaller ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, Features, Value

from studies.generated_shapes.furniture import FURNITURE
from studies.generated_shapes.outdoors import OUTDOORS
from studies.generated_shapes.surfaces import Draw, areas_of, sample, turned
from studies.generated_shapes.vessels import TOOLS, VESSELS

CLASSES = {make.__name__: make for make in (*FURNITURE, *VESSELS, *TOOLS, *OUTDOORS)}
"""Class -> function that draws an object as parts."""


@dataclass(frozen=True)
class Damage:
    """Changes of an object between its drawing and its points.

    Args:
        stretch: Largest factor of an axis.
        missing: Share of the shapes that lose one of their smaller parts.
        turn: Largest rotation about the vertical axis, in degrees.
        tilt: Largest rotation about the horizontal axes, in degrees.
        hidden: Share of the shapes of which only points seen from one side remain.
        cut: Share of the shapes that lose all points beyond a plane.
        noise: Largest standard deviation of the noise, in radii of the cloud.
        outliers: Largest share of points that are anywhere in the unit cube.
    """

    stretch: float = 1.25
    missing: float = 0.25
    turn: float = 25.0
    tilt: float = 5.0
    hidden: float = 0.4
    cut: float = 0.15
    noise: float = 0.02
    outliers: float = 0.01


DAMAGED = Damage()
"""The damage of the studies."""
NONE = Damage(stretch=1.0, missing=0, turn=0, tilt=0, hidden=0, cut=0, noise=0, outliers=0)
"""Complete and clean objects."""
_DENSITY = 4  # points drawn for each that is kept, so that enough remain after hiding and cutting
_CELLS, _DEPTH = 36, 0.1  # cells of the camera's image, and how far behind the nearest point one is still seen


def draw_shape(name: str, seed: int, index: int, num_points: int = 1024, damage: Damage = DAMAGED) -> np.ndarray:
    """Generate a shape.

    Args:
        name: One of `CLASSES`.
        seed: Seed of the set.
        index: Number of the shape within its class.
        num_points: Points to draw.
        damage: What happens to the object.

    Returns:
        `(num_points, 3)` float32 in random order, in the unit sphere, y up.

    Raises:
        ValueError: An unknown class.
    """
    if name not in CLASSES:
        raise ValueError(f"class is {name!r}; expected one of {', '.join(CLASSES)}")
    generator = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
    r = Draw(generator)
    parts = CLASSES[name](r)
    if len(parts) > 2 and r.yes(damage.missing):
        parts = without_part(r, parts)
    triangles = np.concatenate(parts) * [r(1 / damage.stretch, damage.stretch) for _ in range(3)]
    for axis, degrees in (("y", damage.turn), ("x", damage.tilt), ("z", damage.tilt)):
        triangles = turned(triangles, r(-degrees, degrees), axis)
    points = normalized(sample(triangles, _DENSITY * num_points, generator))
    if r.yes(damage.hidden):
        points = points[seen(points, *viewpoint(r))]
    if r.yes(damage.cut):
        across = generator.normal(size=3)
        places = points @ across
        points = points[places <= np.quantile(places, r(0.65, 0.95))]
    points = points[generator.choice(len(points), num_points, replace=len(points) < num_points)]
    points = points + generator.normal(0, 1, points.shape) * r(0.1, 1) * damage.noise
    strays = generator.random(num_points) < r(0, damage.outliers)
    points = np.where(strays[:, None], generator.uniform(-0.8, 0.8, points.shape), points)
    return normalized(points).astype(np.float32)


def draw_colored(
    name: str, seed: int, index: int, palette: Sequence[tuple[str, tuple[int, int, int]]], num_points: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Generate a complete shape of two or three colors (one if it has no parts), each of all parts at some heights.

    Args:
        name: One of `CLASSES`.
        seed: Seed of the set.
        index: Number of the shape within its class.
        palette: Names of colors, each with red, green and blue; those of a shape have different names.
        num_points: Points to draw.

    Returns:
        `(num_points, 3)` float32 in the unit sphere, y up, and `(num_points, 3)` uint8, in random order.
    """
    generator = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
    r = Draw(generator)
    parts = CLASSES[name](r)
    triangles = turned(np.concatenate(parts), r(-DAMAGED.turn, DAMAGED.turn))
    triangles = triangles * [r(1 / DAMAGED.stretch, DAMAGED.stretch) for _ in range(3)]
    # Parts at one height, such as legs, have one color.
    levels, level = np.unique([part[..., 1].mean().round(2) for part in parts], return_inverse=True)
    several = min(r.whole(2, 3), len(levels))
    group = np.repeat(level * several // len(levels), [len(part) for part in parts])  # of each triangle
    names = generator.permutation(sorted({name for name, _ in palette}))[:several]
    shares = np.array([areas_of(triangles[group == number]).sum() for number in range(several)])
    counts = generator.multinomial(num_points, shares / shares.sum())
    points, colors = [], []
    for number, count in enumerate(counts):
        points.append(sample(triangles[group == number], count, generator))
        anchors = [color for name, color in palette if name == names[number]]
        colors.append(anchors[r.whole(0, len(anchors) - 1)] + generator.normal(0, 6, (count, 3)))
    order = generator.permutation(num_points)
    return (
        normalized(np.concatenate(points))[order].astype(np.float32),
        np.concatenate(colors)[order].clip(0, 255).astype(np.uint8),
    )


def without_part(r: Draw, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Leave out one of the parts that have less than a third of the surface, if there is one."""
    areas = np.array([areas_of(part).sum() for part in parts])
    small = np.flatnonzero(areas < areas.sum() / 3)
    lost = small[r.whole(0, len(small) - 1)] if len(small) else -1
    return [part for number, part in enumerate(parts) if number != lost]


def normalized(points: np.ndarray) -> np.ndarray:
    """Center points `(points, 3)` and scale them to the unit sphere."""
    points = points - points.mean(axis=0)
    return points / np.linalg.norm(points, axis=1).max()


def viewpoint(r: Draw) -> tuple[float, float]:
    """Draw azimuth and elevation of a camera, in radians."""
    return r(0, 2 * np.pi), np.radians(r(-10, 60))


def seen(points: np.ndarray, azimuth: float, elevation: float) -> np.ndarray:
    """Return which points `(points,)` a distant camera sees: those nearest to it in each cell of its image."""
    side = np.array([-np.sin(azimuth), 0, np.cos(azimuth)])
    toward = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(elevation), np.sin(azimuth) * np.cos(elevation)])
    image = points @ np.stack([side, np.cross(side, toward)], axis=1)  # (points, 2)
    column, row = ((image + 1) / 2 * _CELLS).astype(int).clip(0, _CELLS - 1).T
    cell, nearness = column * _CELLS + row, points @ toward
    nearest = np.full(_CELLS * _CELLS, -np.inf)
    np.maximum.at(nearest, cell, nearness)
    return nearness > nearest[cell] - _DEPTH


def generate(
    per_class: int,
    seed: int = 0,
    num_points: int = 1024,
    damage: Damage = DAMAGED,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Generate a set, its classes in turn.

    Args:
        per_class: Shapes of each class.
        seed: Seed of the set.
        num_points: Points of a shape.
        damage: What happens to the objects.
        classes: Some of `CLASSES`; None takes all.

    Returns:
        Rows with `points` (num_points, 3), `label`, `name` and `group`; each shape is a group of its own.
    """
    names = list(CLASSES if classes is None else classes)
    features = Features(
        points=Array2D((num_points, 3), "float32"),
        label=ClassLabel(names=names),
        name=Value("string"),
        group=Value("int32"),
    )
    rows = [(name, index) for index in range(per_class) for name in names]
    columns = {
        "points": np.stack([draw_shape(name, seed, index, num_points, damage) for name, index in rows]),
        "label": [names.index(name) for name, _ in rows],
        "name": [f"{name} {index}" for name, index in rows],
        "group": list(range(len(rows))),
    }
    return Dataset.from_dict(columns, features=features).with_format("numpy")
