"""Proposals for crowns: parts of the canopy seen from close by and from afar, and numbers that describe each part.

A canopy that is smoothed little has many tops, most of them branches; smoothed much, a top stands for several trees.
Here each cell climbs to a top at each of eleven smoothings. The parts that climb to one top are joined step by step,
so that proposals form a forest: each part at a wider smoothing is a union of parts at narrower ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

SIGMAS = 0.13 * 1.4 ** np.arange(11)
"""Meters by which the canopy is smoothed, from 0.13 to 3.8."""
NAMES = (
    "compactness",  # area, over that of a disk of the same moments
    "roundness",  # short over long axis
    "offset",  # of the top from the middle, in radii
    "rim",  # how far the rim is below the top, over the height
    "rim_slope",  # the same over the radius
    "touching_rim",  # the same, only where other parts touch
    "drop",  # how far the mean is below the top, over the height
    "drop_slope",
    "fall",  # correlation of height with the distance from the top
    "dome",  # correlation of height with the square of the distance from the middle
    "spread",  # deviation of heights, over the height
    "spread_slope",
    "texture",  # deviation from the lightly smoothed canopy, over the radius
    "texture_share",  # the same over the deviation of heights
    "circularity",  # of the outline
    "open",  # share of the outline that touches no other part
    "saddle",  # how far the highest way to another part is below the top, over the height
    "saddle_slope",
    "saddle_share",
    "life",  # smoothings at which it is there
    "birth",  # the first of them over the radius, logarithm
    "death",  # the last
    "children",
    "largest_child",  # share of the area
    "second_child",
    "inner",  # how far the saddle between children is below the lower top, over the height of the part
    "inner_slope",
    "inner_share",
    "inner_outer",  # the same over that of the part itself
    "inner_mean_slope",
    "share_of_parent",
    "life_of_parent",
    "saddle_slope_of_parent",
    "compactness_of_parent",
    "wave",  # radius over the mean wavelength of the canopy around, logarithm
    "band",  # energy of the canopy around at the width of the part, logarithm of its share
    "fine_band",  # the same at the finest width
    "cover",  # share of the ground around that is below trees
    "width",  # diameter over that of a usual crown of this height, logarithm
)
"""What the columns of `Parts.numbers` are. None is a length: trees of all sizes are judged alike."""
_FOOTPRINT, _MOST_GAP = 2.0, 3  # meters of the cells that say where there are points at all, and cells of a gap
_LIGHT = 0.3  # meters of the smoothing at which rims and saddles are measured
_CONTEXT = 6.0  # meters around a part that say how wide waves of the canopy are
_CONTEXT_CELL = 2.0  # meters
_COARSEST = 4  # fine cells in the side of the coarsest cell
_NEIGHBORS = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


class Canopy(NamedTuple):
    """Heights of the highest points of cells.

    Attributes:
        heights: (rows, columns) float32, meters above ground; 0 where there is no tree.
        trees: (rows, columns), whether there is a tree; nowhere in the outermost cells.
        known: (rows, columns), whether there are points around; beyond the edge of the data, the canopy may go on.
        cells: (points,) int64, the cell of each point in the flattened grid.
        step: Length of a cell in meters.
    """

    heights: np.ndarray
    trees: np.ndarray
    known: np.ndarray
    cells: np.ndarray
    step: float


class Parts(NamedTuple):
    """Proposals for crowns, children before parents.

    Attributes:
        finest: (tree cells,) the smallest part of each tree cell.
        parents: (parts,) the part that a part belongs to; -1 for none.
        births: (parts,) the first smoothing, an index of `SIGMAS`, at which it is there.
        deaths: (parts,) the first at which it belongs to a larger one.
        middles: (parts, 2) meters from the corner of the grid.
        areas: (parts,) square meters.
        numbers: (parts, columns) float32, what `NAMES` lists.
    """

    finest: np.ndarray
    parents: np.ndarray
    births: np.ndarray
    deaths: np.ndarray
    middles: np.ndarray
    areas: np.ndarray
    numbers: np.ndarray


class _Cells(NamedTuple):
    """Properties of tree cells; all arrays (tree cells,)."""

    x: np.ndarray  # meters
    y: np.ndarray
    heights: np.ndarray
    light: np.ndarray  # heights, lightly smoothed
    open_sides: np.ndarray  # how many of four sides touch no tree
    cut_sides: np.ndarray  # how many lie at the edge of the data
    step: float


class _Borders(NamedTuple):
    """Sides between tree cells of different parts; arrays (sides,)."""

    first: np.ndarray  # of the tree cells
    second: np.ndarray
    heights: np.ndarray  # the lower of the two


def canopy_of(
    points: np.ndarray, heights: np.ndarray, *, around: np.ndarray | None = None, step: float | None = None
) -> Canopy:
    """Draw the heights of the canopy.

    Cells lie at whole multiples of their length, so that neighboring blocks share them.

    Args:
        points: (points, 3) in meters, z up; only those of trees, at least one.
        heights: (points,) above ground.
        around: (all points, 2 or 3) all points of the place, which say where its data end; by default those of trees.
        step: Length of a cell in meters; by default `step_of` these points.
    """
    if step is None:
        step = step_of(points)
    places = np.floor(points[:, :2] / step).astype(np.int64)
    corner = (places.min(axis=0) - _COARSEST) // _COARSEST * _COARSEST
    places -= corner
    rows, columns = (places.max(axis=0) // _COARSEST + 2) * _COARSEST
    cells = places[:, 0] * columns + places[:, 1]
    highest = np.zeros(rows * columns, dtype=np.float32)
    # Trees of height 0 are trees.
    np.maximum.at(highest, cells, np.maximum(heights, 0.01).astype(np.float32))
    highest = highest.reshape(rows, columns)
    # Closing fills single cells that no pulse has hit, or that one has hit deep inside.
    closed = _closed(highest, 3)
    trees = (ndimage.maximum_filter(highest, 3) > 0) & (closed > 0)
    known = _footprint(points if around is None else around, corner * step, highest.shape, step)
    return Canopy(np.where(trees, closed, 0), trees, known, cells, step)


def step_of(points: np.ndarray) -> float:
    """Return the length in meters of cells that suit points (points, 3) of trees.

    Finer cells show more gaps of crowns than crowns; coarser ones join the narrowest.
    """
    whole = np.floor(points[:, :2]).astype(np.int64)
    whole -= whole.min(axis=0)
    occupied = len(np.unique(whole[:, 0] * (whole[:, 1].max() + 1) + whole[:, 1]))
    return step_of_density(len(points) / occupied)


def step_of_density(density: float) -> float:
    """Return the length in meters of cells that suit so many points of trees a square meter."""
    return 1 / 3 if density >= 2 else 0.5


def _footprint(around: np.ndarray, corner: np.ndarray, shape: tuple[int, int], step: float) -> np.ndarray:
    """Return which cells (rows, columns) have points around, by the places of all points (points, 2 or 3)."""
    # At whole multiples of their width, so that neighboring blocks share them
    places = [corner[axis] + (np.arange(shape[axis]) + 0.5) * step for axis in (0, 1)]
    row, column = (np.floor(place / _FOOTPRINT).astype(np.int64) for place in places)
    first = np.array([row[0], column[0]]) - _MOST_GAP
    size = np.array([row[-1], column[-1]]) + _MOST_GAP + 1 - first
    cells = np.floor(around[:, :2] / _FOOTPRINT).astype(np.int64) - first
    cells = cells[((cells >= 0) & (cells < size)).all(axis=1)]
    has_points = np.zeros(size, bool)
    has_points[tuple(cells.T)] = True
    # Water and shadows leave gaps.
    has_points = ndimage.binary_closing(has_points, np.ones((3, 3)), iterations=_MOST_GAP - 1)
    return has_points[np.ix_(row - first[0], column - first[1])]


def parts_of(canopy: Canopy) -> Parts:
    """Propose parts of the canopy at all smoothings, and measure them."""
    inside = np.flatnonzero(canopy.trees)
    cells, borders = _look_at(canopy, inside)
    label = np.zeros(0, dtype=np.int64)  # (tree cells,) the part of each cell at the current smoothing
    finest = label
    parents = label
    births = label
    deaths = label
    tables = []
    bands = []
    finer = canopy.heights
    for level, sigma in enumerate(SIGMAS):
        smooth, factor = _smoothed_closed(canopy, float(sigma))
        bands.append(_around(np.where(canopy.trees, (finer - smooth) ** 2, 0), canopy.step))
        finer = smooth
        basins = np.unique(_tops(smooth, inside, factor), return_inverse=True)[1]
        if not level:
            finest = basins
            label = basins
            fresh = int(basins.max()) + 1
            within = np.arange(len(inside))
        else:
            alive, part = np.unique(label, return_inverse=True)
            group, sizes = _joined(part, basins)
            # A group of one part is that part, which lives on.
            joins = sizes > 1
            fresh = int(joins.sum())
            number = np.where(joins, len(parents) + np.cumsum(joins) - 1, -1)[group]
            parents[alive] = number
            deaths[alive[number >= 0]] = level
            label = np.where(number >= 0, number, alive)[part]
            within = np.flatnonzero(label >= len(parents))
        apart = label[borders.first] != label[borders.second]
        # Parts only grow, so a side inside of one stays there.
        borders = _Borders(*(values[apart] for values in borders))
        if fresh:
            tables.append(_measured(label, within, len(parents), fresh, cells, borders))
        parents = np.append(parents, np.full(fresh, -1))
        births = np.append(births, np.full(fresh, level))
        deaths = np.append(deaths, np.full(fresh, len(SIGMAS)))

    table = {name: np.concatenate([part[name] for part in tables]) for name in tables[0]}
    numbers = _numbers(table, parents, births, deaths)
    numbers.update(_context(table, np.stack(bands), canopy))
    stacked = np.column_stack([numbers[name] for name in NAMES]).astype(np.float32)
    middles = np.column_stack([table["x"], table["y"]])
    return Parts(finest, parents, births, deaths, middles, table["area"], stacked)


def _closed(heights: np.ndarray, width: int) -> np.ndarray:
    return ndimage.minimum_filter(ndimage.maximum_filter(heights, width), width)


def _smoothed_closed(canopy: Canopy, sigma: float) -> tuple[np.ndarray, int]:
    """Return the canopy with gaps up to `sigma` closed and smoothed by it, and the cells per side of those used."""
    # Wide smoothings need no fine cells.
    factor = 1
    while factor < _COARSEST and sigma / canopy.step / factor >= 4:
        factor *= 2
    heights = canopy.heights
    if factor > 1:
        rows, columns = heights.shape
        heights = heights.reshape(rows // factor, factor, columns // factor, factor).max(axis=(1, 3))
    step = canopy.step * factor
    width = 2 * int(sigma / step) + 1
    if width > 3:
        heights = _closed(heights, width)
    smooth = ndimage.gaussian_filter(heights, sigma / step, mode="constant", truncate=3.0)
    if factor > 1:
        smooth = smooth.repeat(factor, axis=0).repeat(factor, axis=1)
    return smooth, factor


def _tops(smooth: np.ndarray, inside: np.ndarray, factor: int) -> np.ndarray:
    """Return for the cells `inside` which top they reach by the steepest way up, in cells of `factor` cells a side."""
    columns = smooth.shape[1]
    row, column = inside // columns, inside % columns
    heights = smooth[::factor, ::factor]
    best = heights.copy()
    own = np.arange(heights.size, dtype=np.int32).reshape(heights.shape)
    up = own.copy()
    rows, width = heights.shape
    for down, right in _NEIGHBORS:
        # The cells that have a neighbor in this direction, and these neighbors
        here = (slice(max(0, -down), rows - max(0, down)), slice(max(0, -right), width - max(0, right)))
        there = (slice(max(0, down), rows - max(0, -down)), slice(max(0, right), width - max(0, -right)))
        higher = heights[there] > best[here]
        np.copyto(best[here], heights[there], where=higher)
        np.copyto(up[here], own[there], where=higher)
    up = up.ravel()
    top = up[(row // factor) * width + column // factor]
    while True:
        further = up[top]
        if np.array_equal(further, top):
            return top
        # Twice as far with each step
        up = up[up]
        top = further


def _look_at(canopy: Canopy, inside: np.ndarray) -> tuple[_Cells, _Borders]:
    """Measure tree cells, and list all sides between two of them."""
    columns = canopy.trees.shape[1]
    index = np.full(canopy.trees.size, -1, dtype=np.int64)
    index[inside] = np.arange(len(inside))
    light = ndimage.gaussian_filter(canopy.heights, _LIGHT / canopy.step, mode="constant", truncate=3.0)
    light = light.ravel()[inside].astype(np.float64)
    firsts = []
    seconds = []
    open_sides = np.zeros(len(inside))
    cut_sides = np.zeros(len(inside))
    known = canopy.known.ravel()
    for offset in (1, columns):
        after = index[inside + offset]
        firsts.append(np.flatnonzero(after >= 0))
        seconds.append(after[after >= 0])
        for beside in (inside + offset, inside - offset):
            is_edge = index[beside] < 0
            open_sides += is_edge & known[beside]
            cut_sides += is_edge & ~known[beside]
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    cells = _Cells(
        x=(inside // columns + 0.5) * canopy.step,
        y=(inside % columns + 0.5) * canopy.step,
        heights=canopy.heights.ravel()[inside].astype(np.float64),
        light=light,
        open_sides=open_sides,
        cut_sides=cut_sides,
        step=canopy.step,
    )
    return cells, _Borders(first, second, np.minimum(light[first], light[second]))


def _joined(part: np.ndarray, basins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let each part join the basin that has most of it; return the group of each part, and the sizes of groups.

    Args:
        part: (tree cells,) parts, counted from 0.
        basins: (tree cells,), counted from 0.
    """
    width = int(basins.max()) + 1
    keys, counts = np.unique(part * width + basins, return_counts=True)
    owner = keys // width
    # Stable: of basins with equally much, the first
    order = np.lexsort((-counts, owner))
    first = np.append(True, owner[order][1:] != owner[order][:-1])
    return np.unique((keys % width)[order][first], return_inverse=True, return_counts=True)[1:]


