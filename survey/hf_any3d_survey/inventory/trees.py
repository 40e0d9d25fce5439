"""Numbers for single trees in an airborne scan, without labels and without settings.

Parts of the canopy at eleven smoothings are proposals for crowns (`crowns.py`); a likeness says how much each is like
the crown of one tree (`likeness.py`), and what all parts of one smoothing together say for it: how well it suits the
place. Of all ways to divide the canopy into parts, the one with the highest likeness is taken, in which parts of a
smoothing that suits the place count for more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from hf_any3d_survey.inventory.agreement import compare_trees
from hf_any3d_survey.inventory.crowns import SIGMAS, Canopy, Parts, canopy_of, parts_of
from hf_any3d_survey.inventory.likeness import Likeness, packaged_likeness

LEAST_POINTS = 8
"""Points of the smallest tree; what has fewer belongs to a neighbor, or to no tree."""
EVENNESS = 150.0
"""How much one smoothing is to suit a place; 0 takes each part by itself."""
PLACE_POWER = 0.75
"""Parts of a place count by their areas to this power: by area, one wide part hides many wrong small ones; by number,
one branch counts as a tree."""
_REACH = 1.5  # meters from a point of no tree to one of a tree that takes it
_PLACE = 14.0  # meters around a part in which smoothings are compared
_PLACE_CELL = 4.0  # meters
_LEAST = 1e-3  # the least likeness
_POWER = 0.9


class TreeNumbers(NamedTuple):
    """Numbered trees, the highest first.

    Attributes:
        numbers: (points,) int32, the number of the tree from 1; 0 for none.
        scores: (trees,) float32 in 0 … 1, how much each is like a tree.
        tops: (trees,) int64, the highest point of each.
        smoothing: Meters: the given one, or the median of those at which the trees were found; 0 if there are none.
    """

    numbers: np.ndarray
    scores: np.ndarray
    tops: np.ndarray
    smoothing: float


class TreeChoice(NamedTuple):
    """Settings that suit trees which someone has numbered; keywords of `number_trees`.

    Attributes:
        smoothing: Meters, or None if each tree is best found at its own.
        evenness: See `number_trees`.
        agreement: Mean intersection over union of the numbered trees with those that are found so.
    """

    smoothing: float | None
    evenness: float
    agreement: float


def number_trees(
    points: np.ndarray,
    heights: np.ndarray,
    *,
    smoothing: float | None = None,
    evenness: float = EVENNESS,
    likeness: Likeness | None = None,
) -> TreeNumbers:
    """Give each tree a number.

    Args:
        points: (points, 3) float64 in meters, z up; only those of trees.
        heights: (points,) above ground, in meters.
        smoothing: Meters. If given, all trees are found at this smoothing; otherwise each at its own.
        evenness: How much crowns within some 20 m are to be found at one smoothing.
        likeness: Judges the proposals, see `crowns.NAMES`; the packaged one if not given.

    Raises:
        ValueError: Shapes do not fit, values are not finite, or `smoothing` is not above 0.
    """
    points, heights = _checked(points, heights)
    if smoothing is not None and not smoothing > 0:
        raise ValueError(f"smoothing={smoothing}: expected meters above 0")
    if len(points) < LEAST_POINTS:
        numbers = np.zeros(len(points), dtype=np.int32)
        return TreeNumbers(numbers, np.zeros(0, np.float32), np.zeros(0, np.int64), smoothing or 0.0)
    canopy = canopy_of(points, heights)
    parts = parts_of(canopy)
    likeness = likeness or packaged_likeness()
    score = likeness(parts.numbers)
    chosen = _chosen(parts, score, likeness.suits(parts.numbers), smoothing, evenness)
    part = chosen[_finest_of_points(canopy, parts)]
    return _numbered(points, heights, part, score, parts, smoothing)


def choose_by(points: np.ndarray, heights: np.ndarray, numbers: np.ndarray) -> TreeChoice:
    """Choose smoothing and evenness that agree best with trees that someone has numbered; twenty are enough.

    Args:
        points: (points, 3) float64 in meters, z up; only those of trees.
        heights: (points,) above ground, in meters.
        numbers: (points,) whole numbers; 0 where nothing is known.

    Raises:
        ValueError: Shapes do not fit, values are not finite, or no tree is numbered.
    """
    points, heights = _checked(points, heights)
    numbers = np.asarray(numbers)
    if numbers.shape != heights.shape:
        raise ValueError(f"numbers {numbers.shape}: expected one for each of {len(points)} points")
    if not (numbers > 0).any():
        raise ValueError("numbers: expected at least one tree with a number above 0")
    canopy = canopy_of(points, heights)
    parts = parts_of(canopy)
    finest = _finest_of_points(canopy, parts)
    score = packaged_likeness()(parts.numbers)
    suits = packaged_likeness().suits(parts.numbers)
    best = TreeChoice(None, EVENNESS, -1.0)
    # The default comes first, and only what agrees better by more than chance replaces it.
    candidates: list[tuple[float | None, float]] = [(None, EVENNESS)]
    candidates += [(None, evenness) for evenness in (0.0, 20.0)]
    candidates += [(float(sigma), EVENNESS) for sigma in SIGMAS]
    for smoothing, evenness in candidates:
        part = _chosen(parts, score, suits, smoothing, evenness)[finest]
        found = _numbered(points, heights, part, score, parts, smoothing)
        agreement = compare_trees(numbers, found.numbers).mean_iou
        if agreement > best.agreement + 0.01:
            best = TreeChoice(smoothing, evenness, agreement)
    return best


def _checked(points: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(points, dtype=np.float64)
    heights = np.asarray(heights, dtype=np.float32)
    if points.ndim != 2 or points.shape[1] != 3 or heights.shape != points.shape[:1]:
        raise ValueError(f"points {points.shape}, heights {heights.shape}: expected (points, 3) and (points,)")
    if not (np.isfinite(points).all() and np.isfinite(heights).all()):
        raise ValueError("points and heights: expected finite numbers, found NaN or infinity")
    return points, heights


def _chosen(
    parts: Parts, score: np.ndarray, suits: np.ndarray, smoothing: float | None, evenness: float
) -> np.ndarray:
    """Return for each part which one it belongs to in the answer, (parts,); `score` and `suits` are a likeness's."""
    if smoothing is not None:
        level = int(np.abs(np.log(SIGMAS / smoothing)).argmin())
        chosen = np.arange(len(parts.parents))
        for here in range(level, -1, -1):
            mine = np.flatnonzero(parts.births == here)
            up = parts.parents[mine]
            joins = (up >= 0) & (parts.births[np.maximum(up, 0)] <= level)
            chosen[mine[joins]] = chosen[up[joins]]
        return chosen
    # Above 0, so that areas decide between parts that are all far behind
    suited = np.exp(np.maximum(evenness * _behind(parts, suits), -600))
    return _best_division(parts, np.maximum(score, _LEAST) * suited * parts.areas**_POWER)


