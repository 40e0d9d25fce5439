"""Proposals for crowns: what the heights of a canopy look like from close by and from afar, and numbers on each part.

A canopy that is smoothed little has many tops, most of them branches; smoothed much, a top stands for several trees.
Here each cell climbs to a top at each of ten smoothings. The parts that climb to one top are joined step by step, so
that proposals form a forest: each part at a wider smoothing is a union of parts at narrower ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

SIGMAS = 0.18 * 1.36 ** np.arange(11)
"""Meters by which the canopy is smoothed, from 0.18 to 4."""
FACTOR = 1.0
_CONTEXT = 6.0  # meters, around a part, that say how wide crowns are there
_CONTEXT_CELL = 2.0  # meters


class Canopy(NamedTuple):
    """Heights of the highest points of cells.

    Attributes:
        heights: (rows, columns) float32, meters above ground; 0 where there is no tree.
        trees: (rows, columns), whether there is a tree.
        cells: (points,) int64, the cell of each point in the flattened grid.
        step: Length of a cell in meters.
        origin: (2,) meters, the corner of the first cell.
    """

    heights: np.ndarray
    trees: np.ndarray
    cells: np.ndarray
    step: float
    origin: np.ndarray


class Parts(NamedTuple):
    """Proposals for crowns, children before parents.

    Attributes:
        finest: (tree cells,) the smallest part of each tree cell.
        parents: (parts,) the part that a part belongs to; -1 for none.
        births: (parts,) the first smoothing, as an index, at which it is there.
        deaths: (parts,) the first at which it is part of another.
        tops: (parts,) its highest cell, as an index of the tree cells.
        areas: (parts,) in cells.
        numbers: (parts, features) float32, what `number_names` lists.
    """

    finest: np.ndarray
    parents: np.ndarray
    births: np.ndarray
    deaths: np.ndarray
    tops: np.ndarray
    areas: np.ndarray
    numbers: np.ndarray


def canopy_of(points: np.ndarray, heights: np.ndarray) -> Canopy:
    """Draw the heights of the canopy, with the pits filled that pulses find between leaves.

    Cells lie at whole multiples of their length, so that neighboring blocks share them.
    """
    occupied = len(np.unique(np.floor(points[:, :2]).astype(np.int64) @ np.array([1 << 31, 1])))
    density = len(points) / occupied
    step = 0.25 if density >= 4 else 0.35 if density >= 2 else 0.5
    spacing = 1 / np.sqrt(density)
    first = np.floor(points[:, :2].min(axis=0) / step).astype(np.int64) - 2
    places = np.floor(points[:, :2] / step).astype(np.int64) - first
    shape = places.max(axis=0) + 3
    cells = places[:, 0] * shape[1] + places[:, 1]
    grid = np.zeros(shape[0] * shape[1], dtype=np.float32)
    np.maximum.at(grid, cells, np.maximum(heights, 0.01).astype(np.float32))
    grid = grid.reshape(shape)
    width = 3
    closed = ndimage.minimum_filter(ndimage.maximum_filter(grid, width), width)
    # Closing joins crowns across gaps as wide as it is; what is near to no point is no tree.
    trees = ndimage.maximum_filter((grid > 0).astype(np.uint8), 3).astype(bool) & (closed > 0)
    return Canopy(np.where(trees, closed, 0), trees, cells, step, first * step)


def climb(heights: np.ndarray) -> np.ndarray:
    """Return the top that each cell reaches by the steepest way up.

    Args:
        heights: (rows, columns) float32; the outermost cells must be lower than a cell that is to be a top.

    Returns:
        (rows * columns,) the flat index of the top.
    """
    rows, columns = heights.shape
    best = heights.copy()
    up = np.arange(heights.size, dtype=np.int64).reshape(heights.shape)
    own = up.copy()
    for down, right in [(-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)]:
        here = (slice(max(0, -down), rows - max(0, down)), slice(max(0, -right), columns - max(0, right)))
        there = (slice(max(0, down), rows - max(0, -down)), slice(max(0, right), columns - max(0, -right)))
        higher = heights[there] > best[here]
        np.copyto(best[here], heights[there], where=higher)
        np.copyto(up[here], own[there], where=higher)
    top = up.ravel()
    while True:
        further = top[top]
        if np.array_equal(further, top):
            return top
        top = further


def _smoothed(heights: np.ndarray, sigma: float, step: float) -> np.ndarray:
    return ndimage.gaussian_filter(heights, sigma / step, mode="constant", truncate=3.0)


NAMES = []


def parts_of(canopy: Canopy) -> Parts:
    """Propose parts of the canopy at all smoothings, and measure them."""
    cells = np.flatnonzero(canopy.trees)
    h = canopy.heights.ravel()[cells].astype(np.float64)
    columns = canopy.trees.shape[1]
    x = (cells // columns) * canopy.step
    y = (cells % columns) * canopy.step
    index = np.full(canopy.trees.size, -1, dtype=np.int64)
    index[cells] = np.arange(len(cells))
    # neighbors in the four directions; -1 outside of trees
    pairs = []
    open_sides = np.zeros(len(cells))
    for offset in (1, columns):
        other = index[cells + offset]
        both = np.flatnonzero(other >= 0)
        pairs.append(np.stack([both, other[both]]))
        open_sides += other < 0
        open_sides += index[cells - offset] < 0
    pairs = np.concatenate(pairs, axis=1)
    light = _smoothed(canopy.heights, 0.3, canopy.step).ravel()[cells].astype(np.float64)
    contact = np.minimum(light[pairs[0]], light[pairs[1]])

    label = None  # (cells,) part at the current smoothing
    tables = []  # of each new part
    births = []
    deaths = []
    parents = []
    labels_of_level = []
    context = []
    previous = canopy.heights
    count = 0
    for level, sigma in enumerate(SIGMAS):
        width = 2 * int(FACTOR * sigma / canopy.step) + 1
        closed = canopy.heights
        if width > 3:
            closed = ndimage.minimum_filter(ndimage.maximum_filter(closed, width), width)
        smooth = _smoothed(closed, sigma, canopy.step)
        context.append(_band_energy(previous - smooth, canopy))
        previous = smooth
        basin = np.unique(climb(smooth)[cells], return_inverse=True)[1]
        if label is None:
            finest = basin
            label = basin
            new = np.arange(basin.max() + 1)
            count = len(new)
            births += [0] * count
            deaths += [len(SIGMAS)] * count
            parents += [-1] * count
            tables.append(
                _measure(np.arange(len(cells)), basin, count, x, y, h, light, pairs, contact, open_sides, canopy.step)
            )
            births, deaths, parents = np.array(births), np.array(deaths), np.array(parents)
        else:
            # each current part joins the basin that has most of it
            alive, part = np.unique(label, return_inverse=True)
            width = basin.max() + 1
            key, n = np.unique(part * width + basin, return_counts=True)
            order = np.lexsort((key, -n, key // width))
            first = np.unique((key // width)[order], return_index=True)[1]
            target = (key % width)[order][first]
            groups, group, sizes = np.unique(target, return_inverse=True, return_counts=True)
            joined = sizes > 1
            ids = np.where(joined, count + np.cumsum(joined) - 1, -1)
            moved = joined[group]
            parents[alive[moved]] = ids[group[moved]]
            deaths[alive[moved]] = level
            fresh = int(joined.sum())
            parents = np.append(parents, np.full(fresh, -1))
            births = np.append(births, np.full(fresh, level))
            deaths = np.append(deaths, np.full(fresh, len(SIGMAS)))
            now = np.where(moved, ids[group], alive)
            label = now[part]
            inside = np.flatnonzero(label >= count)
            if fresh:
                tables.append(
                    _measure(inside, label, fresh, x, y, h, light, pairs, contact, open_sides, canopy.step, count)
                )
            count += fresh
    table = np.concatenate(tables)
    return _finish(canopy, cells, finest, parents, births, deaths, table, np.stack(context), x, y)


def _measure(inside, label, count, x, y, h, light, pairs, contact, open_sides, step, start=0):
    """Measure the parts start … start + count, whose cells are `inside`."""
    part = label[inside] - start
    cx, cy, hh, lh = x[inside], y[inside], h[inside], light[inside]

    def total(values):
        return np.bincount(part, values, minlength=count)

    area = np.bincount(part, minlength=count).astype(np.float64)
    mx, my, mean = total(cx) / area, total(cy) / area, total(hh) / area
    dx, dy = cx - mx[part], cy - my[part]
    xx, yy, xy = total(dx * dx) / area + step**2 / 12, total(dy * dy) / area + step**2 / 12, total(dx * dy) / area
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    large, small = (xx + yy + spread) / 2, (xx + yy - spread) / 2
    order = np.lexsort((lh, part))
    last = np.append(np.flatnonzero(np.diff(part[order])), len(order) - 1)
    top = inside[order[last]]
    high = light[top]
    rawtop = np.zeros(count)
    np.maximum.at(rawtop, part, hh)
    far = np.hypot(cx - x[top][part], cy - y[top][part])
    far_mean = total(far) / area
    df, dh = far - far_mean[part], hh - mean[part]
    vf, vh = total(df * df) / area, total(dh * dh) / area
    slope = total(df * dh) / area
    corr = slope / np.sqrt(vf * vh + 1e-6)
    # h over squared distance from the middle
    q = dx * dx + dy * dy
    dq = q - (xx + yy - step**2 / 6)[part]
    vq = total(dq * dq) / area
    corr_q = total(dq * dh) / area / np.sqrt(vq * vh + 1e-6)
    fine = hh - lh
    rough = np.sqrt(total(fine * fine) / area)
    # sides
    a, b = label[pairs[0]], label[pairs[1]]
    differ = np.flatnonzero(a != b)
    a, b, c = a[differ] - start, b[differ] - start, contact[differ]
    side = np.concatenate([a, b])
    low = np.concatenate([c, c])
    mine = (side >= 0) & (side < count)
    side, low = side[mine], low[mine]
    touching = np.bincount(side, minlength=count).astype(np.float64)
    low_mean = np.bincount(side, low, minlength=count)
    saddle = np.zeros(count)
    np.maximum.at(saddle, side, low)
    opened = total(open_sides[inside])
    perimeter = touching + opened
    edge_h = (low_mean + total(open_sides[inside] * lh)) / np.maximum(perimeter, 1)
    touch_h = np.where(touching > 0, low_mean / np.maximum(touching, 1), 0)
    return np.column_stack(
        [
            area,
            mx,
            my,
            mean,
            large,
            small,
            top,
            high,
            rawtop,
            corr,
            corr_q,
            np.sqrt(vh),
            rough,
            touching,
            opened,
            saddle,
            edge_h,
            touch_h,
        ]
    )


def _band_energy(band, canopy):
    """Local mean energy of a band on cells of two meters."""
    size = int(round(_CONTEXT_CELL / canopy.step))
    rows, columns = -(-band.shape[0] // size), -(-band.shape[1] // size)
    padded = np.zeros((rows * size, columns * size), dtype=np.float32)
    padded[: band.shape[0], : band.shape[1]] = np.where(canopy.trees, band * band, 0)
    blocks = padded.reshape(rows, size, columns, size).sum(axis=(1, 3))
    return ndimage.gaussian_filter(blocks, _CONTEXT / _CONTEXT_CELL, mode="constant", truncate=2.5)


def _finish(canopy, cells, finest, parents, births, deaths, t, energy, x, y):
    (
        area,
        mx,
        my,
        mean,
        large,
        small,
        top,
        high,
        rawtop,
        corr,
        corr_q,
        std,
        rough,
        touching,
        opened,
        saddle,
        edge_h,
        touch_h,
    ) = t.T
    step = canopy.step
    top = top.astype(np.int64)
    A = area * step**2
    r = np.sqrt(A / np.pi)
    n = len(area)
    has = parents >= 0
    up = np.where(has, parents, np.arange(n))
    # children
    kids = np.bincount(parents[has], minlength=n)
    biggest = np.zeros(n)
    np.maximum.at(biggest, parents[has], A[has])
    prom = high - saddle
    # highest child keeps the top
    main = has & (top == top[up])
    inner = np.zeros(n)
    side = has & ~main
    np.maximum.at(inner, parents[side], prom[side])
    inner_weighted = np.zeros(n)
    np.add.at(inner_weighted, parents[side], (prom * A)[side])
    second = np.zeros(n)
    np.maximum.at(second, parents[side], A[side])
    # context
    size = int(round(_CONTEXT_CELL / step))
    columns = canopy.trees.shape[1]
    ci, cj = cells[top] // columns // size, cells[top] % columns // size
    share = _band_energy(np.ones(canopy.trees.shape, np.float32), canopy)[ci, cj]
    e = energy[:, ci, cj] / np.maximum(share, 1e-6)  # (levels, parts)
    el = np.log(e + 1e-4)
    logs = np.log(SIGMAS)
    w = e / e.sum(0)
    centroid = (w * logs[:, None]).sum(0)
    # energy at the band of the part
    pos = np.clip((np.log(0.4 * r) - logs[0]) / (logs[1] - logs[0]), 0, len(SIGMAS) - 1)
    k = np.floor(pos).astype(int).clip(0, len(SIGMAS) - 2)
    f = pos - k
    ar = np.arange(n)
    at = el[k, ar] * (1 - f) + el[k + 1, ar] * f
    fine_e = el[0] - np.log(e.sum(0) + 1e-4)
    life = deaths - births
    mid = SIGMAS[np.minimum(deaths, len(SIGMAS) - 1)]
    X = dict(
        compact=A / (2 * np.pi * (large + small)),
        elong=np.sqrt(np.maximum(small, 1e-6) / large),
        offset=np.hypot(x[top] - mx, y[top] - my) / r,
        rim=(high - edge_h) / high,
        touchrim=np.where(touching > 0, (high - touch_h) / high, 1),
        drop=(high - mean) / high,
        drop_r=(high - mean) / r,
        rim_r=(high - edge_h) / r,
        corr=corr,
        corr_q=corr_q,
        std=std / high,
        std_r=std / r,
        rough=rough / r,
        rough_std=rough / np.maximum(std, 0.05),
        circ=4 * np.pi * A / np.maximum((touching + opened) * step, step) ** 2,
        open=opened / np.maximum(touching + opened, 1),
        saddle=np.where(touching > 0, prom / high, 1),
        saddle_r=np.where(touching > 0, prom / r, high / r),
        saddle_std=np.where(touching > 0, prom / np.maximum(std, 0.05), 10),
        life=life,
        birth=np.log(SIGMAS[births] / r),
        death=np.log(mid / r),
        kids=np.minimum(kids, 10),
        biggest=biggest / A,
        second=second / A,
        inner=inner / high,
        inner_r=inner / r,
        inner_std=inner / np.maximum(std, 0.05),
        inner_outer=inner / np.maximum(prom, 0.05),
        innerw_r=inner_weighted / A / r,
        up_area=np.where(has, A / A[up], 1.0),
        up_life=np.where(has, life[up], 10),
        up_saddle_r=np.where(has, prom[up] / r[up], 0),
        up_compact=np.where(has, (A / (2 * np.pi * (large + small)))[up], 0),
        centroid=np.log(r) - centroid,
        band=at - np.log(e.sum(0) + 1e-4),
        fine_e=fine_e,
        cover=share / (size * size),
        logr=np.log(r),
        logH=np.log(high),
        r_H=np.log(r / high),
        texture=el[0] - 2 * np.log(high),
    )
    NAMES[:] = list(X)
    numbers = np.nan_to_num(np.column_stack(list(X.values()))).astype(np.float32)
    return Parts(finest, parents, births, deaths, top, area, numbers)
