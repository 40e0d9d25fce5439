"""Single trees in airborne scans: how many are found without settings, and how many by a watershed at one smoothing.

    python -m survey.studies.trees --plots FOLDER --output DIR
    python -m survey.studies.trees --plots FOLDER --fit survey/hf_any3d_survey/inventory/likeness.json

Judged are numbered stands (LAZ files with the extra bytes `itc_ref` and `VegCls`, where 2 is a tree) and generated
stands of ten kinds at 4, 8 and 16 pulses a square meter, as wholes and as plots of 20 m that are cut out of them. Each
kind is judged with a likeness that has learned from stands of the other kinds, and from those whose kind is drawn at
random. Controls are watersheds of the canopy at fixed smoothings, the best of them for each stand, which needs the
truth, and region growing (Dalponte and Coomes 2016). The prior on smoothings, evenness and powers were chosen by the
means over the kinds, so that these figures are upper bounds of what further kinds may have.

Results: `results/inventory_trees.md`.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import laspy
import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.stats import rankdata

from hf_any3d.data.generated.stands import KINDS, draw_kind, draw_stand
from hf_any3d_survey.inventory.agreement import compare_trees
from hf_any3d_survey.inventory.crowns import NAMES, SIGMAS, Canopy, Parts, canopy_of, parts_of
from hf_any3d_survey.inventory.likeness import Likeness, save_likeness
from hf_any3d_survey.inventory.trees import (
    EVENNESS,
    LEAST_POINTS,
    PLACE_POWER,
    JudgedParts,
    choose_by,
    number_trees,
)

FIXED = (0.3, 0.6, 1.0, 1.6)
"""Meters of smoothing of the watersheds."""
USUAL = 0.6
"""Smoothing of the watershed beside which each kind is judged."""
DENSITIES = (4, 8, 16)
RANDOM = 220
"""Stands of random kinds that the likeness learns from."""
DRAWS = 10
"""Draws of trees that settings are chosen by."""
_HEAD = """# Single trees in airborne scans

F1 of trees at an intersection over union of a half, on points of trees; means over stands of a kind. Each kind is
judged with what was learned from other kinds (both LPine plots are one place). LPine, RPine, SMaple and TAspen are
real stands of pines, sugar maples and aspens; the other kinds are generated, at 4, 8 and 16 pulses a square meter.
"20 m" are plots cut out of the stands. Meters are watersheds smoothed by so much; the best of them is another for each
stand, and needs the truth. Dalponte is region growing from tops 1.5 m apart on the canopy unsmoothed. AUC tells how
well the score tells right trees from wrong ones; "said" is the mean score beside the share of right trees. "from 5"
and "from 20" are what `--from` adds to F1 by so many numbered trees, means of ten draws. The length of cells,
evenness and bounds of widths were chosen by the means over all these kinds, so further kinds may come out worse.

The prior on smoothings (0.15) was chosen by the plots of real stands. Chosen for each kind by the mean over the
others, among priors of 0, 0.05, 0.15 and 0.4 and evenness of 10, 30 and 60, it is 0 nine times of eleven: these eleven
kinds, the first eleven below, have 0.72 so and 0.71 as it ships, and their plots of 20 m 0.64 and 0.65 (RPine 0.40 and
0.51).