def _behind(parts: Parts, suits: np.ndarray) -> np.ndarray:
    """Return how far the best smoothing of each part is behind the best of all in its place, (parts,), at most 0."""
    row, column = (parts.middles / _PLACE_CELL).astype(np.int64).T
    shape = (int(row.max()) + 1, int(column.max()) + 1)
    weight = parts.areas**PLACE_POWER
    around = np.zeros((len(SIGMAS), len(suits)))
    lives = (parts.births <= np.arange(len(SIGMAS))[:, None]) & (np.arange(len(SIGMAS))[:, None] < parts.deaths)
    for level, there in enumerate(lives):
        sums = []
        for values in (weight[there] * suits[there], weight[there]):
            grid = np.zeros(shape)
            np.add.at(grid, (row[there], column[there]), values)
            sums.append(gaussian_filter(grid, _PLACE / _PLACE_CELL, mode="constant", truncate=2.0)[row, column])
        # Where the parts of a smoothing are far away, it says nothing.
        around[level] = np.where(sums[1] > 1e-9, sums[0] / np.maximum(sums[1], 1e-9), -np.inf)
    return np.where(lives, around, -np.inf).max(axis=0) - around.max(axis=0)


def _best_division(parts: Parts, worth: np.ndarray) -> np.ndarray:
    """Return for each part which one it belongs to in the division of the highest sum of worths, (parts,)."""
    levels = [np.flatnonzero(parts.births == level) for level in range(len(SIGMAS))]
    inside = np.zeros(len(worth))  # of the best division of what is inside of a part
    whole = np.ones(len(worth), dtype=bool)
    for level in levels:
        whole[level] = inside[level] <= worth[level]
        up = parts.parents[level]
        best = np.maximum(inside[level], worth[level])
        np.add.at(inside, up[up >= 0], best[up >= 0])
    chosen = np.full(len(worth), -1)
    for level in levels[::-1]:
        up = parts.parents[level]
        above = np.where(up >= 0, chosen[np.maximum(up, 0)], -1)
        chosen[level] = np.where(above >= 0, above, np.where(whole[level], level, -1))
    return chosen


def _finest_of_points(canopy: Canopy, parts: Parts) -> np.ndarray:
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
    """Turn the part of each point into numbers, the highest tree first."""
    found, which, count = np.unique(part, return_inverse=True, return_counts=True)
    large = count >= LEAST_POINTS
    if large.any() and not large.all():
        # What is too small for a tree is a branch of the one next to it. Nearest points are looked up in order of
        # their places, so that the order of the input does not decide between two that are equally near.
        inside = np.flatnonzero(large[which])
        inside = inside[np.lexsort(points[inside].T)]
        small = np.flatnonzero(~large[which])
        distances, nearest = map(np.asarray, KDTree(points[inside]).query(points[small], distance_upper_bound=_REACH))
        near = np.isfinite(distances)
        which[small[near]] = which[inside[nearest[near]]]
    order = np.lexsort((points[:, 1], points[:, 0], -heights, which))
    first = order[np.append(True, np.diff(which[order]) != 0)]
    first = first[large[which[first]]]
    first = first[np.lexsort((points[first, 1], points[first, 0], -heights[first]))]
    number_of = np.zeros(len(found), dtype=np.int32)
    number_of[which[first]] = np.arange(1, len(first) + 1)
    chosen = found[which[first]]
    if smoothing is None:
        smoothing = float(np.median(SIGMAS[parts.births[chosen]])) if len(chosen) else 0.0
    return TreeNumbers(number_of[which], score[chosen].astype(np.float32), first, smoothing)
