"""Surfaces from which the generated shapes are made, as triangles `(triangles, 3, 3)`, and their sampling.

The y axis points up. Curved surfaces are grids of few cells, since the points of a cloud are farther apart than that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Line = Sequence[Sequence[float]] | np.ndarray
"""Points of a line, `(points, 2 or 3)`."""

_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (0.0, 1.0) for z in (-0.5, 0.5)])
_SIDES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])


class Draw:
    """Random choices of a shape.

    Args:
        generator: Source of randomness.
    """

    def __init__(self, generator: np.random.Generator):
        self.generator = generator

    def __call__(self, low: float, high: float) -> float:
        """Draw a number, uniformly."""
        return low + (high - low) * self.generator.random()

    def whole(self, low: int, high: int) -> int:
        """Draw an integer from `low` to `high`, both included."""
        return int(self.generator.integers(low, high + 1))

    def yes(self, share: float = 0.5) -> bool:
        """Return True in this share of the draws."""
        return self.generator.random() < share


def sheet(grid: np.ndarray) -> np.ndarray:
    """Return the triangles between the points of a grid `(rows, columns, 3)`."""
    first, second, third, fourth = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    halves = np.stack([np.stack([first, second, third], axis=-2), np.stack([first, third, fourth], axis=-2)])
    return halves.reshape(-1, 3, 3)


def box(size: Sequence[float], at: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    """Return a box of a size, with the center of its bottom at `at`."""
    sides = (_CORNERS * size + at)[_SIDES]  # (sides, 4, 3)
    return np.concatenate([sides[:, [0, 1, 2]], sides[:, [0, 2, 3]]])


def wedge(size: Sequence[float], top: Sequence[float], at: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    """Return a box whose top is `top` (x, z) times as large as its bottom: a frustum, a roof or a pyramid."""
    corners = _CORNERS * size
    corners[_CORNERS[:, 1] > 0] *= (top[0], 1, top[1])
    sides = (corners + at)[_SIDES]
    return np.concatenate([sides[:, [0, 1, 2]], sides[:, [0, 2, 3]]])


def revolved(
    profile: Line, at: Sequence[float] = (0, 0, 0), squash: float = 1.0, sections: int = 20, turn: float = 1.0
) -> np.ndarray:
    """Revolve a profile of (radius, height) about the vertical axis through `at`.

    Args:
        profile: The profile.
        at: Origin of the profile.
        squash: Factor of the extent along z.
        sections: Cells around the axis.
        turn: Share of a full turn.
    """
    radius, height = np.asarray(profile, float).T[..., None]  # (points, 1) each
    angles = np.linspace(0, 2 * np.pi * turn, sections + 1)
    x, z = radius * np.cos(angles), squash * radius * np.sin(angles)
    return sheet(np.stack([x, np.broadcast_to(height, x.shape), z], axis=-1) + at)


def cylinder(
    radius: float, height: float, at: Sequence[float] = (0, 0, 0), top: float | None = None, sections: int = 20
) -> np.ndarray:
    """Return a closed cylinder, or a frustum with another radius at its top."""
    upper = radius if top is None else top
    return revolved([(0, 0), (radius, 0), (upper, height), (0, height)], at, sections=sections)


def ball(
    radii: Sequence[float], center: Sequence[float] = (0, 0, 0), start: float = -90, end: float = 90
) -> np.ndarray:
    """Return an ellipsoid, or its part between two latitudes in degrees."""
    latitude = np.radians(np.linspace(start, end, 10))
    unit = revolved(np.stack([np.cos(latitude), np.sin(latitude)], axis=1), sections=14)
    return unit * radii + center


def tube(path: Line, radius: float | Sequence[float], sections: int = 7) -> np.ndarray:
    """Return a tube around a path `(points, 3)`, of one radius or one at each point."""
    path = np.asarray(path, float)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    # The axis that the path follows least is nowhere parallel to it, unless it bends through all three.
    aside = np.cross(along, np.eye(3)[np.abs(along).sum(axis=0).argmin()])
    aside /= np.linalg.norm(aside, axis=1, keepdims=True) + 1e-9
    other = np.cross(along, aside)
    angles = np.linspace(0, 2 * np.pi, sections + 1)[:, None]
    ring = np.cos(angles) * aside[:, None] + np.sin(angles) * other[:, None]  # (points, sections + 1, 3)
    return sheet(path[:, None] + np.broadcast_to(radius, len(path))[:, None, None] * ring)


def rod(start: Sequence[float], end: Sequence[float], radius: float, top: float | None = None) -> np.ndarray:
    """Return a round bar between two points, with another radius at its end if `top` is given."""
    return tube([start, end], [radius, radius if top is None else top])


def arc(center: Sequence[float], radii: Sequence[float], start: float, end: float, plane: str = "xy") -> np.ndarray:
    """Return points `(12, 3)` on an ellipse in a plane, between two angles in degrees."""
    angles = np.radians(np.linspace(start, end, 12))
    points = np.tile(np.asarray(center, float), (12, 1))
    points[:, "xyz".index(plane[0])] += radii[0] * np.cos(angles)
    points[:, "xyz".index(plane[1])] += radii[1] * np.sin(angles)
    return points


def slab(outline: Line, thickness: float, plane: str = "xy") -> np.ndarray:
    """Return a plate with a star-shaped outline `(points, 2)` in a plane, centered across it."""
    outline = np.asarray(outline, float)
    closed = np.concatenate([outline, outline[:1]])
    middle = np.tile(outline.mean(axis=0), (len(closed), 1))
    rows = np.stack([middle, closed, closed, middle])  # (4, points + 1, 2)
    across = thickness * np.array([-0.5, -0.5, 0.5, 0.5])
    grid = np.empty((*rows.shape[:2], 3))
    first, second = ("xyz".index(axis) for axis in plane)
    grid[..., first], grid[..., second] = rows[..., 0], rows[..., 1]
    grid[..., 3 - first - second] = across[:, None]
    return sheet(grid)


def turned(triangles: np.ndarray, degrees: float, axis: str = "y", about: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    """Rotate about an axis through a point."""
    angle, number = np.radians(degrees), "xyz".index(axis)
    first, second = (number + 1) % 3, (number + 2) % 3
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = np.sin(angle), -np.sin(angle)
    return (triangles - about) @ matrix + about


def ring_of(triangles: np.ndarray, count: int, start: float = 0.0) -> list[np.ndarray]:
    """Return copies rotated about the vertical axis, evenly spaced."""
    return [turned(triangles, start + 360 * number / count) for number in range(count)]


def areas_of(triangles: np.ndarray) -> np.ndarray:
    """Return the areas `(triangles,)`."""
    edges = triangles[:, 1:] - triangles[:, :1]
    return np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) / 2


def sample(triangles: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw points `(count, 3)` evenly over the surface."""
    edge = np.cumsum(areas_of(triangles))
    chosen = triangles[np.searchsorted(edge, generator.random(count) * edge[-1], side="right").clip(max=len(edge) - 1)]
    first, second = generator.random((2, count, 1))
    folded = first + second > 1
    first, second = np.where(folded, 1 - first, first), np.where(folded, 1 - second, second)
    corner = chosen[:, 0]
    return corner + first * (chosen[:, 1] - corner) + second * (chosen[:, 2] - corner)
