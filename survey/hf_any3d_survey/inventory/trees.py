"""Numbers for single trees in an airborne scan, without labels and without settings.

Parts of the canopy at eleven smoothings are proposals for crowns (`crowns.py`); a likeness says how much each is like
the crown of one tree (`likeness.py`), and what all parts of one smoothing together say for it: how well it suits the
place. Of all ways to divide the canopy into parts, the one with the highest likeness is taken, in which parts of a
smoothing that suits the place count for more, and so do those near the smoothing that suits most forests. Crowns
between whose tops and widths no allometry fits count for less.

The score of a tree is how probable it is that it stands there: by its likeness, and by how much of it other divisions
of the canopy share, among them one that sees half as far around, as if the place had been cut there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from hf_any3d_survey.inventory.agreement import compare_with_each
from hf_any3d_survey.inventory.crowns import NAMES, SIGMAS, Canopy, Parts, canopy_of, parts_of
from hf_any3d_survey.inventory.likeness import Likeness, packaged_likeness

LEAST_POINTS = 8
"""Points of the smallest tree; what has fewer belongs to a neighbor, or to no tree."""
EVENNESS = 30.0
"""How much one smoothing is to suit a place; 0 takes each part by itself."""
PLACE_POWER = 0.75
"""Parts of a place count by their areas to this power: by area, one wide part hides many wrong small ones; by number,
one branch counts as a tree."""
USUAL_SMOOTHING, PRIOR = 0.6, 0.15
"""Meters that suit most forests, and how much a smoothing e times as wide or narrow is behind before anything is
seen."""
WIDTHS = (0.25, 2.0)
"""Shares of the usual width between which crowns are that touch others."""
_TOO_WIDE = 5.0  # per logarithm of what is beyond
_REACH = 1.5  # meters from a point of no tree to one of a tree that takes it
_PLACE = 14.0  # meters around a part in which smoothings are compared
_PLACE_CELL = 4.0  # meters
_LEAST = 1e-3  # the least likeness
_POWER = 0.9
_WIDTH, _OPEN = NAMES.index("width"), NAMES.index("open")
_LEVELS = np.arange(len(SIGMAS))[:, None]


class TreeNumbers(NamedTuple):
    """Numbered trees, the highest first.

    Attributes:
        numbers: (points,) int32, the number of the tree from 1; 0 for none.
        scores: (trees,) float32 in 0 … 1, how probable it is that each is one tree.
        tops: (trees,) int64, the highest point of each.
        smoothing: Meters: the given one, or the median of those at which the trees were found; 0 if there are none.
        recount: How many there would be if the place was cut: with half as much around each that decides.
    """

    numbers: np.ndarray
    scores: np.ndarray
    tops: np.ndarray
    smoothing: float
    recount: int


class TreeChoice(NamedTuple):
    """Settings that suit trees which someone has numbered; keywords of `number_trees`.

    Attributes:
        smoothing: Meters, or None if each tree is best found at its own.
        evenness: See `number_trees`.
        agreement: Mean intersection over union of the numbered trees with those that are found so.
        is_default: Whether nothing was found to be better than the defaults.
    """

    smoothing: float | None
    evenness: float
    agreement: float
    is_default: bool


def number_trees(
    points: np.ndarray,
    heights: np.ndarray,
    *,
    smoothing: float | None = None,
    evenness: float = EVENNESS,
    around: np.ndarray | None = None,
    step: float | None = None,
    likeness: Likeness | None = None,
) -> TreeNumbers:
    """Give each tree a number.

    Args:
        points: (points, 3) float64 in meters, z up; only those of trees.
        heights: (points,) above ground, in meters.
        smoothing: Meters. If given, all trees are found at this smoothing; otherwise each at its own.
        evenness: How much crowns within some 20 m are to be found at one smoothing.
        around: See `canopy_of`.
        step: See `canopy_of`.
        likeness: Judges the proposals, see `crowns.NAMES`; the packaged one if not given.

    Raises:
        ValueError: Shapes do not fit, values are not finite, or `smoothing` is not above 0.
    """
    points, heights = _checked(points, heights)
    if smoothing is not None and not smoothing > 0:
        raise ValueError(f"smoothing={smoothing}: expected meters above 0")
    if len(points) < LEAST_POINTS:
        numbers = np.zeros(len(points), dtype=np.int32)
        return TreeNumbers(numbers, np.zeros(0, np.float32), np.zeros(0, np.int64), smoothing or 0.0, 0)
    canopy = canopy_of(points, heights, around=around, step=step)
    judged = JudgedParts(parts_of(canopy), likeness or packaged_likeness())
    chosen = judged.divide(smoothing, evenness)
    finest = _finest_of_points(canopy, judged.parts)
    found = _numbered(points, heights, chosen[finest], judged.scores(chosen), judged.parts, smoothing)
    if smoothing is not None:
        return found
    counts = np.bincount(judged.divide(None, evenness, _PLACE / 2)[finest])
    return found._replace(recount=int((counts >= LEAST_POINTS).sum()))


def choose_by(
    points: np.ndarray,
    heights: np.ndarray,
    numbers: np.ndarray,
    *,
    around: np.ndarray | None = None,
    likeness: Likeness | None = None,
) -> TreeChoice:
    """Choose smoothing and evenness that agree best with trees that someone has numbered, if any beat the defaults.

    Each numbered tree is left out in turn: settings are chosen by the others, and judged by it. They replace the
    defaults only if they find so more of the trees, by more than the error of that estimate.

    Args:
        points: (points, 3) float64 in meters, z up; only those of trees.
        heights: (points,) above ground, in meters.
        numbers: (points,) whole numbers; 0 where nothing is known.
        around: See `canopy_of`.
        likeness: See `number_trees`.

    Raises:
        ValueError: Shapes do not fit, values are not finite, or no tree is numbered.
    """
    points, heights = _checked(points, heights)
    numbers = np.asarray(numbers)
    if numbers.shape != heights.shape:
        raise ValueError(f"numbers {numbers.shape}: expected one for each of {len(points)} points")
    if not (numbers > 0).any():
        raise ValueError("numbers: expected at least one tree with a number above 0")
    canopy = canopy_of(points, heights, around=around)
    judged = JudgedParts(parts_of(canopy), likeness or packaged_likeness())
    finest = _finest_of_points(canopy, judged.parts)
    candidates: list[tuple[float | None, float]] = [(None, EVENNESS), (None, 0.0), (None, 100.0)]
    candidates += [(float(sigma), EVENNESS) for sigma in SIGMAS[1:9]]
    overlaps = []
    values = []
    for smoothing, evenness in candidates:
        part = judged.divide(smoothing, evenness)[finest]
        best, within = compare_with_each(numbers, part + 1)
        overlaps.append(best.mean())
        # As F1 counts it: found, and cut into how many
        values.append(2 * (best >= 0.5) / (1 + np.maximum(within, 1)))
    chosen = _better_than_first(np.array(values))
    return TreeChoice(*candidates[chosen], float(overlaps[chosen]), chosen == 0)


def _better_than_first(values: np.ndarray) -> int:
    """Return the best of candidates by their values (candidates, trees), and the first if others are not surely so."""
    count = values.shape[1]
    best = int(values.mean(axis=1).argmax())
    if count < 2 or not best:
        return 0
    by_others = (values.sum(axis=1, keepdims=True) - values).argmax(axis=0)
    gains = values[by_others, np.arange(count)] - values[0]
    return best if gains.mean() > gains.std(ddof=1) / np.sqrt(count) else 0


def _checked(points: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(points, dtype=np.float64)
    heights = np.asarray(heights, dtype=np.float32)
    if points.ndim != 2 or points.shape[1] != 3 or heights.shape != points.shape[:1]:
        raise ValueError(f"points {points.shape}, heights {heights.shape}: expected (points, 3) and (points,)")
    if not (np.isfinite(points).all() and np.isfinite(heights).all()):
        raise ValueError("points and heights: expected finite numbers, found NaN or infinity")
    return points, heights


class JudgedParts:
    """Parts of the canopy, and what a likeness says of them.

    Attributes:
        parts: The parts.
        likeness: (parts,) in 0 … 1, how much each is like the crown of one tree.
    """

    def __init__(self, parts: Parts, likeness: Likeness):
        self.parts = parts
        self.likeness = likeness(parts.numbers)
        self._suits = likeness.suits(parts.numbers)
        self._sureness = likeness.sureness
        self._prior = -PRIOR * np.log(SIGMAS / USUAL_SMOOTHING)[:, None] ** 2
        width = parts.numbers[:, _WIDTH]
        # What stands alone may be as wide as it likes.
        beyond = np.maximum(width - np.log(WIDTHS[1]), 0) * (1 - parts.numbers[:, _OPEN])
        self._unlike_any = -_TOO_WIDE * (beyond + np.maximum(np.log(WIDTHS[0]) - width, 0))

    def divide(self, smoothing: float | None, evenness: float, place: float = _PLACE) -> np.ndarray:
        """Return for each part which one it belongs to in the best division, (parts,).

        Args:
            smoothing: Meters at which all trees are found; None chooses.
            evenness: See `number_trees`.
            place: Meters around a part in which smoothings are compared.
        """
        if smoothing is not None:
            return self._at_level(int(np.abs(np.log(SIGMAS / smoothing)).argmin()))
        # Above 0, so that areas decide between parts that are all far behind
        worth = np.exp(np.maximum(evenness * self._behind(place) + self._unlike_any, -600))
        return _best_division(self.parts, np.maximum(self.likeness, _LEAST) * worth * self.parts.areas**_POWER)

    def scores(self, chosen: np.ndarray) -> np.ndarray:
        """Return how probable it is that each part of a division (parts,) is a tree, (parts,)."""
        evidence = np.column_stack([self.evidence(chosen), np.ones(len(chosen))])
        return 1 / (1 + np.exp(-evidence @ self._sureness))

    def evidence(self, chosen: np.ndarray) -> np.ndarray:
        """Return what tells right trees of a division (parts,) from wrong ones, (parts, 5).

        Their likeness, and how much other divisions share of them: all single smoothings, those two narrower and two
        wider than their own, each part by itself, and by half as much around.
        """
        of_levels = np.stack([self._shared(chosen, self._at_level(level)) for level in range(len(SIGMAS))])
        near = self.parts.births + np.array([-2, -1, 1, 2])[:, None]
        of_near = np.take_along_axis(of_levels, near.clip(0, len(SIGMAS) - 1), axis=0)
        alone = self._shared(chosen, self.divide(None, 0.0))
        cut = self._shared(chosen, self.divide(None, EVENNESS, _PLACE / 2))
        return np.column_stack([self.likeness, of_levels.mean(axis=0), of_near.mean(axis=0), alone, cut])

    def _shared(self, chosen: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the best intersection over union of each part of a division with one of another, (parts,)."""
        leaves = np.flatnonzero(self.parts.births == 0)
        areas = self.parts.areas[leaves]
        count = len(chosen)
        pairs, place = np.unique(chosen[leaves] * count + other[leaves], return_inverse=True)
        first, second = np.divmod(pairs, count)
        both = np.bincount(place, areas)
        own, of_other = (np.bincount(division[leaves], areas, minlength=count) for division in (chosen, other))
        best = np.zeros(count)
        np.maximum.at(best, first, both / (own[first] + of_other[second] - both))
        return best

    def _at_level(self, level: int) -> np.ndarray:
        """Return for each part which one it belongs to at one smoothing, (parts,)."""
        births, parents = self.parts.births, self.parts.parents
        chosen = np.arange(len(parents))
        for here in range(level, -1, -1):
            mine = np.flatnonzero(births == here)
            up = parents[mine]
            joins = (up >= 0) & (births[np.maximum(up, 0)] <= level)
            chosen[mine[joins]] = chosen[up[joins]]
        return chosen

    def _behind(self, place: float) -> np.ndarray:
        """Return how far the best smoothing of each part is behind the best of all around, (parts,), at most 0."""
        parts = self.parts
        row, column = (parts.middles / _PLACE_CELL).astype(np.int64).T
        shape = (int(row.max()) + 1, int(column.max()) + 1)
        weight = parts.areas**PLACE_POWER
        around = np.zeros((len(SIGMAS), len(weight)))
        lives = (parts.births <= _LEVELS) & (_LEVELS < parts.deaths)
        for level, there in enumerate(lives):
            sums = []
            for values in (weight[there] * self._suits[there], weight[there]):
                grid = np.zeros(shape)
                np.add.at(grid, (row[there], column[there]), values)
                sums.append(gaussian_filter(grid, place / _PLACE_CELL, mode="constant", truncate=2.0)[row, column])
            # Where the parts of a smoothing are far away, it says nothing.
            around[level] = np.where(sums[1] > 1e-9, sums[0] / np.maximum(sums[1], 1e-9), -np.inf)
        around += self._prior
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
    return TreeNumbers(number_of[which], score[chosen].astype(np.float32), first, smoothing, len(first))
