"""Points of a large scan by where they are on the map, and the parts that the scan is looked at in.

What looks at the points around each point needs a scan neither in one piece nor in memory as a whole: it goes through
parts side by side, each with a margin as wide as it looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from hf_any3d_survey.local_features.sparse_boxes import bounds_of

BLOCK = 1 << 18
"""Points of which a copy is made at once."""
_OF_A_SQUARE = 1 << 12  # points


class PlacedPoints:
    """Points (points, 3) in float64, `given * factor + origin`, which are computed where they are asked for."""

    def __init__(self, given: np.ndarray, factor: np.ndarray, origin: np.ndarray):
        self.given = given
        self.factor = factor
        self.origin = origin

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        # By `take`, which copies rows as a whole
        given = self.given[rows] if isinstance(rows, slice) else self.given.take(rows, axis=0)
        found = given.astype(np.float64)
        found *= self.factor
        found += self.origin
        return found

    @cached_property
    def bounds(self) -> np.ndarray:
        """Lowest and highest coordinates, (2, 3)."""
        ends = np.array([bounds_of(self.given[rows]) for rows in blocks(len(self))])
        placed = np.stack([ends[:, 0].min(axis=0), ends[:, 1].max(axis=0)]) * self.factor + self.origin
        # The factor of depths is below 0.
        return np.sort(placed, axis=0)

    def part(self, rows: np.ndarray | slice) -> PlacedPoints:
        """Return some of the points, which are not computed yet."""
        return PlacedPoints(self.given[rows], self.factor, self.origin)


Points = np.ndarray | PlacedPoints
"""Points (points, 3) that are read by their numbers."""


def blocks(count: int) -> Iterator[slice]:
    """Yield slices of so many rows, block by block."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def numbered_keys(keys_of: Callable[[slice], np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the cells that points lie in, as `numpy.unique` with inverses, which takes 40 bytes a point.

    Args:
        keys_of: Returns int64 keys of the cells of some points (points,).
        count: Points of all.

    Returns:
        Sorted keys (cells,), and the place of each point's key among them as int32 (points,).
    """
    of_point = np.empty(count, np.int32)
    of_blocks = []
    for part in blocks(count):
        own, of_point[part] = np.unique(keys_of(part), return_inverse=True)
        of_blocks.append(own)
    keys = np.unique(np.concatenate([np.zeros(0, np.int64), *of_blocks]))
    for part, own in zip(blocks(count), of_blocks, strict=True):
        of_point[part] = np.searchsorted(keys, own)[of_point[part]]
    return keys, of_point


def bounds_of_all(points: Points) -> np.ndarray:
    """Return the lowest and highest coordinates of points, (2, 3), as `bounds_of` of an array."""
    if isinstance(points, PlacedPoints):
        return points.bounds
    ends = np.array([bounds_of(points[rows]) for rows in blocks(len(points))])
    return np.stack([ends[:, 0].min(axis=0), ends[:, 1].max(axis=0)])


class MapIndex:
    """Numbers of points by squares seen from above, so that those of an area are found without a look at all others.

    Args:
        points: (points, 3), of which x and y count.
    """

    def __init__(self, points: Points):
        self._points = points
        bounds = bounds_of_all(points)[:, :2]
        self._low = bounds[0]
        extent = np.maximum(bounds[1] - bounds[0], np.finfo(np.float32).tiny)
        squares = max(1, len(points) // _OF_A_SQUARE)
        # As many along each axis as the extent asks for, at most all.
        along = np.sqrt(squares * extent / extent[::-1]).clip(1, squares).astype(np.int64)
        self._side = extent / along
        self._last = along - 1
        number = np.empty(len(points), np.int32)
        for rows in blocks(len(points)):
            x, y = self._squares(points[rows][:, :2])
            number[rows] = x * along[1] + y
        self._order = np.argsort(number, kind="stable").astype(np.int32)
        self._starts = np.concatenate([[0], np.bincount(number, minlength=int(along.prod())).cumsum()])

    def _squares(self, flat: np.ndarray) -> np.ndarray:
        """Return column and row of the squares that places (places, 2) are in, (2, places); the nearest beyond."""
        place = np.floor((flat - self._low) / self._side)
        return place.clip(0, self._last).astype(np.int64).T

    def within(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the numbers of the points from `low` to `high`, (2,) each, in order."""
        (first, last), (left, right) = self._squares(np.stack([low, high]))
        width = self._last[1] + 1
        # The squares of a column are next to each other.
        found = np.concatenate(
            [
                self._order[self._starts[x * width + left] : self._starts[x * width + right + 1]]
                for x in range(first, last + 1)
            ]
        )
        x, y = self._points[found].T[:2]
        is_within = (x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])
        return np.sort(found[is_within]).astype(np.int64)