"""
_CELL = 0.25  # meters, of the controls
_LOWEST = 2.0  # meters; the controls see no tree below
_TOGETHER = ("LPine3", "LPine5")  # one place, so left out together
_PLOT = 20.0  # meters


class Plot(NamedTuple):
    """Points of trees, the true number of each, and places of all points."""

    kind: str
    points: np.ndarray
    heights: np.ndarray
    truth: np.ndarray
    around: np.ndarray
    is_cut: bool = False

    def cut(self, low: tuple[float, float]) -> Plot:
        """Return the square of 20 m from so many meters to the north and east of the corner."""
        corner = self.around.min(axis=0) + low
        is_in, is_around = (
            ((places[:, :2] >= corner) & (places[:, :2] < corner + _PLOT)).all(axis=1)
            for places in (self.points, self.around)
        )
        kept = (values[is_in] for values in (self.points, self.heights, self.truth))
        return Plot(self.kind, *kept, self.around[is_around], True)


def read_plot(path: Path) -> Plot:
    """Read a numbered plot; heights are above the lowest points of cells of two meters, opened."""
    las = laspy.read(path)
    points = np.asarray(las.xyz) - np.asarray(las.xyz).min(axis=0)
    cells = np.floor(points[:, :2] / 2).astype(np.int64)
    lowest = np.full(cells.max(axis=0) + 1, np.inf)
    np.minimum.at(lowest, tuple(cells.T), points[:, 2])
    nearest = _nearest(np.isfinite(lowest))
    ground = ndimage.uniform_filter(ndimage.grey_opening(lowest[tuple(nearest)], 5, mode="nearest"), 3, mode="nearest")
    below = ndimage.map_coordinates(ground, (points[:, :2] / 2 - 0.5).T, order=1, mode="nearest")
    heights = np.maximum(points[:, 2] - below, 0).astype(np.float32)
    tree = np.asarray(las["VegCls"]) == 2
    truth = np.asarray(las["itc_ref"]).astype(np.int64)
    return Plot(path.stem, points[tree], heights[tree], truth[tree], points[:, :2])


def stand_of(kind: str, seed: int, density: int) -> Plot:
    """Draw a stand of a named kind; crowns are up to a quarter wider or narrower than those of the kind."""
    scale = (1.0, 0.8, 1.25)[seed % 3]
    stand = draw_stand(kind, seed + 100 * density, size=40, density=density, scale=scale)
    tree = stand.itc > 0
    return Plot(kind, stand.points[tree], stand.heights[tree], stand.itc[tree], stand.points[:, :2])


def random_stand(seed: int) -> Plot:
    """Draw a stand of a kind that is drawn, wide enough for some tens of trees."""
    kind = draw_kind(seed)
    density = float(np.exp(np.random.default_rng(seed).uniform(np.log(2), np.log(20))))
    size = float(np.clip(14 * np.sqrt(kind.radii[0] * kind.radii[1]), 24, 56))
    stand = draw_stand(kind, seed, size=size, density=density)
    tree = stand.itc > 0
    return Plot("random", stand.points[tree], stand.heights[tree], stand.itc[tree], stand.points[:, :2])


def judged_plots(folder: Path | None, seeds: Iterable[int]) -> list[Plot]:
    """Return all stands that are judged, and plots cut out of the real ones and of the first of each kind."""
    plots = [read_plot(path) for path in sorted(folder.glob("*.laz"))] if folder else []
    cuts = [plot.cut(low) for plot in plots for low in ((2, 2), (2, 22), (22, 2), (20, 20))]
    for kind in KINDS:
        for density in DENSITIES:
            stands = [stand_of(kind, seed, density) for seed in seeds]
            plots += stands
            cuts += [stands[0].cut(low) for low in ((3, 3), (17, 15))]
    return plots + [plot for plot in cuts if len(plot.points) > 200 and len(np.unique(plot.truth)) > 4]


class _Image(NamedTuple):
    raw: np.ndarray
    places: tuple[np.ndarray, np.ndarray]


def _image(plot: Plot) -> _Image:
    """Draw the canopy in cells of 25 cm with pits filled, as the controls see it."""
    flat = plot.points[:, :2] - plot.points[:, :2].min(axis=0)
    rows, columns = (np.floor(flat / _CELL).astype(np.int64) + 1).T
    rows, columns = rows + 1, columns + 1
    raw = np.zeros((rows.max() + 2, columns.max() + 2), dtype=np.float32)
    np.maximum.at(raw, (rows, columns), plot.heights)
    middle = ndimage.median_filter(raw, 3)
    pits = (raw == 0) | (raw < middle - 2)
    filled = np.where(pits, np.maximum(middle, raw), raw)
    return _Image(np.where(filled <= 0, ndimage.grey_closing(raw, 3), filled), (rows, columns))


def _tops(canopy: np.ndarray, apart: float) -> np.ndarray:
    """Return tops as markers, numbered from 1; of two that are nearer than `apart` meters, the higher one."""
    places = np.argwhere((ndimage.maximum_filter(canopy, 3) == canopy) & (canopy > _LOWEST))
    places = places[np.argsort(-canopy[tuple(places.T)], kind="stable")]
    labels = np.zeros(canopy.shape, dtype=np.int64)
    if not len(places):
        return labels
    taken = np.zeros(len(places), dtype=bool)
    near = KDTree(places * _CELL).query_ball_point(places * _CELL, apart)
    for number, place in enumerate(places):
        if not taken[number]:
            labels[tuple(place)] = labels.max() + 1
            taken[near[number]] = True
    return labels


def watershed(plot: Plot, sigma: float) -> np.ndarray:
    """Give trees numbers by a watershed of the smoothed canopy, from tops that are 1.5 m apart."""
    image = _image(plot)
    canopy = ndimage.gaussian_filter(image.raw, sigma / _CELL)
    markers = _tops(canopy, 1.5)
    if not markers.any():
        return np.zeros(len(plot.truth), dtype=np.int64)
    return _filled(_flooded(canopy, markers), image)


def _flooded(canopy: np.ndarray, markers: np.ndarray) -> np.ndarray:
    """Let markers grow down, the highest cell first; the outermost cells stay 0."""
    columns = canopy.shape[1]
    heights = canopy.ravel()
    labels = markers.ravel().copy()
    closed = np.ones(canopy.shape, dtype=bool)
    closed[1:-1, 1:-1] = canopy[1:-1, 1:-1] <= _LOWEST
    closed = closed.ravel()
    queue = [(-heights[cell], cell) for cell in np.flatnonzero(labels)]
    heapq.heapify(queue)
    while queue:
        _, cell = heapq.heappop(queue)
        if closed[cell]:
            continue
        for beside in (cell - columns, cell - 1, cell + 1, cell + columns):
            if not labels[beside] and not closed[beside]:
                labels[beside] = labels[cell]
                heapq.heappush(queue, (-heights[beside], beside))
    return labels.reshape(canopy.shape)


def dalponte(
    plot: Plot, apart: float = 1.5, seed: float = 0.45, crown: float = 0.55, reach: float = 5.0
) -> np.ndarray:
    """Give trees numbers by growing crowns from tops, as Dalponte and Coomes (2016) describe it.

    A cell joins a crown beside it if it is higher than `seed` of the top and `crown` of the mean of the crown so far,
    not 5 % higher than the top, and at most `reach` meters from it.
    """
    image = _image(plot)
    canopy = ndimage.median_filter(image.raw, 3)
    labels = _tops(canopy, apart)
    count = int(labels.max())
    if not count:
        return np.zeros(len(plot.truth), dtype=np.int64)
    index = np.arange(1, count + 1)
    rows, columns = np.array(ndimage.center_of_mass(labels > 0, labels, index)).T
    top = np.concatenate([[0], ndimage.maximum(canopy, labels, index)])
    rows, columns = np.append(0, rows), np.append(0, columns)
    all_rows, all_columns = np.indices(canopy.shape)
    while True:
        mean = np.append(0, ndimage.mean(canopy, labels, index))
        grown = labels.copy()
        for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
            beside = np.roll(labels, shift, axis)
            near = np.hypot(all_rows - rows[beside], all_columns - columns[beside]) * _CELL <= reach
            fits = (canopy > seed * top[beside]) & (canopy > crown * mean[beside]) & (canopy <= 1.05 * top[beside])
            joins = (grown == 0) & (beside > 0) & (canopy > _LOWEST) & near & fits
            grown[joins] = beside[joins]
        if np.array_equal(grown, labels):
            return _filled(labels, image)
        labels = grown


def _filled(labels: np.ndarray, image: _Image) -> np.ndarray:
    """Return the number of the cell of each point, or the nearest within 3 m."""
    nearest = _nearest(labels > 0)
    distance = np.hypot(*(nearest - np.indices(labels.shape)))
    return np.where(distance * _CELL < 3, labels[tuple(nearest)], 0)[image.places]


def _nearest(known: np.ndarray) -> np.ndarray:
    """Return the place (2, rows, columns) of the nearest known cell of each cell."""
    places = np.zeros((2, *known.shape), dtype=np.int32)
    ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True, indices=places)
    return places


class Rows(NamedTuple):
    """Parts of a stand: whether each is a tree, and how much each weighs.

    Of each smoothing, `levels` (levels, parts) says which parts it has, weighted to a sum of 1, and `f1` how good they
    are. `best` has the best intersection over union of each part with a true tree, and `points` their points.
    """

    canopy: Canopy
    parts: Parts
    best: np.ndarray
    points: np.ndarray
    weight: np.ndarray
    levels: np.ndarray
    f1: np.ndarray


def rows_of(plot: Plot) -> Rows:
    """Measure the parts of a stand, and compare each with the true trees."""
    canopy = canopy_of(plot.points, plot.heights, around=plot.around)
    parts = parts_of(canopy)
    finest = parts.finest[(np.cumsum(canopy.trees.ravel()) - 1)[canopy.cells]]
    count = len(parts.parents)
    # Points of each true tree in each part, by way of all parts that a smallest one belongs to
    width = int(plot.truth.max()) + 1
    keys, points = np.unique(finest * width + plot.truth, return_counts=True)
    part, tree = keys // width, keys % width
    steps = []
    while len(part):
        steps.append((part * width + tree, points))
        up = parts.parents[part]
        part, tree, points = up[up >= 0], tree[up >= 0], points[up >= 0]
    keys, place = np.unique(np.concatenate([step[0] for step in steps]), return_inverse=True)
    both = np.bincount(place, np.concatenate([step[1] for step in steps]))
    part, tree = keys // width, keys % width
    total = np.bincount(part, both, minlength=count)
    overlap = both / (total[part] + np.bincount(plot.truth)[tree] - both)
    overlap[tree == 0] = 0
    best = np.zeros(count)
    np.maximum.at(best, part, overlap)
    weight = parts.areas**PLACE_POWER
    levels = []
    f1 = []
    part = finest
    for level in range(len(SIGMAS)):
        part = np.where(parts.deaths[part] <= level, parts.parents[part], part)
        f1.append(compare_trees(plot.truth, part + 1).f1)
        there = weight * ((parts.births <= level) & (level < parts.deaths))
        levels.append(there / there.sum())
    return Rows(canopy, parts, best, total, weight / weight.sum() * 100, np.array(levels), np.array(f1))


def fit(rows: list[Rows], bounds: tuple[np.ndarray, np.ndarray]) -> Likeness:
    """Fit the likeness to parts of stands, all stands alike, by least squares with a small ridge.

    What smoothings suit is fitted to the F1 of each, as it differs from the mean of the stand: what all smoothings of
    a stand share does not tell which is the best. Scores are fitted last, to the trees that these two find.
    """
    low, high = bounds
    count = len(NAMES)
    left, right = 10 * np.eye(2 * count + 1), np.zeros(2 * count + 1)
    level_left, level_right = 3 * np.eye(2 * count), np.zeros(2 * count)
    for stand in rows:
        scaled = (np.clip(stand.parts.numbers, low, high) - low) / (high - low) * 2 - 1
        terms = np.column_stack([scaled, scaled**2, np.ones(len(scaled))])
        weighted = terms * stand.weight[:, None]
        left += weighted.T @ terms
        # A tree is found at a half; close to it, parts are half right.
        right += weighted.T @ np.clip((stand.best - 0.35) / 0.3, 0, 1)
        means = stand.levels @ terms[:, :-1]
        means -= means.mean(axis=0)
        level_left += means.T @ means
        level_right += means.T @ (stand.f1 - stand.f1.mean())
    linear, square, base = np.split(np.linalg.solve(left, right), [count, 2 * count])
    suits = np.split(np.linalg.solve(level_left, level_right), 2)
    likeness = Likeness(float(base[0]), low, high, linear, square, *suits, np.zeros(6))
    found = [evidence_of(stand, likeness) for stand in rows]
    return likeness._replace(sureness=_logistic(*(np.concatenate(part) for part in zip(*found, strict=True))))


def evidence_of(stand: Rows, likeness: Likeness) -> tuple[np.ndarray, np.ndarray]:
    """Return evidence (trees, 5) of the trees that are found in a stand, and which are right (trees,)."""
    judged = JudgedParts(stand.parts, likeness)
    chosen = judged.divide(None, EVENNESS)
    trees = np.unique(chosen)
    trees = trees[stand.points[trees] >= LEAST_POINTS]
    return judged.evidence(chosen)[trees], stand.best[trees] >= 0.5


def _logistic(evidence: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """Fit a logistic regression with a small ridge by Newton's steps; the last coefficient is its constant."""
    terms = np.column_stack([evidence, np.ones(len(evidence))])
    ridge = np.diag([1.0] * evidence.shape[1] + [0.0])
    found = np.zeros(terms.shape[1])
    for _ in range(30):
        said = 1 / (1 + np.exp(-terms @ found))
        curvature = (terms * (said * (1 - said))[:, None]).T @ terms + ridge
        found += np.linalg.solve(curvature, terms.T @ (is_right - said) - ridge @ found)
    return found


