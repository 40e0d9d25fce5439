"""Outlines of things seen from above, on one grid in which each cell belongs to one thing.

points ─► cells with counts ─► owner of each cell ─► gaps closed ─► borders traced ─► borders simplified

A border between two things is one line for both, so that outlines do not overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hf_any3d.tasks.steps import return_free_memory

_HALF = 1 << 30  # cells from the origin of the map along an axis, at most: two numbers fit into 63 bits
_ROW = 2 * _HALF
_MOST_CELLS = 1 << 22  # of the rectangle around a thing
# Of a cell: at 0, rings would touch themselves where cells do, and at half a cell, parts of one cell would vanish.
_LEAST_INSET, _MOST_INSET = 0.05, 0.4
_LONG = 2  # cells of an edge from which on it is no step of a slanted one
_TOLERANCE = 0.5  # of a cell, by which a simplified outline may differ
# Directions of the edges of cells in counterclockwise order, along x and y: along +x, +y, -x, -y.
_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
# What an edge encloses is on its left.
_INWARD = _STEPS[[1, 2, 3, 0]]
# From the start of an edge to the cell on its right, by direction.
_RIGHT = np.array([[0, -1], [0, 0], [-1, 0], [-1, -1]])


@dataclass(frozen=True)
class Outline:
    """The area that a thing covers from above.

    Attributes:
        rings: Of its largest piece: the outer ring, counterclockwise, then those of its holes, clockwise. Each is
            (corners + 1, 2) float64 coordinates, the first again at the end. Empty if other things cover it.
        area: Area of all its pieces without their holes, in squared units of the coordinates.
    """

    rings: tuple[np.ndarray, ...]
    area: float


class OutlineCells:
    """Cells of a grid with the number of points that each thing has in them.

    Args:
        cell: Width of the cells in the unit of the coordinates; two spacings of the points, or more.
    """

    def __init__(self, cell: float):
        self.cell = cell
        # (cells, numbers of things, numbers of points), each (pairs,)
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, xy: np.ndarray, numbers: np.ndarray) -> None:
        """Add points (points, 2) of things with numbers (points,)."""
        places = np.floor(xy / self.cell).astype(np.int64) + _HALF
        keys = places[:, 0] * _ROW + places[:, 1]
        self._parts.append(_counted(keys, numbers, np.ones(len(keys), np.int32)))

    def renumber(self, new_numbers: Callable[[np.ndarray], np.ndarray]) -> None:
        """Give things the numbers that a function returns for theirs; those that get 0 are left out."""
        for place, (keys, numbers, counts) in enumerate(self._parts):
            new = new_numbers(numbers)
            kept = new != 0
            self._parts[place] = keys[kept], new[kept].astype(np.int32), counts[kept]

    def outlines(self) -> dict[int, Outline]:
        """Return the outline of each thing by its number; the points that were added are forgotten.

        A cell belongs to the thing with the most points in it. Gaps of up to two cells are closed where no other
        thing is. As a cell at the edge is filled only in part, an outline runs inside of its cells where nothing else
        begins, so far that areas are right on average. It is simplified by at most half a cell.
        """
        if not self._parts:
            return {}
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        self._parts = []
        return_free_memory()
        keys, numbers, counts = _counted(*columns)
        del columns
        present = np.unique(numbers)
        thing = np.searchsorted(present, numbers).astype(np.int32)
        del numbers
        cells_of_thing = np.bincount(thing, minlength=len(present))
        # Most points first; between equals, the lowest number
        owned = _first_of_each(keys, np.lexsort((thing, -counts, keys)))
        keys, thing, counts = keys[owned], thing[owned], counts[owned]
        del owned
        closed = list(_closed(keys, thing, len(present)))
        return_free_memory()
        keys, thing, counts = _with_gaps_closed(keys, thing, counts, closed)
        del closed
        return_free_memory()
        grid = _Grid(keys, thing, counts, len(present), self.cell)
        found = {}
        for place, number in enumerate(present.tolist()):
            # What others cover has no outline, and the area of all its cells.
            covered = Outline((), float(cells_of_thing[place]) * self.cell**2)
            found[number] = grid.outline(place) or covered
        return found


def _counted(keys: np.ndarray, numbers: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each pair of a cell and a number once, sorted, with the sum of its counts."""
    # One order of both, as millions of cells are looked at: unique values of each would be three sorted copies.
    order = np.lexsort((numbers, keys))
    keys, numbers, counts = keys[order], numbers[order], counts[order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = (keys[1:] != keys[:-1]) | (numbers[1:] != numbers[:-1])
    starts = np.flatnonzero(is_first)
    sums = np.add.reduceat(counts, starts) if len(starts) else counts
    return keys[starts], numbers[starts], sums.astype(np.int32)


def _first_of_each(keys: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the first place of each key, by an order in which equal keys are neighbors."""
    ordered = keys[order]
    return order[np.append(True, ordered[1:] != ordered[:-1])] if len(order) else order


def _places(keys: np.ndarray) -> np.ndarray:
    """Return columns and rows (cells, 2) of cells."""
    return np.stack(np.divmod(keys, _ROW), axis=1)


def _groups(thing: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Yield the places of each thing's cells, in their order."""
    order = np.argsort(thing, kind="stable")
    ends = np.searchsorted(thing[order], np.arange(count + 1))
    for number in range(count):
        yield order[ends[number] : ends[number + 1]]


def _window(places: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return filled cells (columns, rows) with two empty ones around, and the place of the first; None if too wide."""
    corner = places.min(axis=0) - 2
    shape = places.max(axis=0) - corner + 3
    if np.prod(shape) > _MOST_CELLS:
        return None
    is_filled = np.zeros(shape, bool)
    is_filled[tuple((places - corner).T)] = True
    return is_filled, corner


def _closed(keys: np.ndarray, thing: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Yield for each thing the cells by which its gaps are closed: it grows by a cell, and shrinks again."""
    for rows in _groups(thing, count):
        window = _window(_places(keys[rows])) if len(rows) else None
        if window is None:
            yield np.zeros(0, np.int64)
            continue
        is_filled, corner = window
        # Outermost cells stay empty.
        columns, rows = np.nonzero(~_grown(~_grown(is_filled)) & ~is_filled)
        yield (columns + corner[0]) * _ROW + rows + corner[1]


def _with_gaps_closed(
    keys: np.ndarray, thing: np.ndarray, counts: np.ndarray, closed: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return cells, sorted, with their things and points, and with gaps (things, cells) that no other thing has."""
    lengths = [len(cells) for cells in closed]
    all_keys = np.concatenate([keys, *closed])
    all_things = np.concatenate([thing, np.repeat(np.arange(len(closed), dtype=thing.dtype), lengths)])
    all_counts = np.concatenate([counts, np.zeros(sum(lengths), counts.dtype)])
    kept = _first_of_each(all_keys, np.lexsort((all_things, all_counts == 0, all_keys)))
    return all_keys[kept], all_things[kept], all_counts[kept]


class _Grid:
    """Owners of cells, of which outlines are traced.

    Args:
        keys: (cells,) sorted.
        thing: (cells,) place of the thing that has each cell.
        counts: (cells,) points of that thing.
        num_things: How many things there are.
        cell: Width of a cell.
    """

    def __init__(self, keys: np.ndarray, thing: np.ndarray, counts: np.ndarray, num_things: int, cell: float):
        self.cell = cell
        self._counts = counts
        self._cells = list(_groups(thing, num_things))
        # Parts that are one cell wide would have no inside.
        is_kept = np.zeros(len(keys), bool)
        for rows in self._cells:
            if len(rows):
                is_kept[rows] = _is_in_square(_places(keys[rows]))
        self._keys = keys
        self._thing = np.where(is_kept, thing, np.int32(-1))

    def outline(self, thing: int) -> Outline | None:
        """Return the outline of a thing, None if it has no cell."""
        rows = self._cells[thing]
        points = self._counts[rows].sum()
        rows = rows[self._thing[rows] == thing]
        if not len(rows):
            return None
        inset = _inset(points / len(rows))
        places = _places(self._keys[rows])
        window = _window(places)
        if window is None:
            return _wide_outline(places, self.cell)
        is_filled, corner = window
        rings = _rings(is_filled, self._others(is_filled, corner, thing))
        return _outline(rings, is_filled, inset, corner - _HALF, self.cell)

    def _others(self, is_filled: np.ndarray, corner: np.ndarray, thing: int) -> np.ndarray:
        """Return the things of the cells around a thing (columns, rows), -1 for none."""
        found = np.full(is_filled.shape, -1)
        found[is_filled] = thing
        columns, rows = np.nonzero(_grown(is_filled) & ~is_filled)
        keys = (columns + corner[0]) * _ROW + rows + corner[1]
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        found[columns, rows] = np.where(self._keys[at] == keys, self._thing[at], -1)
        return found


def _wide_outline(places: np.ndarray, cell: float) -> Outline:
    """Return the outline of a thing that is too wide for cells so small, by wider ones and without its neighbors."""
    area = float(len(places)) * cell**2
    places = places - _HALF
    while (window := _window(places)) is None:
        places = places // 2
        cell *= 2
    is_filled, corner = window
    rings = _rings(is_filled, np.where(is_filled, 0, -1))
    return Outline(_outline(rings, is_filled, _LEAST_INSET, corner, cell).rings, area)


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


def _is_in_square(places: np.ndarray) -> np.ndarray:
    """Return which cells (cells, 2) are in filled squares of two by two; all where there is no such square."""
    window = _window(places)
    if window is None:
        return np.ones(len(places), bool)
    is_filled, corner = window
    squares = is_filled[:-1, :-1] & is_filled[1:, :-1] & is_filled[:-1, 1:] & is_filled[1:, 1:]
    if not squares.any():
        return np.ones(len(places), bool)
    kept = np.zeros_like(is_filled)
    kept[:-1, :-1] |= squares
    kept[1:, :-1] |= squares
    kept[:-1, 1:] |= squares
    kept[1:, 1:] |= squares
    return kept[tuple((places - corner).T)]


def _inset(density: float) -> float:
    """Return how far inside of its cells, in cells, a thing ends that has so many points in a cell.

    A cell at its edge, which it covers by a share that is anything between 0 and 1, has one of its points with the
    probability 1 - exp(-share * density): more often than the share.
    """
    return min(_MOST_INSET, max(_LEAST_INSET, 0.5 - (1 - np.exp(-density)) / density))


@dataclass(frozen=True)
class _Ring:
    """Border of filled cells.

    Attributes:
        corners: (corners, 2) where it turns, and where a third border begins.
        inward: (corners, 2) signs of the way inward from each; 0 along a straight border.
        is_node: (corners,) where a third border begins.
        is_shared: (corners,) whether another thing lies across the edge that starts there.
        cell: Column and row of a filled cell beside it.
    """

    corners: np.ndarray
    inward: np.ndarray
    is_node: np.ndarray
    is_shared: np.ndarray
    cell: tuple[int, int]


def _rings(is_filled: np.ndarray, things: np.ndarray) -> list[_Ring]:
    """Trace the borders of filled cells (columns along x, rows along y), whose outermost cells are empty.

    Cells that touch at a corner only are apart. Outer rings run counterclockwise, those of holes clockwise.

    Args:
        is_filled: (columns, rows) cells of the thing.
        things: (columns, rows) thing of each cell beside it, -1 for none.
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
    across = things[x + _RIGHT[direction, 0], y + _RIGHT[direction, 1]]
    is_node = _num_borders(things, x, y) > 2

    rings = []
    is_done = [False] * len(next_edge)
    for first in range(len(next_edge)):
        if is_done[first]:
            continue
        loop = []
        edge = first
        while not is_done[edge]:
            is_done[edge] = True
            loop.append(edge)
            edge = next_edge[edge]
        edges = np.array(loop)
        ways = direction[edges]
        ways_before = np.concatenate([ways[-1:], ways[:-1]])
        is_kept = (ways != ways_before) | is_node[edges]
        edges = edges[is_kept]
        inward = np.where(
            (ways != ways_before)[is_kept, None], _INWARD[ways[is_kept]] + _INWARD[ways_before[is_kept]], 0
        )
        # The cell on the left of the first edge
        cell = _INWARD[direction[first]] + _RIGHT[direction[first]] + [x[first], y[first]]
        corners = np.stack([x[edges], y[edges]], axis=1)
        rings.append(_Ring(corners, inward, is_node[edges], across[edges] >= 0, (int(cell[0]), int(cell[1]))))
    return rings


def _num_borders(things: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how many of the four edges at corners of cells are borders of things, (corners,)."""
    around = [things[x - 1, y - 1], things[x, y - 1], things[x, y], things[x - 1, y]]
    found = np.zeros(len(x), int)
    for one, other in zip(around, [*around[1:], around[0]], strict=True):
        found += one != other
    return found


def _outline(rings: list[_Ring], is_filled: np.ndarray, inset: float, corner: np.ndarray, cell: float) -> Outline:
    """Return the outline of a thing by its borders, on a grid whose first cell is at `corner`."""
    moved = [_inside(ring, inset) for ring in rings]
    # Holes run clockwise, and their areas are negative.
    areas = [_area(line) for line in moved]
    largest = int(np.argmax(areas))
    own = [largest]
    if len(rings) > 1:
        pieces = np.zeros(is_filled.shape, np.int32)
        ndimage.label(is_filled, output=pieces)
        own += [
            at for at, ring in enumerate(rings) if areas[at] < 0 and pieces[ring.cell] == pieces[rings[largest].cell]
        ]
    shown = []
    for at in own:
        line, offsets, is_node = _without_steps(rings[at], moved[at])
        kept = _simplified(line, is_node, _TOLERANCE)
        line = line[kept] + offsets[kept]
        if not rings[at].is_shared.any():
            # Corners that are cut off count in small things: the area stays.
            center = line.mean(axis=0)
            line = center + (line - center) * np.sqrt(areas[at] / _area(line))
        shown.append((np.concatenate([line, line[:1]]) + corner) * cell)
    return Outline(tuple(shown), float(sum(areas)) * cell**2)


def _inside(ring: _Ring, inset: float) -> np.ndarray:
    """Return the corners (corners, 2) of a ring moved inward, but where another thing begins and at nodes."""
    is_moved = ~ring.is_shared & ~ring.is_node
    return ring.corners + inset * is_moved[:, None] * ring.inward


def _area(ring: np.ndarray) -> float:
    """Return the area inside of a ring (corners, 2), negative if it runs clockwise."""
    # As a fan of triangles from the first corner
    x, y = (ring[1:] - ring[0]).T
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2


def _without_steps(ring: _Ring, line: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put the middle of each step of a ring in place of its corners; `line` (corners, 2) are these, moved inward.

    Returns:
        The new corners (corners, 2), how far they are moved when all is done (corners, 2), and which of them are nodes
        (corners,).
    """
    # A ring must not touch itself where cells of a thing touch at a corner.
    offsets = _LEAST_INSET * ring.is_node[:, None] * ring.inward
    if len(line) == 4 and not ring.is_shared.any():
        return line, offsets, ring.is_node
    is_long = np.abs(np.roll(ring.corners, -1, axis=0) - ring.corners).sum(axis=1) >= _LONG
    keeps_corner = (is_long & np.roll(is_long, 1)) | ring.is_node
    # (corners, 2, 2): each corner, and the middle of the edge behind it
    both = np.stack([line, (line + np.roll(line, -1, axis=0)) / 2], axis=1)
    none = np.zeros(len(line), bool)
    is_kept = np.stack([keeps_corner, ~none], axis=1)
    is_node = np.stack([ring.is_node, none], axis=1)
    offsets = np.stack([offsets, np.zeros_like(offsets)], axis=1)
    return both[is_kept], offsets[is_kept], is_node[is_kept]


def _simplified(ring: np.ndarray, is_node: np.ndarray, tolerance: float) -> np.ndarray:
    """Return which corners (corners, 2) of a ring are farther than the tolerance from a line between those returned.

    This is the algorithm of Douglas and Peucker. Nodes (corners,) are always among them. The same border is simplified
    to the same line in both directions.
    """
    count = len(ring)
    if count <= 4:
        return np.arange(count)
    first = int(np.argmax(is_node)) if is_node.any() else int(np.lexsort(ring.T)[0])
    order = (first + np.arange(count + 1)) % count
    line = ring[order]
    kept = np.append(np.flatnonzero(is_node[order[:-1]]), count)
    if len(kept) <= 2:
        # Two corners far from each other, between which there are two lines
        away = ((line - line[0]) ** 2).sum(axis=1)
        farthest = np.flatnonzero(away == away.max())
        kept = np.array([0, farthest[np.lexsort(line[farthest].T)[0]], count])
    while True:
        # All lines between corners that are kept at once: rings are short, and there are thousands of them.
        starts = kept[:-1]
        between = np.repeat(np.arange(len(starts)), np.diff(kept))
        along = (line[kept[1:]] - line[starts])[between]
        away = line[:-1] - line[starts][between]
        # Corners of shared borders are halves of cells, whose products are exact.
        products = np.abs(away[:, 0] * along[:, 1] - away[:, 1] * along[:, 0])
        lengths = np.hypot(along[:, 0], along[:, 1])
        # A border may come back to the node where it began.
        distances = np.where(
            lengths > 0, products / np.where(lengths > 0, lengths, 1), np.hypot(away[:, 0], away[:, 1])
        )
        farthest = np.maximum.reduceat(distances, starts)
        farthest[farthest <= tolerance] = np.inf
        new = np.flatnonzero(distances == farthest[between])
        if not len(new):
            break
        kept = np.sort(np.concatenate([kept, new]))
    return order[kept[:-1]] if len(kept) > 3 else np.arange(count)
