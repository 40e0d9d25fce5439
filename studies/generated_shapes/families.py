"""Shapes without a class: random solids of many families, and scenes that show no object at all.

Encoders learn from the families (`studies/packaged_encoder.py`), classifiers what they do not know from both. No
function draws one of the 48 classes on purpose, so that these stay classes that such an encoder has not seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from studies.generated_shapes import normalized, seen, viewpoint
from studies.generated_shapes.surfaces import (
    Draw,
    areas_of,
    ball,
    box,
    cylinder,
    revolved,
    ring_of,
    rod,
    sample,
    slab,
    tube,
    turned,
    wedge,
)

Parts = list[np.ndarray]

MIRROR = np.array([-1.0, 1.0, 1.0])


def primitive(r: Draw) -> np.ndarray:
    """Draw a simple solid of a size near 1, standing on the ground."""
    kind = r.whole(0, 8)
    size = [np.exp(r(-1.2, 0.4)) for _ in range(3)]
    if kind == 0:
        return box(size)
    if kind == 1:
        return wedge(size, (r(0, 1.3), r(0, 1.3)))
    if kind == 2:
        return cylinder(size[0] / 2, size[1], top=r(0, 1) * size[0])
    if kind == 3:
        return ball(np.array(size) / 2, (0, size[1] / 2, 0), start=r(-90, -20), end=r(20, 90))
    if kind == 4:  # a ring
        angles = np.linspace(0, 2 * np.pi, 10)
        thick = r(0.1, 0.45) * size[0]
        profile = np.stack([size[0] / 2 + thick * np.cos(angles) / 2, thick * (1 + np.sin(angles)) / 2], axis=1)
        return revolved(profile, squash=r(0.5, 1.5), turn=r(0.5, 1) if r.yes(0.3) else 1.0)
    if kind == 5:  # a superellipsoid, between box, ball and star
        powers = np.exp([r(-1.5, 0.7), r(-1.5, 0.7)])
        v, u = np.meshgrid(np.linspace(-np.pi / 2, np.pi / 2, 12), np.linspace(-np.pi, np.pi, 20), indexing="ij")
        c, s = (
            (lambda a, p: np.sign(np.cos(a)) * np.abs(np.cos(a)) ** p),
            (lambda a, p: np.sign(np.sin(a)) * np.abs(np.sin(a)) ** p),
        )
        grid = np.stack([c(v, powers[0]) * c(u, powers[1]), s(v, powers[0]), c(v, powers[0]) * s(u, powers[1])], -1)
        first, second, third, fourth = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
        halves = [np.stack([first, second, third], axis=-2), np.stack([first, third, fourth], axis=-2)]
        return (np.stack(halves, axis=-3).reshape(-1, 3, 3) + (0, 1, 0)) * size / 2
    if kind == 6:  # a plate with a random outline
        angles = np.sort(r.generator.uniform(0, 2 * np.pi, r.whole(3, 12)))
        radii = r.generator.uniform(0.3, 1, len(angles))[:, None]
        outline = radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return slab(outline, r(0.05, 0.4), ("xy", "xz", "yz")[r.whole(0, 2)]) * size
    if kind == 7:
        return revolved_profile(r) * size
    return swept(r) * size


def revolved_profile(r: Draw) -> np.ndarray:
    """Draw a random profile and revolve it: bellied, stepped, open or hollow."""
    count = r.whole(3, 9)
    heights = np.sort(r.generator.uniform(0, 1, count))
    radii = np.abs(np.cumsum(r.generator.normal(0, 0.25, count)) + r(0.1, 0.6))
    profile = np.stack([radii, heights], axis=1)
    if r.yes(0.4):
        profile = np.concatenate([[[0, heights[0]]], profile])
    if r.yes(0.4):
        profile = np.concatenate([profile, [[0, heights[-1]]]])
    return revolved(profile, squash=r(0.6, 1.4), sections=r.whole(3, 20))


def swept(r: Draw) -> np.ndarray:
    """Draw a tube of changing radius along a random smooth path."""
    steps = np.cumsum(r.generator.normal(0, 1, (r.whole(2, 6), 3)), axis=0)
    times = np.linspace(0, len(steps) - 1, 24)
    path = np.stack([np.interp(times, np.arange(len(steps)), axis) for axis in steps.T], axis=1)
    for _ in range(r.whole(0, 3)):  # corners become bends
        path[1:-1] = (path[:-2] + 2 * path[1:-1] + path[2:]) / 4
    path /= np.ptp(path, axis=0).max() + 1e-9
    radius = r(0.02, 0.2) * np.interp(times, [0, times[-1] / 2, times[-1]], [r(0.2, 1), 1, r(0.2, 1)])
    return tube(path, radius)


def composed(r: Draw) -> Parts:
    """Draw solids that touch each other, some of them in pairs."""
    parts = [primitive(r)]
    for _ in range(r.whole(1, 5)):
        part = primitive(r) * r(0.2, 1)
        if r.yes(0.5):
            part = turned(part, r(0, 360), "xyz"[r.whole(0, 2)])
        at = sample(parts[r.whole(0, len(parts) - 1)], 1, r.generator)[0]
        part = part - sample(part, 1, r.generator)[0] + at
        parts.append(part)
        if r.yes(0.4):
            parts.append(part * MIRROR)
    return parts


def stacked(r: Draw) -> Parts:
    """Draw solids that stand on each other."""
    parts, height = [], 0.0
    for _ in range(r.whole(2, 5)):
        part = primitive(r) * (r(0.3, 1), r(0.1, 1), r(0.3, 1))
        parts.append(part + (0, height - part[..., 1].min(), 0))
        height = parts[-1][..., 1].max()
    return parts


def supported(r: Draw) -> Parts:
    """Draw a body on some legs, with parts above it."""
    height, body = r(0.1, 1), primitive(r) * (r(0.6, 1.4), r(0.1, 0.8), r(0.6, 1.4))
    body = body + (0, height - body[..., 1].min(), 0)
    reach = np.abs(body[..., [0, 2]]).max(axis=(0, 1)) * r(0.5, 1)
    leg = rod((reach[0], 0, reach[1]), (r(0.6, 1) * reach[0], height, r(0.6, 1) * reach[1]), r(0.02, 0.08))
    legs = ring_of(leg, r.whole(1, 6)) if r.yes() else [leg, leg * MIRROR, leg * (1, 1, -1), leg * (-1, 1, -1)]
    above = primitive(r) * r(0.1, 0.6)
    above = above + (r(-0.5, 0.5) * reach[0], body[..., 1].max() - above[..., 1].min(), r(-0.5, 0.5) * reach[1])
    return [body, *legs, *([above] if r.yes(0.6) else []), *([above * MIRROR] if r.yes(0.3) else [])]


def around(r: Draw) -> Parts:
    """Draw a core with copies of a solid around it."""
    part = turned(primitive(r) * r(0.2, 0.8), r(0, 360), "xyz"[r.whole(0, 2)]) + (r(0.2, 0.8), r(-0.5, 0.5), 0)
    return [*([primitive(r)] if r.yes(0.8) else []), *ring_of(part, r.whole(2, 9), r(0, 360))]


def framed(r: Draw) -> Parts:
    """Draw bars and boards between points of a grid."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, r.whole(2, 3)) for _ in range(3))), axis=-1).reshape(-1, 3)
    grid = grid * [r(0.3, 1) for _ in range(3)]
    thick, parts = r(0.02, 0.1), []
    for _ in range(r.whole(3, 10)):
        start, end = grid[r.generator.choice(len(grid), 2, replace=False)]
        parts.append(rod(start, end, thick))
    for _ in range(r.whole(0, 3)):
        low, high = grid[r.generator.choice(len(grid), 2, replace=False)]
        size = np.maximum(np.abs(high - low), thick)
        parts.append(box(size, ((low + high) / 2) - (0, size[1] / 2, 0)))
    return [*parts, *(part * MIRROR for part in parts)] if r.yes(0.7) else parts


