"""Doubts about an inventory: conditions of a tile in which ground, heights, roofs or trees are often wrong.

Thresholds were chosen where answers on labeled places, and on these as other sensors would have seen them, were wrong
(`python -m survey.studies.doubt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from hf_any3d.utils.messages import percent, spaced_percents
from hf_any3d_survey.inventory.seen import Doubt, Seen
from hf_any3d_survey.local_features.map_index import blocks

GROUND, BUILDING, NOISE = 2, 6, 7
VEGETATION = (3, 4, 5)
"""Codes of ASPRS."""
_TALL = 2.0  # meters, of what hides the ground
_LEAST_COVER, _LEAST_CROWNS = 0.1, 0.05  # shares of the area that are worth a word
_ROOF_SLOPE = 0.5  # rise over run
_DEEP = 1.5  # meters below the top of a crown that a pulse reaches
_SEVERAL = 3  # points of a cell in which depth can be seen
_FLAT, _BIN = 0.25, 0.2  # meters between the highest and lowest point around a cell, and of levels that are one


class Condition(NamedTuple):
    """Condition of a tile under which its answer is doubted.

    Attributes:
        limit: Number above which it is.
        text: What is seen, what may be wrong, and what helps.
        is_least: True where numbers below the limit are doubted.
        without_returns: The same of scans in which no pulse has several returns, where the reason is another one.
    """

    limit: float
    text: str
    is_least: bool = False
    without_returns: str | None = None


_NOT_SEEN = "without several returns of a pulse, the ground under trees is not seen"
CONDITIONS = {
    "hidden ground": Condition(
        0.92,
        "{:.0%} of the area under trees and roofs hides the ground, so heights may be wrong; use a denser or "
        "leaf-off scan",
        without_returns=f"{_NOT_SEEN}, here on {{:.0%}} of the area under trees and roofs, so heights may be wrong; "
        "use a laser scan with all returns",
    ),
    "roofs on slopes": Condition(
        0.006,
        "{:.1%} of the area looks like roofs on steep ground and may be rock; check the ground there",
        without_returns=f"{{:.1%}} of the area looks like roofs on steep ground and may be trees, as {_NOT_SEEN}; "
        "use a laser scan with all returns",
    ),
    "closed crowns": Condition(
        0.17,
        "no pulse has several returns, and {:.0%} of the crowns have no points below them, as in photogrammetry, "
        "so trees and roofs may be mixed up and heights wrong; use a laser scan, or train on labeled tiles like it",
    ),
    "slope": Condition(
        44.0,
        "slopes reach {:.0f}°, so ground and heights may be wrong; check the ground there",
        without_returns=f"slopes reach {{:.0f}}° and may be those of crowns, as {_NOT_SEEN}; use a laser scan "
        "with all returns",
    ),
    "width": Condition(
        25.0, "only {:.0f} m wide, so ground and roofs may be mixed up; add the neighboring tiles", is_least=True
    ),
    "noise": Condition(0.03, "{:.0%} of the points are noise, and some may be called ground; filter them first"),
    "water": Condition(0.4, "{:.0%} of the area is level like water and classified as ground; mask water with a map"),
    "zero": Condition(
        0.8,
        "{:.0%} of the ground is at 0, as if z were height above ground instead of elevation; use the original file",
    ),
    "unlike": Condition(
        0.2, "{:.0%} of the points are unlike the training data, so classes may be wrong; label some of them"
    ),
    "ground": Condition(
        0.005,
        "{:.1%} of the points are ground, so heights are unreliable; use a scan that reaches the ground",
        is_least=True,
    ),
}
"""Conditions by their names. The limits of the first three were chosen by places; water, noise and heights in place of
elevations are told however right the rest is."""
# Trees from which on they are doubted as a whole, their mean score, and by which share their number may change
_FEWEST_TREES, _LEAST_SCORE, _MOST_RECOUNT = 5, 0.55, 0.1
# Times what was learned beyond which a scan is too sparse, or too dense
_SPARSER, _DENSER = 0.5, 4.0


def find_doubts(numbers: Mapping[str, float], learned_density: tuple[float, float] | None = None) -> list[Doubt]:
    """Find reasons to doubt what was found in a tile.

    Args:
        numbers: As of `measure_tile`. Without "returns", the scan has several of a pulse.
        learned_density: Least and most points a square meter of what the model has learned; None if it is not known.
    """
    doubts = []
    for name, condition in CONDITIONS.items():
        value = numbers[name]
        is_doubted = value < condition.limit if condition.is_least else value > condition.limit
        if is_doubted:
            text = condition.text
            if not numbers.get("returns", True) and condition.without_returns is not None:
                text = condition.without_returns
            doubts.append(Doubt(name, spaced_percents(text.format(value))))
    density = numbers["density"]
    least, most = learned_density or (0.0, np.inf)
    if not _SPARSER * least <= density <= _DENSER * most:
        text = f"{density:.2g} points a square meter ({least:.2g} to {most:.2g} in training), so classes may be "
        text += "wrong; train on labeled tiles like it" if density < least else "wrong; thin it"
        doubts.append(Doubt("density", text))
    return doubts


def find_tree_doubts(scores: Sequence[float], count: int, recount: int) -> list[Doubt]:
    """Find reasons to doubt the trees of a place.

    Args:
        scores: How probable it is that each tree is one.
        count: How many were found in all squares, with those around each.
        recount: How many of these there would be with half as much around each.
    """
    if len(scores) < _FEWEST_TREES:
        return []
    doubts = []
    if np.mean(scores) < _LEAST_SCORE:
        share = 1 - float(np.mean(scores))
        trees = f"about {percent(share)} % of the {len(scores):,} trees"
        text = f"{trees} may be wrong, judging by their scores; check some of them"
        doubts.append(Doubt("tree scores", text))
    if abs(recount - count) > _MOST_RECOUNT * count + 2 * np.sqrt(count):
        # Counts have the trees around a square for each square that sees them, so only their ratio means anything.
        again = len(scores) * recount / count
        text = f"the tree count depends on where the scan is cut: {len(scores):,} here, but about {again:,.0f} with "
        text += "half as much around each; check their crowns"
        doubts.append(Doubt("tree counts", text))
    return doubts


def measure_tile(seen: Seen, conditions: Mapping[str, float], unlike: float = 0.0) -> dict[str, float]:
    """Measure what `CONDITIONS` judge, by their names, and whether there are several "returns" of a pulse.

    Args:
        seen: The tile.
        conditions: As of `DescribedScan.conditions`.
        unlike: Share of points that are unlike all learned ones.
    """
    cells = TileCells.of(seen)
    area = max(1, int(cells.is_seen.sum()))
    is_tall = cells.is_seen & (cells.tops > _TALL)
    hidden = 0.0
    if is_tall.sum() > _LEAST_COVER * area:
        hidden = float(1 - cells.has_ground[is_tall].mean())
    closed = 0.0
    has_returns = seen.returns is not None and seen.returns.max() > 1
    if not has_returns and cells.has_crown.sum() > _LEAST_CROWNS * area:
        closed = cells.closed_share()
    slope = _slope(seen.ground.heights[1], cells.cell)
    return {
        **{name: conditions[name] for name in ("density", "slope", "width", "noise", "zero")},
        "returns": float(has_returns),
        "hidden ground": hidden,
        "roofs on slopes": float((cells.has_roof & (slope > _ROOF_SLOPE)).sum() / area),
        "closed crowns": closed,
        "water": cells.level_share(),
        "unlike": unlike,
        "ground": float((seen.classes[: seen.count] == GROUND).mean()),
    }


class TileCells(NamedTuple):
    """Contents of the cells of a tile, by its own points without noise; arrays (rows, columns).

    Attributes:
        cell: Width of a cell in meters.
        counts: Points.
        tops: Heights of the highest points above the ground.
        lows: The same of the lowest.
        highest: Elevations of the highest points.
        lowest: The same of the lowest.
        has_ground: Cells with points of the ground.
        has_crown: Cells with vegetation that is taller than `_TALL`.
        has_roof: Cells with points of roofs.
    """

    cell: float
    counts: np.ndarray
    tops: np.ndarray
    lows: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray
    has_ground: np.ndarray
    has_crown: np.ndarray
    has_roof: np.ndarray

    @classmethod
    def of(cls, seen: Seen) -> TileCells:
        """Go through the points of a tile."""
        shape = seen.ground.heights.shape[1:]
        size = shape[0] * shape[1]
        counts = np.zeros(size, np.int64)
        tops, highest = np.full((2, size), -np.inf, np.float32)
        lows, lowest = np.full((2, size), np.inf, np.float32)
        has_ground, has_crown, has_roof = np.zeros((3, size), bool)
        for part in blocks(seen.count):
            kept = np.flatnonzero(seen.classes[part] != NOISE) + part.start
            xyz, classes, heights = seen.points[kept], seen.classes[kept], seen.heights[kept]
            place = ((xyz[:, :2] - seen.ground.corner) / seen.ground.cell).astype(np.int64)
            at = place[:, 0].clip(0, shape[0] - 1) * shape[1] + place[:, 1].clip(0, shape[1] - 1)
            counts += np.bincount(at, minlength=size)
            elevations = xyz[:, 2].astype(np.float32)
            np.maximum.at(tops, at, heights)
            np.minimum.at(lows, at, heights)
            np.maximum.at(highest, at, elevations)
            np.minimum.at(lowest, at, elevations)
            has_ground[at[classes == GROUND]] = True
            has_crown[at[np.isin(classes, VEGETATION) & (heights > _TALL)]] = True
            has_roof[at[classes == BUILDING]] = True
        arrays = (counts, tops, lows, highest, lowest, has_ground, has_crown, has_roof)
        return cls(seen.ground.cell, *(values.reshape(shape) for values in arrays))

    @property
    def is_seen(self) -> np.ndarray:
        """Cells with points."""
        return self.counts > 0

    def closed_share(self) -> float:
        """Return the share of crown cells with several points in which none is deep below the top."""
        is_judged = self.has_crown & (self.counts >= _SEVERAL)
        if not is_judged.any():
            return 0.0
        return float((self.tops[is_judged] - self.lows[is_judged] <= _DEEP).mean())

    def level_share(self) -> float:
        """Return the share of the area that is flat and at one elevation, as water is."""
        is_seen = self.is_seen
        extent = ndimage.maximum_filter(self.highest, 3) - ndimage.minimum_filter(self.lowest, 3)
        levels = np.round(self.highest[is_seen & (extent < _FLAT)] / _BIN).astype(np.int64)
        if not len(levels):
            return 0.0
        counts = np.bincount(levels - levels.min())
        # Waves, or an edge between two bins
        both = counts + np.append(counts[1:], 0)
        return float(both.max() / is_seen.sum())


def _slope(ground: np.ndarray, cell: float) -> np.ndarray:
    if min(ground.shape) < 2:
        return np.zeros(ground.shape)
    return np.hypot(*np.gradient(ground, cell))


def words_of(doubts: Sequence[Doubt], stem: str | None) -> str:
    """Return one sentence of all doubts about a tile."""
    name = "" if stem is None else f"{stem}: "
    return f"{name}the result may be wrong: {'; '.join(doubt.text for doubt in doubts)}"
