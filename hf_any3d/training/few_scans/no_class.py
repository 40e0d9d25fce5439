"""Generate clouds that belong to no class, as negatives: noise, sheets, bars, rooms, slivers, lumps, piles and solids.

They take the place of all that a scanner may bring besides objects: empty measurements, a floor, a cable, the room, a
side of something. Each kind has several forms, so that none of them is like one class alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from hf_any3d.training.few_scans.solids import draw_solid, rotation

NUM_THINGS = 252
"""Things that training draws: half of them solids, and the same number of each other kind."""


def draw_things(
    count: int = NUM_THINGS,
    num_points: int = 1024,
    up_axis: str = "y",
    seed: int = 0,
    kinds: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw things of no class, the kinds one after the other, a solid after each, and always the same for a seed.

    Of `kinds` of `KINDS`, if they are given, only these are drawn, one after the other.

    Returns:
        `(things, num_points, 3)` float32 in the unit sphere, with any heading.
    """
    # A solid after each other kind makes half of them solids.
    names = list(kinds or ())
    if not names:
        for kind in KINDS:
            if kind != SOLID:
                names += [kind, SOLID]
    things = []
    for number in range(count):
        name = names[number % len(names)]
        # One generator for each thing: the first hundred are the same, however many are drawn.
        generator = np.random.default_rng([seed, number])
        points = KINDS[name](generator, num_points)
        angle = generator.uniform(0, 2 * np.pi)
        cosine = np.cos(angle)
        sine = np.sin(angle)
        points = points @ np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
        # Up to a hundredth of the size: a drawn surface without any noise would be told from scans by that alone.
        points = points + generator.normal(size=points.shape) * generator.uniform(0, 0.01) * np.abs(points).max()
        points = points - points.mean(axis=0)
        things.append(points / np.linalg.norm(points, axis=1).max())
    # Cyclic, so that the cloud is turned and not mirrored.
    return np.roll(np.stack(things), "xyz".index(up_axis) - 1, axis=-1).astype(np.float32)


def _noise(generator: Generator, count: int) -> np.ndarray:
    """Draw points of no surface: heavy tails, a thick shell, a column, one side of a cloud, or a wandering path."""
    form = generator.integers(5)
    size = generator.uniform(0.4, 1, 3)
    # Tails heavier than those of a normal distribution, as of stray echoes
    if form == 0:
        return generator.standard_t(generator.uniform(3, 12), (count, 3)) * size
    if form == 1:
        return (
            _directions(generator, count) * (1 + generator.normal(0, generator.uniform(0.1, 0.5), (count, 1))) * size
        )
    if form == 2:
        angle = generator.uniform(0, 2 * np.pi, count)
        radius = np.sqrt(generator.random(count))
        height = generator.uniform(-1, 1, count) * generator.uniform(0.5, 2)
        return np.stack([radius * np.cos(angle), height, radius * np.sin(angle)], axis=1) * size
    if form == 3:
        return np.abs(generator.normal(size=(count, 3))) ** generator.uniform(0.7, 2) * size
    # A random walk, along which points lie
    path = np.cumsum(generator.normal(size=(generator.integers(20, 200), 3)), axis=0)
    places = path[generator.integers(len(path), size=count)]
    return places + generator.normal(0, generator.uniform(0.05, 0.3) * path.std(), (count, 3))


def _sheet(generator: Generator, count: int) -> np.ndarray:
    """Draw a disk, a folded or rolling sheet, steps, or one with a hole, in any direction."""
    form = generator.integers(4)
    across = generator.uniform(-1, 1, (count, 2)) * (1, generator.uniform(0.35, 1))
    if form == 0 or form == 3:
        # A disk, or what remains around a hole in it.
        inner = generator.uniform(0.2, 0.8) if form == 3 else 0.0
        angle = generator.uniform(0, 2 * np.pi, count)
        radius = np.sqrt(generator.uniform(inner**2, 1, count))
        across = np.stack([radius * np.cos(angle), radius * np.sin(angle) * generator.uniform(0.4, 1)], axis=1)
    height = np.zeros(count)
    if form == 1:
        height = np.abs(across[:, 0]) * generator.uniform(0.05, 0.6)
    elif form == 2:
        height = np.round(across[:, 0] * generator.uniform(1, 4)) * generator.uniform(0.02, 0.2)
    height += generator.uniform(0, 0.1) * np.sin(across @ generator.normal(0, 4, 2))
    flat = np.stack([across[:, 0], height, across[:, 1]], axis=1)
    return flat @ rotation(generator).T if generator.random() < 0.5 else flat