def bounds_of(rows: list[Rows]) -> tuple[np.ndarray, np.ndarray]:
    """Return the values between which nearly all numbers of random stands are."""
    numbers = np.concatenate([stand.parts.numbers for stand in rows])
    low, high = np.quantile(numbers, [0.02, 0.98], axis=0)
    return low, np.maximum(high, low + 1e-3)


def table(plots: list[Plot], random: list[Rows], measured: list[Rows]) -> str:
    """Judge all ways on all plots; return a table with a row for each kind."""
    bounds = bounds_of(random)
    ways = [*(f"{sigma} m" for sigma in FIXED), "best of them", "Dalponte", "ours"]
    ways += [f"20 m: {USUAL} m", "20 m: ours", "AUC", "said", "right", "from 5", "from 20"]
    lines = ["| kind | " + " | ".join(ways) + " |", "|---" * (len(ways) + 1) + "|"]
    means = []
    for kind in dict.fromkeys(plot.kind for plot in plots):
        out = _TOGETHER if kind in _TOGETHER else (kind,)
        others = [rows for plot, rows in zip(plots, measured, strict=True) if plot.kind not in out]
        ours = fit(random + others, bounds)
        own = [(plot, rows) for plot, rows in zip(plots, measured, strict=True) if plot.kind == kind]
        means.append(_figures(own, ours))
        lines.append(f"| {kind} | " + " | ".join(f"{value:.2f}" for value in means[-1]) + " |")
        print(lines[-1], flush=True)
    lines.append("| mean | " + " | ".join(f"{value:.2f}" for value in np.nanmean(means, axis=0)) + " |")
    return "\n".join(lines)


