"""Things of a scan by their numbers, such as trees and blocks of buildings: place, height, and outline from above."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from hf_any3d_survey.local_features.neighborhoods import spacing_of

BLOCKS = frozenset({6})
"""Codes of classes whose things are told by their centroid and not by their top: buildings of LAS."""
_LEAST_CELL, _SPACINGS = 0.5, 2.0  # meters, and spacings of points: the width of a cell of an outline
_MOST_CELLS = 1 << 22  # of the rectangle around a thing
# Of a cell: at 0, rings would touch themselves where cells do, and at half a cell, parts of one cell would vanish.
_LEAST_INSET, _MOST_INSET = 0.05, 0.4
_LONG = 2  # cells of an edge from which on it is no step of a slanted one
_TOLERANCE = 0.5  # of a cell, by which a simplified outline may differ
# Directions of the edges of cells in counterclockwise order, along x and y: along +x, +y, -x, -y.
_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
# What an edge encloses is on its left.
_INWARD = _STEPS[[1, 2, 3, 0]]


@dataclass(frozen=True)
class Thing:
    """A thing of a scan.

    Attributes:
        number: Its number among the points, from 1 on.
        label: Name of its class.
        code: Code of its class in the file.
        x: Map coordinate of its top; of its centroid for a block of buildings.
        y: The same to the north.
        ground: Elevation of the ground below, in the unit of the file's heights: below the top of a tree, and on
            average below the points of a block.
        height: Height of its highest point above the ground, in meters.
        area: Area of its crown or roof from above in square meters, without courtyards.
        points: How many points it has.
        score: Mean of its points' scores, 0 to 1; NaN where they have none.
        outline: (corners + 1, 2) float64 map coordinates of the ring around its largest piece, counterclockwise, the
            first again at the end; None if it has none.
    """

    number: int
    label: str
    code: int
    x: float
    y: float
    ground: float
    height: float
    area: float
    points: int
    score: float
    outline: np.ndarray | None = None


def things_of(
    points: np.ndarray,
    heights: np.ndarray,
    numbers: np.ndarray,
    scores: np.ndarray | None,
    codes: np.ndarray,
    names: Mapping[int, str],
    *,
    blocks: Collection[int] = BLOCKS,
    meters_per_unit: float = 1.0,
    meters_per_height: float | None = None,
    cell: float | None = None,
) -> list[Thing]:
    """Collect the things of a scan, in the order of their numbers.

    Args:
        points: (points, 3) map coordinates, z up.
        heights: (points,) heights above the ground in meters.
        numbers: (points,) number of each point's thing, 0 for none.
        scores: (points,) scores of the points, or None.
        codes: (points,) codes of the points' classes; the most frequent one is that of the thing.
        names: Code -> name of the class. Others are named by their code.
        blocks: Codes of the classes whose things are told by their centroid.
        meters_per_unit: Length of a unit of x and y in meters.
        meters_per_height: Length of a unit of z in meters; by default that of x and y.
        cell: Width of the cells of outlines in meters, see `outlines_of`; by default half a meter, or two spacings of
            the points if these are farther apart.
    """
    if meters_per_height is None:
        meters_per_height = meters_per_unit
    # One thing after the other, so that each is a range
    order = np.argsort(numbers, kind="stable")
    order = order[np.searchsorted(numbers[order], 1) :]
    if not len(order):
        return []
    of_point = numbers[order]
    starts = np.flatnonzero(np.concatenate([[True], of_point[1:] != of_point[:-1]]))
    counts = np.diff(np.append(starts, len(order)))
    xyz = points[order]
    above = heights[order].astype(np.float64)

    highest = np.maximum.reduceat(above, starts)
    is_top = above == np.repeat(highest, counts)
    tops = np.minimum.reduceat(np.where(is_top, np.arange(len(order)), len(order)), starts)
    ground = xyz[:, 2] - above / meters_per_height
    thing_codes = _most_frequent(codes[order], counts)
    is_block = np.isin(thing_codes, list(blocks))
    # Sums of differences, as map coordinates have no digits to spare
    origin = xyz[0]
    centers = np.add.reduceat(xyz - origin, starts, axis=0) / counts[:, None] + origin
    places = np.where(is_block[:, None], centers, xyz[tops])
    base = ground[0]
    means = np.add.reduceat(ground - base, starts) / counts + base
    grounds = np.where(is_block, means, ground[tops])
    thing_scores = np.full(len(starts), np.nan)
    if scores is not None:
        thing_scores = np.add.reduceat(scores[order].astype(np.float64), starts) / counts

    if cell is None:
        cell = max(_LEAST_CELL, _SPACINGS * spacing_of((xyz - origin) * meters_per_unit))
    outlines = outlines_of(xyz[:, :2], counts, cell / meters_per_unit)
    return [
        Thing(
            number=int(of_point[starts[at]]),
            label=names.get(code, str(code)),
            code=code,
            x=float(places[at, 0]),
            y=float(places[at, 1]),
            ground=float(grounds[at]),
            height=float(highest[at]),
            area=outlines[at].area * meters_per_unit**2,
            points=int(counts[at]),
            score=float(thing_scores[at]),
            outline=outlines[at].ring,
        )
        for at, code in enumerate(thing_codes.tolist())
    ]


def _most_frequent(codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the most frequent code of each thing, the lowest of several; codes (points,) thing by thing."""
    present, place = np.unique(codes, return_inverse=True)
    thing = np.repeat(np.arange(len(counts)), counts)
    votes = np.bincount(thing * len(present) + place.reshape(-1), minlength=len(counts) * len(present))
    return present[votes.reshape(len(counts), -1).argmax(axis=1)]


