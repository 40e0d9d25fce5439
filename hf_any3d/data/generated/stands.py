"""Stands of trees as an airborne scanner sees them, drawn by code, with the number of the tree of each point.

Crowns are clusters of leaves around a cone or a dome, so they have lumps, holes and several tops; pulses pass through
them and return several times. They stand for stands of a reader's own in tests and studies, and for kinds of forest of
which no numbered scan can be had. No real stand is as regular as these.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_LEAST_GAP = 1.0  # meters between two returns of a pulse that a scanner tells apart
_MOST_RETURNS = 4
_NOISE = 0.04  # meters, of the scanner


class StandKind(NamedTuple):
    """Properties of the trees of a stand; pairs are the least and the most.

    Attributes:
        heights: Of trees, in meters.
        radii: Of crowns, in meters.
        allometry: From 0 to 1, how much the radius follows the height.
        lengths: Of crowns, as a share of the height.
        roundness: 1 for domes; 0 for cones.
        cover: Share of the ground below crowns at which no more trees are drawn.
        apart: Least distance of two stems, as a share of the sum of their radii.
        lump: Radius of clusters of leaves, as a share of the radius of the crown.
        fullness: Share of pulses that a cluster of leaves stops.
        suppressed: Share of trees that are short and may stand below others.
        rows: Meters between the rows of a plantation; 0 for none.
    """

    heights: tuple[float, float]
    radii: tuple[float, float]
    allometry: float
    lengths: tuple[float, float]
    roundness: float
    cover: float
    apart: float
    lump: float
    fullness: float
    suppressed: float = 0.0
    rows: float = 0.0


KINDS = {
    "savanna": StandKind((5, 12), (2, 7), 0.6, (0.5, 0.75), 1.0, 0.5, 0.5, 0.26, 0.5, 0.2),
    "mixed conifers": StandKind((8, 45), (1.5, 4.5), 0.8, (0.4, 0.8), 0.4, 0.75, 0.42, 0.28, 0.5, 0.35),
    "spruces": StandKind((20, 35), (1.5, 3), 0.7, (0.5, 0.85), 0.15, 0.85, 0.5, 0.34, 0.5, 0.3),
    "broadleaf": StandKind((18, 28), (3, 6), 0.5, (0.3, 0.5), 1.0, 0.95, 0.55, 0.26, 0.5, 0.2),
    "dense pines": StandKind((12, 22), (0.7, 1.5), 0.6, (0.25, 0.5), 0.6, 0.8, 0.55, 0.45, 0.4, 0.3),
    "small conifers": StandKind((3, 14), (0.8, 2.2), 0.8, (0.6, 0.9), 0.3, 0.6, 0.45, 0.4, 0.5, 0.25),
    "plantation": StandKind((22, 27), (2, 3), 0.5, (0.25, 0.4), 0.7, 0.95, 0.65, 0.33, 0.5, 0.1, 4.0),
    "closed broadleaf": StandKind((17, 27), (2, 4.5), 0.6, (0.3, 0.5), 0.9, 0.99, 0.5, 0.3, 0.5, 0.25),
    "open pines": StandKind((8, 26), (1.2, 3.2), 0.7, (0.3, 0.5), 0.6, 0.35, 0.5, 0.3, 0.45, 0.2),
    "orchard": StandKind((3, 5), (1.3, 2.2), 0.5, (0.6, 0.8), 0.9, 0.6, 0.7, 0.3, 0.5, 0.0, 5.0),
}
"""Kinds of stands that `draw_stand` knows."""


class Stand(NamedTuple):
    """The points of a stand.

    Attributes:
        points: (points, 3) float64, in meters, z up.
        heights: (points,) float32, meters above ground.
        itc: (points,) the number of the tree from 1; 0 for ground.
        return_numbers: (points,) which return of its pulse a point is, from 1.
        return_counts: (points,) how many returns its pulse has.
    """

    points: np.ndarray
    heights: np.ndarray
    itc: np.ndarray
    return_numbers: np.ndarray
    return_counts: np.ndarray


class _Trees(NamedTuple):
    stems: np.ndarray  # (trees, 2)
    heights: np.ndarray  # (trees,)
    radii: np.ndarray  # (trees,)


def draw_kind(seed: int) -> StandKind:
    """Draw a kind of stand at random, of shrubs or high trees, sparse or closed, even or unequal."""
    generator = np.random.default_rng(seed)
    height = np.exp(generator.uniform(np.log(3.5), np.log(38)))
    # Radii of Popescu and Wynne (2004), and how far species are from them
    middle = (2.51503 + 0.00901 * height**2) / 2 * np.exp(generator.normal(-0.15, 0.5))
    unequal = generator.uniform(1.2, 1.9)
    spread = generator.uniform(1.1, unequal)
    length = generator.uniform(0.25, 0.75)
    return StandKind(
        heights=(height / spread, height * spread),
        radii=(middle / unequal, middle * unequal),
        allometry=generator.uniform(0.4, 0.9),
        lengths=(length, length + 0.2),
        roundness=generator.uniform(0, 1),
        cover=generator.uniform(0.3, 0.98),
        apart=generator.uniform(0.4, 0.7),
        lump=generator.uniform(0.22, 0.48),
        fullness=generator.uniform(0.4, 0.6),
        suppressed=generator.uniform(0, 0.35),
        rows=2 * middle * generator.uniform(0.7, 1.1) if generator.random() < 0.15 else 0.0,
    )


def draw_stand(
    kind: str | StandKind, seed: int, size: float = 40.0, density: float = 8.0, scale: float = 1.0
) -> Stand:
    """Draw a square stand; the same arguments give the same one.

    Args:
        kind: A name of `KINDS`, or a kind of one's own.
        seed: Of trees and pulses.
        size: Length of the sides in meters.
        density: Pulses a square meter, on average; scan lines and overlaps make it uneven.
        scale: By which crowns are wider than those of the kind.

    Raises:
        KeyError: The name is of no kind.
    """
    generator = np.random.default_rng(seed)
    if isinstance(kind, str):
        kind = KINDS[kind]
    kind = kind._replace(radii=(kind.radii[0] * scale, kind.radii[1] * scale), rows=kind.rows * scale)
    trees = _plant(kind, size, generator)
    pulses = _pulses(size, density, generator)

    which, above, owner = [], [], []
    for number, (stem, height, radius) in enumerate(zip(*trees, strict=True), start=1):
        near = np.flatnonzero(((pulses - stem) ** 2).sum(axis=1) < (1.3 * radius) ** 2)
        hit, z = _crown_hits(pulses[near] - stem, height, radius, kind, generator)
        which.append(near[hit])
        above.append(z)
        owner.append(np.full(len(z), number))
    # The ground stops what is left of all pulses.
    which.append(np.arange(len(pulses)))
    above.append(np.zeros(len(pulses)))
    owner.append(np.zeros(len(pulses), np.int64))
    return _returns(pulses, np.concatenate(which), np.concatenate(above), np.concatenate(owner), generator)


def _plant(kind: StandKind, size: float, generator: np.random.Generator) -> _Trees:
    """Place trees, wide ones first, until the crowns cover the share of the kind or no place is found."""
    mean_area = np.pi * (sum(kind.radii) / 2) ** 2
    wanted = int(4 + 2.5 * kind.cover * size**2 / mean_area)
    vigor = generator.beta(2, 2, wanted)
    suppressed = generator.random(wanted) < kind.suppressed
    vigor[suppressed] *= 0.25
    other = generator.beta(2, 2, wanted)
    other = np.where(suppressed, vigor, kind.allometry * vigor + (1 - kind.allometry) * other)
    heights = kind.heights[0] + vigor * (kind.heights[1] - kind.heights[0])
    radii = kind.radii[0] + other * (kind.radii[1] - kind.radii[0])
    order = np.argsort(-radii)
    # A mosaic of big and of small trees would place all big ones first; shuffle within thirds instead.
    order = np.concatenate([generator.permutation(third) for third in np.array_split(order, 3)])

    placed: list[int] = []
    stems = np.zeros((wanted, 2))
    # Trees stand in groups where cover is low.
    centers = generator.uniform(0, size, (max(3, int(size**2 / 200)), 2))
    cover = 0.0
    for tree in order:
        for _ in range(25):
            if kind.rows:
                stem = np.round(generator.uniform(0, size, 2) / kind.rows) * kind.rows + generator.normal(0, 0.4, 2)
            elif kind.cover < 0.5 and generator.random() < 0.5:
                stem = centers[generator.integers(len(centers))] + generator.normal(0, 2 * kind.radii[1], 2)
            else:
                stem = generator.uniform(0, size, 2)
            if (stem < 0).any() or (stem > size).any():
                continue
            others = np.array(placed, dtype=np.int64)
            distances = np.sqrt(((stems[others] - stem) ** 2).sum(axis=1))
            if (distances > kind.apart * (radii[others] + radii[tree]) * generator.uniform(0.85, 1.25)).all():
                stems[tree] = stem
                placed.append(int(tree))
                cover += np.pi * radii[tree] ** 2 / size**2
                break
        if cover > kind.cover:
            break
    kept = np.array(placed, dtype=np.int64)
    return _Trees(stems[kept], heights[kept], radii[kept])


def _pulses(size: float, density: float, generator: np.random.Generator) -> np.ndarray:
    """Return where pulses meet the canopy (pulses, 2): uneven lines of a scanner, and a strip that overlaps."""
    edge = generator.uniform(0.3, 0.7) * size
    angle = generator.uniform(0, np.pi)
    parts = []
    for strip, share in enumerate((0.75, 0.5)):  # the second has half of the place
        spacing = 1 / np.sqrt(density * share)
        count = int(1.5 * size / spacing)
        along, across = np.meshgrid(np.arange(count), np.arange(count))
        grid = np.stack([along, across], axis=-1).reshape(-1, 2) * (spacing * np.array([0.8, 1.25]))
        grid = grid + generator.normal(0, 0.2 * spacing, grid.shape) - 0.75 * size * np.array([0.8, 1.25])
        turn = angle + 0.2 * strip
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        grid = grid @ rotation.T + size / 2
        inside = ((grid >= 0) & (grid < size)).all(axis=1)
        if strip:
            inside &= grid[:, 0] > edge
        parts.append(grid[inside])
    return np.concatenate(parts)


def _crown_hits(
    flat: np.ndarray, height: float, radius: float, kind: StandKind, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return which pulses (pulses, 2), relative to the stem, hit leaves of the crown, and at which heights.

    A pulse may hit several clusters of leaves.
    """
    length = generator.uniform(*kind.lengths) * height
    # The outline is no circle: a few waves around the stem.
    waves = generator.normal(0, 0.13, 3)
    phases = generator.uniform(0, 2 * np.pi, 3)
    lumps = int(np.clip(2.2 / kind.lump**2, 8, 60) * generator.uniform(0.8, 1.2))
    # Clusters along the outside of the crown, evenly over its area as seen from above
    outward = np.sqrt(generator.random(lumps)) * 0.95
    around = generator.uniform(0, 2 * np.pi, lumps)
    reach = radius * (1 + (waves * np.cos(np.arange(2, 5) * around[:, None] + phases)).sum(axis=1))
    centers = (outward * reach)[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1)
    # From the top: a dome falls with the square of the distance, a cone evenly
    fall = kind.roundness * (1 - np.sqrt(1 - 0.9 * outward**2)) * 0.8 + (1 - kind.roundness) * outward
    lean = generator.normal(0, 0.12 * radius, 2)
    sizes = kind.lump * radius * generator.uniform(0.5, 1.4, lumps)
    tops = height - length * (fall + np.abs(generator.normal(0, 0.1 + 0.08 * kind.roundness, lumps)))
    # The leader of a conifer
    centers = np.concatenate([centers, lean[None]])
    sizes = np.append(sizes, kind.lump * radius * (0.5 + 0.5 * kind.roundness))
    tops = np.append(tops, height)
    full = kind.fullness * generator.uniform(0.3, 1.4, len(tops))

    distances = np.sqrt(((flat[:, None] - centers) ** 2).sum(axis=-1)) / sizes  # (pulses, lumps)
    hit = (distances < 1) & (generator.random(distances.shape) < full)
    pulse, lump = np.nonzero(hit)
    steepness = sizes[lump] * (1.6 - 0.8 * kind.roundness)
    z = tops[lump] - steepness * (1 - np.sqrt(1 - distances[pulse, lump] ** 2))
    z -= generator.exponential(0.15 + 0.1 * sizes[lump])
    # Few hits are inside, at branches and the stem.
    inside = np.flatnonzero((np.sqrt((flat**2).sum(axis=1)) < 0.8 * radius) & (generator.random(len(flat)) < 0.25))
    deep = height - length * generator.uniform(0.4, 1.0, len(inside))
    pulse = np.concatenate([pulse, inside])
    z = np.concatenate([z, deep])
    keep = z > 0.5
    return pulse[keep], z[keep]