def _measured(
    label: np.ndarray, within: np.ndarray, start: int, count: int, cells: _Cells, borders: _Borders
) -> dict[str, np.ndarray]:
    """Measure the parts from `start` to `start + count`, whose cells are `within`."""
    part = label[within] - start

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(part, values, minlength=count)

    size = np.bincount(part, minlength=count).astype(np.float64)
    x, y, heights, light = cells.x[within], cells.y[within], cells.heights[within], cells.light[within]
    middle_x, middle_y, mean = total(x) / size, total(y) / size, total(heights) / size
    dx, dy, dh = x - middle_x[part], y - middle_y[part], heights - mean[part]
    square = dx * dx
    xx = total(square) / size + cells.step**2 / 12
    yy = total(dy * dy) / size + cells.step**2 / 12
    square += dy * dy
    elongation = np.sqrt((xx - yy) ** 2 + 4 * (total(dx * dy) / size) ** 2)

    high = np.zeros(count)
    np.maximum.at(high, part, light)
    highest = np.flatnonzero(light == high[part])
    first = highest[np.unique(part[highest], return_index=True)[1]]
    top_x, top_y = x[first], y[first]
    far = np.hypot(x - top_x[part], y - top_y[part])
    variance = total(dh * dh) / size
    fall = _correlation(far, dh, variance, total, size, part)
    dome = _correlation(square, dh, variance, total, size, part)

    sides = np.concatenate([label[borders.first], label[borders.second]]) - start
    low = np.concatenate([borders.heights, borders.heights])
    mine = sides >= 0
    sides, low = sides[mine], low[mine]
    touching = np.bincount(sides, minlength=count).astype(np.float64)
    touching_heights = np.bincount(sides, low, minlength=count)
    saddle = np.zeros(count)
    np.maximum.at(saddle, sides, low)
    # Beyond the edge of the data, the canopy goes on as high as it is there.
    cut = cells.cut_sides[within]
    touching = touching + total(cut)
    touching_heights = touching_heights + total(cut * light)
    np.maximum.at(saddle, part[cut > 0], light[cut > 0])
    opened = total(cells.open_sides[within])
    rim = (touching_heights + total(cells.open_sides[within] * light)) / np.maximum(touching + opened, 1)
    return {
        "area": size * cells.step**2,
        "x": middle_x,
        "y": middle_y,
        "mean": mean,
        "long": (xx + yy + elongation) / 2,
        "short": np.maximum((xx + yy - elongation) / 2, 1e-6),
        "top_x": top_x,
        "top_y": top_y,
        "high": high,
        "fall": fall,
        "dome": dome,
        "deviation": np.sqrt(variance),
        "texture": np.sqrt(total((heights - light) ** 2) / size),
        "touching": touching * cells.step,
        "open": opened * cells.step,
        "saddle": saddle,
        "rim": rim,
        "touching_rim": touching_heights / np.maximum(touching, 1),
    }