@dataclass(frozen=True)
class Outline:
    """The area that a thing covers from above.

    Attributes:
        ring: (corners + 1, 2) float64 coordinates around its largest piece, counterclockwise, the first again at the
            end.
        area: Area of all its pieces without their holes, in squared units of the coordinates.
    """

    ring: np.ndarray
    area: float


def outlines_of(xy: np.ndarray, counts: np.ndarray, cell: float) -> list[Outline]:
    """Find outlines of things by the square cells that have points of theirs.

    Gaps of up to two cells are closed. As a cell at the edge is filled only in part, the outline runs inside of its
    cells, so far that areas are right on average. It is simplified by at most half a cell. The outlines of neighbors
    overlap only where their points do, which convex hulls do not guarantee.

    Args:
        xy: (points, 2) coordinates, thing by thing.
        counts: (things,) how many points each has, 1 or more.
        cell: Width of the cells, in the unit of the coordinates; two spacings of the points, or more.
    """
    cells = np.floor(xy / cell).astype(np.int64)
    ends = np.cumsum(counts)
    return [
        _outline(cells[end - count : end], cell) for end, count in zip(ends.tolist(), counts.tolist(), strict=True)
    ]


def _outline(cells: np.ndarray, cell: float) -> Outline:
    """Return the outline of one thing by the cells (points, 2) of its points."""
    # A room for the closing around it
    corner = cells.min(axis=0) - 2
    shape = cells.max(axis=0) - corner + 3
    while np.prod(shape) > _MOST_CELLS:
        cells = cells // 2
        cell *= 2
        corner = cells.min(axis=0) - 2
        shape = cells.max(axis=0) - corner + 3
    is_filled = np.zeros(shape, bool)
    is_filled[tuple((cells - corner).T)] = True
    # Gaps are closed: what grows by a cell to all sides, and shrinks again. Outermost cells stay empty.
    is_filled = ~_grown(~_grown(is_filled))
    # Parts that are one cell wide would have no inside.
    is_filled = _without_strips(is_filled)
    inset = _inset(len(cells) / np.count_nonzero(is_filled))
    rings = [corners + inset * inward for corners, inward in _rings(is_filled)]
    # Holes run clockwise, and their areas are negative.
    areas = [_area(ring) for ring in rings]
    largest = int(np.argmax(areas))
    ring = _simplified(_without_steps(rings[largest]), _TOLERANCE)
    # Corners that are cut off count in small things: the area stays.
    center = ring.mean(axis=0)
    ring = center + (ring - center) * np.sqrt(areas[largest] / _area(ring))
    return Outline((np.concatenate([ring, ring[:1]]) + corner) * cell, float(sum(areas)) * cell**2)


def _grown(is_filled: np.ndarray) -> np.ndarray:
    """Fill the eight neighbors of filled cells (columns, rows), too."""
    # By slices, which for the small grids of trees are ten times faster than ndimage
    wide = is_filled.copy()
    wide[1:] |= is_filled[:-1]
    wide[:-1] |= is_filled[1:]
    grown = wide.copy()
    grown[:, 1:] |= wide[:, :-1]
    grown[:, :-1] |= wide[:, 1:]
    return grown


def _without_strips(is_filled: np.ndarray) -> np.ndarray:
    """Keep the cells (columns, rows) of filled squares of two by two; all cells where there is no such square."""
    squares = is_filled[:-1, :-1] & is_filled[1:, :-1] & is_filled[:-1, 1:] & is_filled[1:, 1:]
    if not squares.any():
        return is_filled
    kept = np.zeros_like(is_filled)
    kept[:-1, :-1] |= squares
    kept[1:, :-1] |= squares
    kept[:-1, 1:] |= squares
    kept[1:, 1:] |= squares
    return kept