def _bar(generator: Generator, count: int) -> np.ndarray:
    """Draw a beam, an arc, two beams that meet, or several beside each other, in any direction."""
    form = generator.integers(4)
    thick = generator.uniform(0.01, 0.15)
    if form == 1:
        angle = generator.uniform(0, generator.uniform(0.5, 4), count)
        points = np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], axis=1)
        points += _directions(generator, count) * thick
    else:
        points = _on_box(generator, count, np.array([2, thick, thick * generator.uniform(0.3, 1)]))
        which = generator.integers(2 if form == 2 else 3, size=count)
        if form == 2:
            # The second beam begins where the first one ends.
            points[which == 1] = points[which == 1][:, [1, 0, 2]] + (1, 1, 0)
        elif form == 3:
            points[:, 2] += which * generator.uniform(0.1, 0.4)
    return points @ rotation(generator).T if generator.random() < 0.7 else points


def _room(generator: Generator, count: int) -> np.ndarray:
    """Draw a corner of a room, a corridor, or a box from the inside with some boxes in it."""
    size = generator.uniform((1.5, 1, 1.5), (3, 1.4, 5))
    # More than are needed, as some of the walls are left out.
    walls = _on_box(generator, 4 * count, size)
    # Sides that a scanner sees: the ceiling seldom, and often not all walls.
    shown = [generator.random() < share for share in (0.75, 0.2, 0.6)]
    near = 1e-6
    is_hidden = np.zeros(len(walls), bool)
    for axis, is_shown in enumerate(shown):
        if not is_shown:
            is_hidden |= walls[:, axis] > size[axis] / 2 - near
    walls = walls[~is_hidden]
    inside = [walls]
    for _ in range(generator.integers(0, 8)):
        extent = generator.uniform(0.15, 0.8, 3) * np.minimum(size, 1)
        thing = _on_box(generator, count // 2, extent)
        place = (size - extent) / 2 * generator.uniform(-1, 1, 3)
        # On the floor
        place[1] = (extent[1] - size[1]) / 2
        inside.append(thing + place)
    return _some(generator, np.concatenate(inside), count)


def _sliver(generator: Generator, count: int) -> np.ndarray:
    """Draw a small part of a surface, as a scanner sees that passes by."""
    # A small part keeps enough points.
    whole = (_lump if generator.random() < 0.5 else _pile)(generator, 16 * count)
    direction = _directions(generator, 1)[0]
    side = whole @ direction
    part = whole[side >= np.quantile(side, generator.uniform(0.6, 0.9))]
    if generator.random() < 0.5:
        # A stripe of it.
        along = part @ _directions(generator, 1)[0]
        low = generator.uniform(0, 0.6)
        part = part[(along >= np.quantile(along, low)) & (along <= np.quantile(along, low + 0.3))]
    return _some(generator, part, count)


def _lump(generator: Generator, count: int) -> np.ndarray:
    """Draw a stone: a ball with waves on it, longer in one direction than in another."""
    directions = _directions(generator, count)
    radius = np.ones(count)
    for _ in range(generator.integers(1, 8)):
        waves = directions @ generator.normal(0, generator.uniform(1, 4), 3) + generator.uniform(0, 2 * np.pi)
        radius += generator.uniform(0, 0.2) * np.sin(waves)
    return directions * radius[:, None] * generator.uniform(0.25, 1, 3)


def _pile(generator: Generator, count: int) -> np.ndarray:
    """Draw boxes and lumps that lie about each other, in any direction."""
    parts = []
    for _ in range(generator.integers(2, 7)):
        size = generator.uniform(0.1, 1, 3)
        points = _on_box(generator, count, size) if generator.random() < 0.7 else _lump(generator, count) * size
        parts.append(points @ rotation(generator).T + generator.uniform(-0.6, 0.6, 3))
    return _some(generator, np.concatenate(parts), count)


def _directions(generator: Generator, count: int) -> np.ndarray:
    points = generator.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _on_box(generator: Generator, count: int, size: np.ndarray) -> np.ndarray:
    """Draw points on the sides of a box around the origin, each side by its area."""
    areas = np.array([size[1] * size[2], size[0] * size[2], size[0] * size[1]])
    points = generator.uniform(-0.5, 0.5, (count, 3))
    # The axis across which a point is on one of the two sides
    axis = generator.choice(3, count, p=areas / areas.sum())
    points[np.arange(count), axis] = generator.choice([-0.5, 0.5], count)
    return points * size


def _some(generator: Generator, points: np.ndarray, count: int) -> np.ndarray:
    return points[generator.choice(len(points), count, replace=len(points) < count)]


SOLID = "solid"
KINDS: dict[str, Callable[[Generator, int], np.ndarray]] = {
    "noise": _noise,
    "sheet": _sheet,
    "bar": _bar,
    "room": _room,
    "sliver": _sliver,
    "lump": _lump,
    "pile": _pile,
    SOLID: draw_solid,
}
"""Kind of things -> function that draws points of one, y up."""