def _correlation(values, deviations, variance, total, size, part) -> np.ndarray:  # noqa: ANN001
    """Correlate values of cells with deviations from the mean height of their part, whose variance is known."""
    values = values - (total(values) / size)[part]
    return total(values * deviations) / size / np.sqrt(total(values * values) / size * variance + 1e-6)


def _numbers(
    table: dict[str, np.ndarray], parents: np.ndarray, births: np.ndarray, deaths: np.ndarray
) -> dict[str, np.ndarray]:
    """Describe parts by their form, and by the parts in them and around them."""
    area, high = table["area"], np.maximum(table["high"], 0.1)
    radius = np.sqrt(area / np.pi)
    compactness = area / (2 * np.pi * (table["long"] + table["short"]))
    deviation = np.maximum(table["deviation"], 0.05)
    outline = table["touching"] + table["open"]
    touches = table["touching"] > 0
    depth = high - table["saddle"]
    life = deaths - births

    # Children: all but the one with the top of the part stand out by so much, and are so large.
    has = parents >= 0
    up = np.where(has, parents, np.arange(len(parents)))
    main = (table["top_x"] == table["top_x"][up]) & (table["top_y"] == table["top_y"][up])
    aside = has & ~main
    inner = np.zeros(len(parents))
    inner_sum = np.zeros(len(parents))
    second = np.zeros(len(parents))
    largest = np.zeros(len(parents))
    np.maximum.at(inner, parents[aside], depth[aside])
    np.add.at(inner_sum, parents[aside], (depth * area)[aside])
    np.maximum.at(second, parents[aside], area[aside])
    np.maximum.at(largest, parents[has], area[has])
    return {
        "compactness": compactness,
        "roundness": np.sqrt(table["short"] / table["long"]),
        "offset": np.hypot(table["top_x"] - table["x"], table["top_y"] - table["y"]) / radius,
        "rim": (high - table["rim"]) / high,
        "rim_slope": (high - table["rim"]) / radius,
        "touching_rim": np.where(touches, (high - table["touching_rim"]) / high, 1),
        "drop": (high - table["mean"]) / high,
        "drop_slope": (high - table["mean"]) / radius,
        "fall": table["fall"],
        "dome": table["dome"],
        "spread": table["deviation"] / high,
        "spread_slope": table["deviation"] / radius,
        "texture": table["texture"] / radius,
        "texture_share": table["texture"] / deviation,
        "circularity": 4 * np.pi * area / np.maximum(outline, 1e-6) ** 2,
        "open": table["open"] / np.maximum(outline, 1e-6),
        "saddle": np.where(touches, depth / high, 1),
        "saddle_slope": np.where(touches, depth, high) / radius,
        "saddle_share": np.where(touches, depth / deviation, 10),
        "life": life,
        "birth": np.log(SIGMAS[births] / radius),
        "death": np.log(SIGMAS[np.minimum(deaths, len(SIGMAS) - 1)] / radius),
        "children": np.minimum(np.bincount(parents[has], minlength=len(parents)), 10),
        "largest_child": largest / area,
        "second_child": second / area,
        "inner": inner / high,
        "inner_slope": inner / radius,
        "inner_share": inner / deviation,
        "inner_outer": inner / np.maximum(depth, 0.05),
        "inner_mean_slope": inner_sum / area / radius,
        "share_of_parent": area / area[up],
        "life_of_parent": np.where(has, life[up], 10),
        "saddle_slope_of_parent": np.where(has, (depth / radius)[up], 0),
        "compactness_of_parent": np.where(has, compactness[up], 0),
        "width": np.log(2 * radius / usual_width(high)),
    }