def _inset(density: float) -> float:
    """Return how far inside of its cells, in cells, a thing ends that has so many points in a cell.

    A cell at its edge, which it covers by a share that is anything between 0 and 1, has one of its points with the
    probability 1 - exp(-share * density): more often than the share.
    """
    return min(_MOST_INSET, max(_LEAST_INSET, 0.5 - (1 - np.exp(-density)) / density))


def _rings(is_filled: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Trace the borders of filled cells (columns along x, rows along y), whose outermost cells are empty.

    Cells that touch at a corner only are apart. Outer rings run counterclockwise, those of holes clockwise.

    Returns:
        For each ring its corners (corners, 2), and the signs (corners, 2) of the way inward from each.
    """
    empty = ~is_filled
    # (4, columns + 1, rows + 1): whether an edge starts at this corner of cells, by its direction
    starts = np.zeros((4, is_filled.shape[0] + 1, is_filled.shape[1] + 1), bool)
    starts[0, :-1, 1:-1] = is_filled[:, 1:] & empty[:, :-1]
    starts[1, 1:-1, :-1] = is_filled[:-1] & empty[1:]
    starts[2, 1:, 1:-1] = is_filled[:, :-1] & empty[:, 1:]
    starts[3, 1:-1, 1:] = is_filled[1:] & empty[:-1]
    direction, x, y = np.nonzero(starts)
    end_x = x + _STEPS[direction, 0]
    end_y = y + _STEPS[direction, 1]
    # To the left first: at a corner where two cells touch, the edge stays at its cell.
    left = (direction + 1) % 4
    right = (direction + 3) % 4
    following = np.where(starts[direction, end_x, end_y], direction, right)
    following = np.where(starts[left, end_x, end_y], left, following)
    number = np.full(starts.shape, -1)
    number[direction, x, y] = np.arange(len(direction))
    next_edge = number[following, end_x, end_y].tolist()

    rings = []
    is_done = [False] * len(next_edge)
    for first in range(len(next_edge)):
        if is_done[first]:
            continue
        edges = []
        edge = first
        while not is_done[edge]:
            is_done[edge] = True
            edges.append(edge)
            edge = next_edge[edge]
        ways = direction[edges]
        ways_before = np.concatenate([ways[-1:], ways[:-1]])
        turns = ways != ways_before
        corners = np.array(edges)[turns]
        inward = _INWARD[ways[turns]] + _INWARD[ways_before[turns]]
        rings.append((np.stack([x[corners], y[corners]], axis=1), inward))
    return rings


def _area(ring: np.ndarray) -> float:
    """Return the area inside of a ring (corners, 2), negative if it runs clockwise."""
    # As a fan of triangles from the first corner
    x, y = (ring[1:] - ring[0]).T
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2


def _without_steps(ring: np.ndarray) -> np.ndarray:
    """Return a ring (corners, 2) along cells with the middle of each step in place of its corners."""
    if len(ring) == 4:
        return ring
    following = np.concatenate([ring[1:], ring[:1]])
    # Of the edge that starts at a corner; insets change the lengths by less than a cell.
    is_long = np.abs(following - ring).sum(axis=1) > _LONG - 1
    keeps_corner = is_long & np.concatenate([is_long[-1:], is_long[:-1]])
    # (corners, 2, 2): each corner, and the middle of the edge behind it
    both = np.stack([ring, (ring + following) / 2], axis=1)
    is_kept = np.stack([keeps_corner, np.ones(len(ring), bool)], axis=1)
    return both[is_kept]


def _simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Leave out corners (corners, 2) of a ring that are within the tolerance of what remains (Douglas and Peucker)."""
    if len(ring) <= 4:
        return ring
    # Two corners far from each other, between which there are two lines
    first = int(np.argmax(((ring - ring.mean(axis=0)) ** 2).sum(axis=1)))
    line = np.concatenate([ring[first:], ring[: first + 1]])
    second = int(np.argmax(((line - line[0]) ** 2).sum(axis=1)))
    kept = np.array([0, second, len(line) - 1])
    while True:
        # All lines between corners that are kept at once: rings are short, and there are thousands of them.
        starts = kept[:-1]
        between = np.repeat(np.arange(len(starts)), np.diff(kept))
        along = line[kept[1:]] - line[starts]
        away = line[:-1] - line[starts][between]
        across = along / np.hypot(along[:, 0], along[:, 1])[:, None]
        across = across[between]
        distances = np.abs(away[:, 0] * across[:, 1] - away[:, 1] * across[:, 0])
        farthest = np.maximum.reduceat(distances, starts)
        farthest[farthest <= tolerance] = np.inf
        new = np.flatnonzero(distances == farthest[between])
        if not len(new):
            break
        kept = np.sort(np.concatenate([kept, new]))
    return line[kept[:-1]] if len(kept) > 3 else ring