FAMILIES: dict[str, Callable[[Draw], Parts]] = {
    "primitive": lambda r: [primitive(r)],
    "revolved": lambda r: [revolved_profile(r)],
    "swept": lambda r: [swept(r) for _ in range(r.whole(1, 3))],
    "composed": composed,
    "stacked": stacked,
    "supported": supported,
    "around": around,
    "framed": framed,
}
"""Family -> function that draws a shape of it as parts."""


def draw_solid(r: Draw, count: int, family: str | None = None) -> np.ndarray:
    """Draw a shape of a family and sample its surface.

    Args:
        r: Source of choices.
        count: Points to draw.
        family: One of `FAMILIES`; None draws one.

    Returns:
        `(count, 3)`, y up, in the unit sphere.
    """
    names = list(FAMILIES)
    parts = FAMILIES[names[r.whole(0, len(names) - 1)] if family is None else family](r)
    points = normalized(sample(np.concatenate(parts), 2 * count if r.yes(0.25) else count, r.generator))
    if len(points) > count:
        points = cut_out(r, points, count)
    return normalized(deformed(r, points)) if r.yes(0.5) else points


def cut_out(r: Draw, points: np.ndarray, count: int) -> np.ndarray:
    """Take an ellipsoid or a slab out of a shape and close the hole with what of its surface is inside."""
    center, radii = points[r.whole(0, len(points) - 1)] * r(0.3, 1), np.array([r(0.15, 0.7) for _ in range(3)])
    outside = np.linalg.norm((points - center) / radii, axis=1) > 1
    kept = points[outside] if outside.sum() > 0.3 * len(points) else points
    hole = sample(ball(radii, center), count // 2, r.generator)
    # The hole has a surface where matter was, which is roughly where points lie farther out in the same direction.
    hole = hole[np.linalg.norm(hole, axis=1) < np.quantile(np.linalg.norm(points, axis=1), 0.5)]
    both = np.concatenate([kept, hole]) if r.yes(0.6) else kept
    return both[r.generator.choice(len(both), count, replace=len(both) < count)]


def deformed(r: Draw, points: np.ndarray) -> np.ndarray:
    """Taper, twist, bend or wave a shape, about a random axis."""
    first, second, along = r.generator.permutation(3)
    points, place = points.copy(), points[:, along]
    kind = r.whole(0, 3)
    if kind == 0:
        points[:, [first, second]] *= 1 + r(-0.8, 0.8) * place[:, None]
    elif kind == 1:
        angle = r(-1.5, 1.5) * place
        turned_first = np.cos(angle) * points[:, first] - np.sin(angle) * points[:, second]
        points[:, second] = np.sin(angle) * points[:, first] + np.cos(angle) * points[:, second]
        points[:, first] = turned_first
    elif kind == 2:
        points[:, first] += r(-0.7, 0.7) * place**2
    else:
        points[:, first] += r(0.02, 0.15) * np.sin(r(2, 8) * place + r(0, 6))
    return points


def scanned(
    r: Draw, points: np.ndarray, count: int, hidden: float = 0.4, cut: float = 0.15, noise: float = 0.02
) -> np.ndarray:
    """Look at a shape as a scanner does: from one side, in part, with noise.

    Args:
        r: Source of choices.
        points: `(points, 3)` in the unit sphere.
        count: Points to keep.
        hidden: Share of the views that see one side only.
        cut: Share of the views that lose what lies beyond a plane.
        noise: Largest standard deviation of the noise.

    Returns:
        `(count, 3)` float32 in random order, in the unit sphere.
    """
    if r.yes(hidden):
        points = points[seen(points, *viewpoint(r))]
    if r.yes(cut):
        places = points @ r.generator.normal(size=3)
        points = points[places <= np.quantile(places, r(0.65, 0.95))]
    points = points[r.generator.choice(len(points), count, replace=len(points) < count)]
    return normalized(points + r.generator.normal(0, 1, points.shape) * r(0, 1) * noise).astype(np.float32)


def noise_cloud(r: Draw, count: int) -> np.ndarray:
    """Draw points of no surface: a normal cloud, a full ball or box, or a few clusters."""
    kind, size = r.whole(0, 3), np.exp([r(-1, 0.3) for _ in range(3)])
    if kind == 0:
        return r.generator.normal(size=(count, 3)) * size
    if kind == 1:
        directions = r.generator.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return directions * r.generator.random((count, 1)) ** (1 / 3) * size
    if kind == 2:
        return r.generator.uniform(-1, 1, (count, 3)) * size
    centers = r.generator.uniform(-1, 1, (r.whole(2, 12), 3))
    return centers[r.generator.integers(len(centers), size=count)] + r.generator.normal(0, r(0.02, 0.4), (count, 3))


def plane(r: Draw, count: int) -> np.ndarray:
    """Draw a floor, a wall or a gentle terrain, with a rough surface."""
    flat = r.generator.uniform(-1, 1, (count, 3)) * (r(0.3, 1), 0, r(0.3, 1))
    if r.yes(0.5):
        flat[:, 1] = sum(r(0, 0.08) * np.sin(r(1, 5) * flat[:, axis] + r(0, 6)) for axis in (0, 2))
    flat += r.generator.normal(0, r(0, 0.02), flat.shape)
    flat = _cut_round(r, flat, count)
    return turned(flat, r(0, 90) if r.yes() else 90 * r.whole(0, 1), "xz"[r.whole(0, 1)])


def bar(r: Draw, count: int) -> np.ndarray:
    """Draw a single long bar or a wire."""
    end = r.generator.normal(size=3) if r.yes() else np.eye(3)[r.whole(0, 2)]
    end /= np.linalg.norm(end)
    thick = r(0.005, 0.08)
    return sample(rod(-end, end, thick, thick * r(0.5, 1)), count, r.generator)


def room(r: Draw, count: int) -> np.ndarray:
    """Draw a floor with some walls, perhaps a ceiling, and solids on the floor."""
    width, height, depth = r(2, 4), r(1.2, 1.6), r(2, 4)
    floor = box((2 * width, 0.01, 2 * depth))
    walls = [
        box((2 * width, height, 0.01), (0, 0, depth)),
        box((2 * width, height, 0.01), (0, 0, -depth)),
        box((0.01, height, 2 * depth), (width, 0, 0)),
        box((0.01, height, 2 * depth), (-width, 0, 0)),
    ]
    parts = [floor, *(wall for wall in walls if r.yes(0.75))]
    if r.yes(0.2):
        parts.append(floor + (0, height, 0))
    for _ in range(r.whole(3, 9)):
        solid = np.concatenate(stacked(r) if r.yes() else supported(r))
        solid = turned(solid / np.abs(solid).max() * r(0.3, 0.7), r(0, 360))
        at = (r(-0.8, 0.8) * width, -solid[..., 1].min(), r(-0.8, 0.8) * depth)
        parts.append(solid + at)
    # Furniture is seen better than walls: scanners stand among it.
    weights = np.concatenate([np.full(len(part), 1.0 if number < 6 else 2.0) for number, part in enumerate(parts)])
    triangles = np.concatenate(parts)
    chosen = r.generator.choice(len(triangles), count, p=(p := areas_of(triangles) * weights) / p.sum())
    first, second = np.sort(r.generator.random((2, count, 1)), axis=0)
    corners = triangles[chosen]
    return first * corners[:, 0] + (second - first) * corners[:, 1] + (1 - second) * corners[:, 2]


def street(r: Draw, count: int) -> np.ndarray:
    """Draw ground with houses, trees, cars and poles, of which a scanner in the air or on a car sees a piece."""
    size = r(2, 25)
    places = r.generator.uniform(-size, size, (4 * count, 2))
    slope = [r(-0.15, 0.15) for _ in range(2)]
    height = places @ slope + r(0, 0.6) * np.sin(places @ r.generator.normal(0, 0.2, 2))
    ground = np.stack([places[:, 0], height + r(0, 0.1) * r.generator.normal(size=len(places)), places[:, 1]], axis=1)
    pieces = [ground[: r.whole(count // 2, 2 * count)]]
    for _ in range(r.whole(0, 8)):
        kind, at = r.whole(0, 3), np.array([r(-size, size), 0, r(-size, size)])
        if kind == 0:  # a house, often only its roof or a wall
            body = box((r(4, 15), r(3, 12), r(4, 15)))
            part = sample(body, r.whole(count // 4, count), r.generator)
            part = part[part[:, 1] > (part[:, 1].max() - 0.1 if r.yes(0.4) else -1)]
        elif kind == 1:  # a tree
            crown = r.generator.normal(0, 1, (r.whole(count // 8, count // 2), 3)) * r(0.7, 2)
            part = np.concatenate([crown + (0, r(3, 10), 0), sample(rod((0, 0, 0), (0, 4, 0), 0.2), 20, r.generator)])
        elif kind == 2:  # a car
            part = sample(np.concatenate([box((1.8, 1, 4.5)), box((1.6, 0.6, 2), (0, 1, 0))]), count // 8, r.generator)
        else:
            part = sample(rod((0, 0, 0), (0, r(3, 9), 0), 0.08), count // 16, r.generator)
        pieces.append(turned(part, r(0, 360)) + at + (0, at[[0, 2]] @ slope, 0))
    points = np.concatenate(pieces)
    return _cut_round(r, points, count)


def _cut_round(r: Draw, points: np.ndarray, count: int) -> np.ndarray:
    """Cut out what is within a radius about the vertical axis, or within a half plane of it, or nothing."""
    across = np.linalg.norm(points[:, [0, 2]], axis=1)
    kept = across <= np.quantile(across, r(0.05, 0.7)) if r.yes(0.6) else np.ones(len(points), bool)
    if r.yes(0.4):
        side = points[:, [0, 2]] @ r.generator.normal(size=2)
        kept &= side <= np.quantile(side[kept], r(0.5, 0.95))
    points = points[kept]
    return points[r.generator.choice(len(points), count, replace=len(points) < count)]


OTHERS: dict[str, Callable[[Draw, int], np.ndarray]] = {
    "noise": noise_cloud,
    "plane": plane,
    "bar": bar,
    "room": room,
    "street": street,
}
"""Kind of what is no single object -> function that draws points of it."""


def draw_other(kind: str, seed: int, index: int, count: int = 1024) -> np.ndarray:
    """Draw something that is none of the classes: one of `OTHERS`, or "solid", a shape of a random family.

    Returns:
        `(count, 3)` float32 in the unit sphere, y up, with any heading.

    Raises:
        ValueError: An unknown kind.
    """
    if kind not in OTHERS and kind != "solid":
        raise ValueError(f"kind is {kind!r}; expected one of solid, {', '.join(OTHERS)}")
    r = Draw(np.random.default_rng([seed, sum(map(ord, kind)), index]))
    points = draw_solid(r, 2 * count) if kind == "solid" else OTHERS[kind](r, count)
    points = turned(normalized(points), r(0, 360))
    return scanned(r, points, count) if kind == "solid" else scanned(r, points, count, hidden=0.1, cut=0.1)
