"""Numbers for single trees in an airborne scan, without labels and without settings.

Parts of the canopy at eleven smoothings are proposals for crowns (`crowns.py`); a likeness says how much each is like
the crown of one tree (`likeness.py`); of all ways to divide the canopy into parts, the one with the highest likeness,
weighted by area, is taken. So each tree is found at the smoothing that suits it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from hf_any3d.tasks.inventory.crowns import SIGMAS, Canopy, Parts, canopy_of, parts_of
from hf_any3d.tasks.inventory.likeness import packaged_likeness

LEAST_POINTS = 8
"""Points of the smallest tree; what is smaller is part of a neighbor, or nothing."""
_REACH = 1.5  # meters from a point of no tree to one of a tree that takes it


class TreeNumbers(NamedTuple):
    """Trees and what they are worth.

    Attributes:
        numbers: (points,) int32, the number of the tree from 1; 0 for none.
        scores: (trees,) float32 in 0 … 1, how much each is like a tree.
        tops: (trees,) int64, the highest point of each.
        smoothing: Meters: the given one, or the median of those at which the trees were found.
    """

    numbers: np.ndarray
    scores: np.ndarray
    tops: np.ndarray
    smoothing: float


def number_trees(
    points: np.ndarray,
    heights: np.ndarray,
    *,
    smoothing: float | None = None,
    likeness: Callable[[np.ndarray], np.ndarray] | None = None,
) -> TreeNumbers:
    """Give each tree a number.

    Args:
        points: (points, 3) float64 in meters, z up; only those of trees.
        heights: (points,) above ground, in meters.
        smoothing: Meters. If given, all trees are found at this smoothing; otherwise each at its own.
        likeness: Returns (parts,) numbers in 0 … 1 for the (parts, columns) numbers of `crowns.parts_of`; the packaged
            one if not given.

    Raises:
        ValueError: Shapes do not fit, or `smoothing` is not positive.
    """
    points = np.asarray(points, dtype=np.float64)
    heights = np.asarray(heights, dtype=np.float32)
    if points.ndim != 2 or points.shape[1] != 3 or heights.shape != points.shape[:1]:
        raise ValueError(f"points {points.shape}, heights {heights.shape}: expected (points, 3) and (points,)")
    if smoothing is not None and not smoothing > 0:
        raise ValueError(f"smoothing={smoothing}: expected meters above 0")
    if len(points) < LEAST_POINTS:
        nothing = np.zeros(0)
        numbers = np.zeros(len(points), dtype=np.int32)
        return TreeNumbers(numbers, nothing.astype(np.float32), nothing.astype(np.int64), smoothing or 0.0)

    canopy = canopy_of(points, heights)
    parts = parts_of(canopy)
    score = np.asarray((likeness or packaged_likeness())(parts.numbers), dtype=np.float64)
    if smoothing is None:
        chosen = choose_parts(parts, score)
    else:
        chosen = parts_at(parts, int(np.abs(np.log(SIGMAS / smoothing)).argmin()))
    part = chosen[_finest_of_points(canopy, parts)]
    return _numbered(points, heights, part, score, parts, smoothing)


def choose_parts(parts: Parts, score: np.ndarray) -> np.ndarray:
    """Return for each part which one it belongs to in the division of the highest likeness, weighted by area."""
    worth = np.maximum(score, 1e-3) * parts.areas
    inside = np.zeros(len(worth))  # of the best division of what is inside of a part
    whole = np.ones(len(worth), dtype=bool)
    levels = [np.flatnonzero(parts.births == level) for level in range(len(SIGMAS))]
    for level in levels:
        divided = inside[level] > worth[level]
        whole[level] = ~divided
        best = np.where(divided, inside[level], worth[level])
        up = parts.parents[level]
        np.add.at(inside, up[up >= 0], best[up >= 0])
    chosen = np.full(len(worth), -1)
    for level in levels[::-1]:
        up = parts.parents[level]
        above = np.where(up >= 0, chosen[np.maximum(up, 0)], -1)
        chosen[level] = np.where(above >= 0, above, np.where(whole[level], level, -1))
    return chosen


def parts_at(parts: Parts, level: int) -> np.ndarray:
    """Return for each part which one it belongs to at a smoothing, given by its index in `SIGMAS`."""
    chosen = np.arange(len(parts.parents))
    for here in range(level, -1, -1):
        mine = np.flatnonzero(parts.births == here)
        up = parts.parents[mine]
        joins = (up >= 0) & (parts.births[np.maximum(up, 0)] <= level)
        chosen[mine[joins]] = chosen[up[joins]]
    return chosen


def _finest_of_points(canopy: Canopy, parts: Parts) -> np.ndarray:
    """Return the smallest part of each point."""
    place = np.cumsum(canopy.trees.ravel()) - 1
    return parts.finest[place[canopy.cells]]


def _numbered(
    points: np.ndarray,
    heights: np.ndarray,
    part: np.ndarray,
    score: np.ndarray,
    parts: Parts,
    smoothing: float | None,
) -> TreeNumbers:
    """Give numbers to the parts (points,) that have enough points, from the highest tree to the lowest."""
    found, which, count = np.unique(part, return_inverse=True, return_counts=True)
    large = count >= LEAST_POINTS
    if not large.all() and large.any():
        # What is too small for a tree is a branch of the one next to it.
        inside = large[which]
        distance, nearest = cKDTree(points[inside]).query(points[~inside], distance_upper_bound=_REACH)
        near = np.isfinite(distance)
        which = which.copy()
        which[np.flatnonzero(~inside)[near]] = which[inside][nearest[near]]
    order = np.lexsort((points[:, 1], points[:, 0], -heights, which))
    first = order[np.append(True, np.diff(which[order]) != 0)]
    first = first[large[which[first]]]
    first = first[np.argsort(-heights[first], kind="stable")]
    number_of = np.zeros(len(found), dtype=np.int32)
    number_of[which[first]] = np.arange(1, len(first) + 1)
    chosen = found[which[first]]
    if smoothing is None and len(chosen):
        smoothing = float(np.median(SIGMAS[parts.births[chosen]]))
    return TreeNumbers(number_of[which], score[chosen].astype(np.float32), first, smoothing or 0.0)
