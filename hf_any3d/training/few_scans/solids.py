"""Generate simple solids of random proportions: shapes of no class, which look like one to whom never saw any.

A flat box is no appliance, and a beam no sofa. A family is a rule for the faces of a solid; faces may be missing, the
solid may be filled, and it may point in any direction.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

OPEN, FILLED = 0.3, 0.15
"""Shares of the solids that lack some of their faces, and of those that have points inside."""
UPRIGHT, QUARTER = 0.5, 0.25
"""Shares that stand as their family draws them, and on another side; the others point in any direction."""
_ROUND = 24
# Triangles of a face: (triangles, 3 corners, 3).
Faces = list[np.ndarray]


def draw_solid(generator: Generator, count: int, family: str | None = None) -> np.ndarray:
    """Draw points `(count, 3)` of a solid, y up, of a family of `FAMILIES` or of any."""
    names = list(FAMILIES)
    name = names[generator.integers(len(names))] if family is None else family
    faces = FAMILIES[name](generator)
    if len(faces) > 3 and generator.random() < OPEN:
        missing = generator.permutation(len(faces))[: generator.integers(1, 3)]
        faces = [face for number, face in enumerate(faces) if number not in missing]
    points = sample_faces(generator, faces, count)
    if generator.random() < FILLED:
        # A cube root spreads points evenly from the middle of a solid to its surface.
        points = points * np.cbrt(generator.random((count, 1)))
    kind = generator.random()
    if kind < UPRIGHT:
        return points
    if kind < UPRIGHT + QUARTER:
        return np.roll(points, generator.integers(1, 3), axis=1)
    return points @ rotation(generator).T


def sample_faces(generator: Generator, faces: Faces, count: int) -> np.ndarray:
    """Draw points `(count, 3)` on faces, evenly by their areas."""
    triangles = np.concatenate(faces)  # (triangles, 3, 3)
    first = triangles[:, 1] - triangles[:, 0]
    second = triangles[:, 2] - triangles[:, 0]
    areas = np.linalg.norm(np.cross(first, second), axis=1)
    chosen = generator.choice(len(triangles), count, p=areas / areas.sum())
    along, across = generator.random((2, count, 1))
    # The half of the parallelogram that is not the triangle is folded back.
    outside = along + across > 1
    along = np.where(outside, 1 - along, along)
    across = np.where(outside, 1 - across, across)
    return triangles[chosen, 0] + along * first[chosen] + across * second[chosen]


def rotation(generator: Generator) -> np.ndarray:
    """Draw a rotation matrix."""
    axes, signs = np.linalg.qr(generator.normal(size=(3, 3)))
    axes = axes * np.sign(np.diag(signs))
    return axes * (1, 1, np.sign(np.linalg.det(axes)))


def extruded(outline: np.ndarray, length: float) -> Faces:
    """Return sides and ends of a prism.

    The first corner of the outline `(corners, 2)` sees all others. It lies in x and y, and is moved along z.
    """
    # Centered, so that a random turn is about the middle.
    outline = outline - (outline.min(axis=0) + outline.max(axis=0)) / 2
    near, far = (np.column_stack([outline, np.full(len(outline), z)]) for z in (-length / 2, length / 2))
    # The next corner of each, around the outline
    following = np.roll(np.arange(len(outline)), -1)
    sides = [
        np.array([[near[i], near[j], far[j]], [near[i], far[j], far[i]]]) for i, j in enumerate(following.tolist())
    ]
    # Each end as a fan of triangles around its first corner.
    fan = np.array([[0, i, i + 1] for i in range(1, len(outline) - 1)])
    return [*sides, near[fan], far[fan]]


def revolved(profile: np.ndarray) -> Faces:
    """Return the rings of a profile `(corners, 2)` of radius and height that is turned about the y axis."""
    angle = np.linspace(0, 2 * np.pi, _ROUND + 1)
    # (_ROUND + 1, 3), closed: the last point is the first.
    circle = np.column_stack([np.cos(angle), np.zeros(_ROUND + 1), np.sin(angle)])
    rings = [radius * circle + (0, height, 0) for radius, height in profile]  # (_ROUND + 1, 3) each
    faces = []
    for low, high in zip(rings[:-1], rings[1:], strict=True):
        first = np.stack([low[:-1], low[1:], high[1:]], axis=1)
        second = np.stack([low[:-1], high[1:], high[:-1]], axis=1)
        faces.append(np.concatenate([first, second]))
    return faces


def box(width: float, height: float, depth: float) -> Faces:
    """Return the six sides of a box."""
    return extruded(np.array([[0, 0], [width, 0], [width, height], [0, height]]), depth)


def _plane(generator: Generator) -> Faces:
    """Draw one side of a flat box."""
    return box(1, 1e-3, generator.uniform(0.3, 1))[:1]


def _slab(generator: Generator) -> Faces:
    return box(1, generator.uniform(0.02, 0.2), generator.uniform(0.3, 1))


def _cube(generator: Generator) -> Faces:
    return box(*generator.uniform(0.85, 1.15, 3))


def _box(generator: Generator) -> Faces:
    return box(*generator.uniform(0.25, 1, 3))


def _bar(generator: Generator) -> Faces:
    # Two sides of different lengths, as of a plank
    thick = generator.uniform(0.03, 0.3)
    return box(1, thick, thick * generator.uniform(0.4, 1))


def _disc(generator: Generator) -> Faces:
    height = generator.uniform(0, 0.25)
    return revolved(np.array([[0, 0], [1, 0], [1, height], [0, height]]) - (0, height / 2))


def _wedge(generator: Generator) -> Faces:
    # The third corner may stand beyond the ends of the base, so that some wedges lean.
    corner = (generator.uniform(-0.3, 1.3), generator.uniform(0.2, 1.2))
    return extruded(np.array([[0, 0], [1, 0], corner]), generator.uniform(0.2, 1.5))


def _corner(generator: Generator) -> Faces:
    """Draw two or three sides of a box that meet."""
    sides = box(*generator.uniform(0.4, 1, 3))
    return [sides[0], sides[1], sides[4]][: generator.integers(2, 4)]


def _stairs(generator: Generator) -> Faces:
    steps = generator.integers(2, 9)
    rise = generator.uniform(0.3, 1)
    # From the foot of the highest step down the stairs, and back along the floor
    outline = [(1.0, 0.0)]
    for step in range(steps, 0, -1):
        height = rise * step / steps
        outline += [(step / steps, height), ((step - 1) / steps, height)]
    outline.append((0.0, 0.0))
    return extruded(np.array(outline), generator.uniform(0.2, 1.2))


def _tube(generator: Generator) -> Faces:
    """Draw a cylinder, a pipe with a wall, or one with two radii."""
    radius = generator.uniform(0.08, 0.6)
    height = 1.0
    inner = radius * generator.uniform(0.4, 0.95)
    if generator.random() < 0.5:
        profile = [[0, -0.5], [radius, -0.5], [radius, 0.5], [0, 0.5]]
    elif generator.random() < 0.6:
        profile = [[inner, -0.5], [radius, -0.5], [radius, 0.5], [inner, 0.5], [inner, -0.5]]
    else:
        profile = [[0, -0.5], [radius, -0.5], [radius, 0], [inner, 0], [inner, 0.5], [0, 0.5]]
    return revolved(np.array(profile) * (1, height))


def _ball(generator: Generator) -> Faces:
    """Draw a ball, a flattened one, or a dome."""
    angle = np.linspace(-np.pi / 2 if generator.random() < 0.7 else generator.uniform(-0.3, 0.6), np.pi / 2, 13)
    return revolved(np.column_stack([np.cos(angle), np.sin(angle) * generator.uniform(0.4, 1.2)]))


def _terrain(generator: Generator) -> Faces:
    """Draw a hilly square."""
    axis = np.linspace(-0.5, 0.5, 17)
    x, z = np.meshgrid(axis, axis, indexing="ij")
    height = generator.normal(0, 0.15) * x
    for _ in range(generator.integers(1, 5)):
        waves = generator.normal(0, 5, 2)
        height = height + generator.uniform(0.01, 0.12) * np.sin(waves[0] * x + waves[1] * z + generator.uniform(0, 6))
    places = np.stack([x, height, z * generator.uniform(0.4, 1)], axis=-1)  # (17, 17, 3)
    low = places[:-1]
    high = places[1:]
    first = np.stack([low[:, :-1], low[:, 1:], high[:, 1:]], axis=2)
    second = np.stack([low[:, :-1], high[:, 1:], high[:, :-1]], axis=2)
    return [np.concatenate([first.reshape(-1, 3, 3), second.reshape(-1, 3, 3)])]


def _frustum(generator: Generator) -> Faces:
    """Draw a cone or pyramid, with or without its tip."""
    top = generator.uniform(0, 0.7)
    height = generator.uniform(0.3, 1.5)
    profile = np.array([[0, 0], [0.5, 0], [0.5 * top, height], [0, height]]) - (0, height / 2)
    return revolved(profile)


def _prism(generator: Generator) -> Faces:
    """Draw a prism of some corners at about the same distance from its axis."""
    count = generator.integers(5, 9)
    angle = (np.arange(count) + generator.uniform(-0.2, 0.2, count)) * 2 * np.pi / count
    outline = np.column_stack([np.cos(angle), np.sin(angle)]) * generator.uniform(0.8, 1, (count, 1))
    return extruded(outline, generator.uniform(0.2, 3))


def _profile(generator: Generator) -> Faces:
    """Draw a beam whose section has the form of an L, T or U."""
    width, height, depth = generator.uniform(0.4, 1, 3)
    thick = generator.uniform(0.04, 0.3) * min(width, height)
    places = ((0.0,), (0.5,), (0.0, 1.0))[generator.integers(3)]
    foot = np.concatenate(box(width, thick, depth))
    legs = [
        np.concatenate(box(thick, height, depth)) + ((place - 0.5) * (width - thick), (height + thick) / 2, 0)
        for place in places
    ]
    return [np.concatenate([foot, *legs])]


FAMILIES: dict[str, Callable[[Generator], Faces]] = {
    "plane": _plane,
    "slab": _slab,
    "cube": _cube,
    "box": _box,
    "bar": _bar,
    "disc": _disc,
    "wedge": _wedge,
    "corner": _corner,
    "stairs": _stairs,
    "tube": _tube,
    "ball": _ball,
    "terrain": _terrain,
    "frustum": _frustum,
    "prism": _prism,
    "profile": _profile,
}
"""Family -> its faces, from random proportions."""