def _figures(plots: list[tuple[Plot, Rows]], ours: Likeness) -> np.ndarray:
    """Return all figures of the stands of a kind."""
    whole = np.array([_of_whole(plot, ours) for plot, _ in plots if not plot.is_cut])
    cut = [(_f1(plot, watershed(plot, USUAL)), _f1(plot, _ours(plot, ours))) for plot, _ in plots if plot.is_cut]
    evidence = [evidence_of(rows, ours) for _, rows in plots]
    right = np.concatenate([is_right for _, is_right in evidence])
    said = np.concatenate([1 / (1 + np.exp(-of @ ours.sureness[:-1] - ours.sureness[-1])) for of, _ in evidence])
    gains = np.mean([_gains(plot, ours) for plot, _ in plots if not plot.is_cut], axis=0)
    sure = [area_under_curve(right, said), said.mean(), right.mean()]
    return np.concatenate([whole.mean(axis=0), np.mean(cut, axis=0) if cut else [np.nan] * 2, sure, gains])


def _of_whole(plot: Plot, ours: Likeness) -> list[float]:
    fixed = [_f1(plot, watershed(plot, sigma)) for sigma in FIXED]
    return [*fixed, max(fixed), _f1(plot, dalponte(plot)), _f1(plot, _ours(plot, ours))]