def usual_width(heights: np.ndarray) -> np.ndarray:
    """Return the diameter in meters of a usual crown by the height of the tree.

    Source: Popescu and Wynne, "Seeing the trees in the forest" (2004), pines and deciduous trees together.
    """
    return 2.51503 + 0.00901 * np.asarray(heights) ** 2


def _around(values: np.ndarray, step: float) -> np.ndarray:
    """Sum values of the grid over what is around, in cells of two meters."""
    size = round(_CONTEXT_CELL / step)
    rows, columns = -(-values.shape[0] // size), -(-values.shape[1] // size)
    padded = np.zeros((rows * size, columns * size), dtype=np.float32)
    padded[: values.shape[0], : values.shape[1]] = values
    blocks = padded.reshape(rows, size, columns, size).sum(axis=(1, 3))
    return ndimage.gaussian_filter(blocks, _CONTEXT / _CONTEXT_CELL, mode="constant", truncate=2.5)


def _context(table: dict[str, np.ndarray], bands: np.ndarray, canopy: Canopy) -> dict[str, np.ndarray]:
    """Compare parts with the waves of the canopy around; `bands` (levels, rows, columns) has their energies."""
    size = round(_CONTEXT_CELL / canopy.step)
    row = (table["x"] / canopy.step).astype(np.int64) // size
    column = (table["y"] / canopy.step).astype(np.int64) // size
    covered = _around(canopy.trees.astype(np.float32), canopy.step)[row, column]
    energies = bands[:, row, column] / np.maximum(covered, 1e-6) + 1e-6  # (levels, parts)
    energies = energies.astype(np.float64)
    whole = energies.sum(axis=0)
    scales = np.log(SIGMAS)
    radius = np.sqrt(table["area"] / np.pi)

    # The band of a part, between two levels: domes of radius r have most of their energy at a smoothing of 0.4 r.
    place = np.clip((np.log(0.4 * radius) - scales[0]) / (scales[1] - scales[0]), 0, len(SIGMAS) - 1)
    below = np.minimum(place.astype(np.int64), len(SIGMAS) - 2)
    logs = np.log(energies)
    parts = np.arange(len(radius))
    share = place - below
    band = logs[below, parts] * (1 - share) + logs[below + 1, parts] * share
    return {
        "wave": np.log(radius) - (energies * scales[:, None]).sum(axis=0) / whole,
        "band": band - np.log(whole),
        "fine_band": logs[0] - np.log(whole),
        "cover": covered / size**2,
    }