def _returns(
    pulses: np.ndarray, which: np.ndarray, above: np.ndarray, owner: np.ndarray, generator: np.random.Generator
) -> Stand:
    """Select the returns of each pulse: the highest hit, and lower ones that a scanner can separate from it."""
    order = np.lexsort((-above, which))
    which, above, owner = which[order], above[order], owner[order]
    first = np.append(True, which[1:] != which[:-1])
    start = np.flatnonzero(first)[np.cumsum(first) - 1]
    place = np.arange(len(which)) - start
    gap = np.append(np.inf, above[:-1] - above[1:])
    # Half of what is left of a pulse goes on; from a leaf that is near the last, nothing is told apart.
    passes = first | ((gap > _LEAST_GAP) & (generator.random(len(which)) < 0.55**place))
    which, above, owner = which[passes], above[passes], owner[passes]
    first = np.append(True, which[1:] != which[:-1])
    group = np.cumsum(first) - 1
    number = np.arange(len(which)) - np.flatnonzero(first)[group] + 1
    few = number <= _MOST_RETURNS
    which, above, owner, number, group = which[few], above[few], owner[few], number[few], group[few]
    counts = np.bincount(group)[group]
    flat = pulses[which] + generator.normal(0, _NOISE, (len(which), 2))
    above = np.maximum(above + generator.normal(0, _NOISE, len(above)), 0)
    # The ground rises evenly.
    z = 500 + 0.08 * flat[:, 0] + 0.04 * flat[:, 1] + above
    points = np.column_stack([flat, z])
    return Stand(points, above.astype(np.float32), owner, number, counts)