def _f1(plot: Plot, numbers: np.ndarray) -> float:
    return compare_trees(plot.truth, numbers).f1


def _ours(plot: Plot, likeness: Likeness, **settings: float | None) -> np.ndarray:
    return number_trees(plot.points, plot.heights, around=plot.around, likeness=likeness, **settings).numbers


def _gains(plot: Plot, likeness: Likeness) -> list[float]:
    """Return what settings chosen by 5 and by 20 trees add to F1, means of some draws."""
    generator = np.random.default_rng(0)
    trees = np.unique(plot.truth[plot.truth > 0])
    before = _f1(plot, _ours(plot, likeness))
    known: dict[tuple[float | None, float], float] = {}
    gains = []
    for count in (5, 20):
        of_draws = []
        for _ in range(DRAWS):
            given = np.isin(plot.truth, generator.permutation(trees)[:count])
            choice = choose_by(plot.points, plot.heights, plot.truth * given, around=plot.around, likeness=likeness)
            settings = choice.smoothing, choice.evenness
            if settings not in known:
                known[settings] = _f1(plot, _ours(plot, likeness, smoothing=settings[0], evenness=settings[1]))
            of_draws.append(known[settings] - before)
        gains.append(float(np.mean(of_draws)))
    return gains


def area_under_curve(is_right: np.ndarray, scores: np.ndarray) -> float:
    """Return how probable it is that a right one has a higher score than a wrong one."""
    right, wrong = int(is_right.sum()), int((~is_right).sum())
    ranks = rankdata(scores)[is_right].sum()
    return float((ranks - right * (right + 1) / 2) / max(1, right * wrong))


def main() -> None:
    """Fit the likeness, or judge it on what it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", type=Path, help="Folder of numbered LAZ files.")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="Of generated stands of each kind.")
    parser.add_argument("--output", type=Path, help="Folder for the page.")
    parser.add_argument("--fit", type=Path, help="Learn from all stands and write the likeness here.")
    arguments = parser.parse_args()
    start = time.process_time()
    plots = judged_plots(arguments.plots, arguments.seeds)
    random = [rows_of(random_stand(seed)) for seed in range(RANDOM)]
    measured = [rows_of(plot) for plot in plots]
    if arguments.fit:
        save_likeness(fit(random + measured, bounds_of(random)), NAMES, arguments.fit)
    if arguments.output:
        page = _HEAD + table(plots, random, measured)
        page += f"\n\n{time.process_time() - start:.0f} processor seconds."
        print(page)
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "inventory_trees.md").write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
