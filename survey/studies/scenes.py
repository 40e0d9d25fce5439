"""Generated places with and without buildings, and scans changed as other sensors would have seen them.

They have what no labeled scan at hand has: power lines, hillsides with boulders and cliffs, closed canopies on slopes,
and canopies that photogrammetry or a scanner without return numbers saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.generated.stands import draw_stand
from hf_any3d.data.generated.tiles import BUILDING, GROUND, HIGH_VEGETATION, LOW_VEGETATION, draw_tile
from hf_any3d.tasks.segmentation.steps import part_of
from hf_any3d_survey.tiles.relief import relief

OTHER = 1
"""Code of wires, pylons and boulders."""
_NOISE = 0.03  # meters, of the scanner


def power_line(seed: int, size: float = 80.0, density: float = 10.0) -> PointCloudData:
    """Draw three to six wires between two lattice towers, over grass with bushes."""
    generator = np.random.default_rng(seed)
    ground = generator.uniform(0, size, (int(density * size**2), 2))
    rise = _terrain(seed, generator.uniform(0, 0.15))
    parts = [(ground, np.zeros(len(ground)), GROUND)]
    towers = np.array([[0.15 * size, 0.5 * size], [0.85 * size, 0.5 * size + generator.uniform(-0.2, 0.2) * size]])
    height = generator.uniform(12, 30)
    along = (towers[1] - towers[0]) / np.linalg.norm(towers[1] - towers[0])
    across = np.array([-along[1], along[0]])
    reach = size * 1.2
    for number in range(generator.integers(3, 7)):
        side = generator.uniform(2, 3.5) * (1 if number % 2 else -1) * (1 + number // 4)
        level = height - 3.5 * (number // 2)
        # Some dozen points a meter, as low and slow flights have
        distance = generator.uniform(-0.2 * size, reach, int(generator.uniform(4, 20) * reach))
        span = np.linalg.norm(towers[1] - towers[0])
        sag = 0.1 * height * (1 - (2 * (distance / span % 1) - 1) ** 2)
        flat = towers[0] + distance[:, None] * along + side * across
        parts.append((flat, level - sag, OTHER))
    for tower in towers:
        parts.append(_tower(generator, tower, across, height + 2))
    for _ in range(int(size / 8)):
        foot = generator.uniform(0, size, 2)
        flat, above = _dome(generator, foot, generator.uniform(0.8, 2), density)
        parts.append((flat, above, LOW_VEGETATION))
    return _cloud(parts, rise, size, generator)


def hillside(seed: int, size: float = 80.0, density: float = 4.0) -> PointCloudData:
    """Draw a steep bare slope with waves, boulders and, in some, cliffs."""
    generator = np.random.default_rng(seed)
    ground = generator.uniform(0, size, (int(density * size**2), 2))
    parts = [(ground, np.zeros(len(ground)), GROUND)]
    for _ in range(generator.integers(3, 12)):
        flat, above = _dome(generator, generator.uniform(0, size, 2), generator.uniform(1, 6), density, 0.7)
        parts.append((flat, above, OTHER))
    hill = _terrain(seed, generator.uniform(0.4, 1.2))
    edge = generator.uniform(0.2, 0.8) * size
    drop = generator.choice([0, 3, 8, 15])

    def rise(flat: np.ndarray) -> np.ndarray:
        # A cliff across the slope, whose edge is not straight
        beyond = flat[:, 0] - edge - 3 * np.sin(flat[:, 1] / 7)
        return hill(flat) + drop / (1 + np.exp(-2 * beyond))

    return _cloud(parts, rise, size, generator)


def wood(seed: int, kind: str = "broadleaf", size: float = 60.0, density: float = 8.0) -> PointCloudData:
    """Draw a stand on a slope, with the returns of its pulses."""
    generator = np.random.default_rng(seed)
    stand = draw_stand(kind, seed, size, density)
    hill = _terrain(seed, generator.uniform(0, 0.7))
    points = stand.points.copy()
    points[:, 2] += hill(points[:, :2])
    labels = np.where(stand.itc > 0, HIGH_VEGETATION, GROUND)
    return _labeled(points, labels, stand.return_numbers, stand.return_counts)


def hedges(seed: int, size: float = 60.0, density: float = 12.0) -> PointCloudData:
    """Draw clipped hedges, long and flat on top, beside trees."""
    generator = np.random.default_rng(seed)
    ground = generator.uniform(0, size, (int(density * size**2), 2))
    parts = [(ground, np.zeros(len(ground)), GROUND)]
    for _ in range(generator.integers(4, 9)):
        start = generator.uniform(0, size, 2)
        angle = generator.uniform(0, np.pi)
        length, width, height = generator.uniform(8, 40), generator.uniform(0.8, 2.5), generator.uniform(1.5, 4)
        count = int(density * length * width)
        along = np.array([np.cos(angle), np.sin(angle)])
        flat = start + generator.uniform(0, length, (count, 1)) * along
        flat += generator.uniform(0, width, (count, 1)) * np.array([-along[1], along[0]])
        above = height + generator.normal(0, 0.12, count) - generator.exponential(0.15, count)
        parts.append((flat, above, HIGH_VEGETATION))
    for _ in range(6):
        flat, above = _dome(generator, generator.uniform(0, size, 2), generator.uniform(2, 4), density, 1.6)
        parts.append((flat, above, HIGH_VEGETATION))
    return _cloud(parts, _terrain(seed, generator.uniform(0, 0.2)), size, generator)


def village(seed: int, size: float = 60.0, steepest: float = 0.5) -> PointCloudData:
    """Draw houses and trees, some of which stand over roofs, on a slope."""
    generator = np.random.default_rng(seed)
    tile = draw_tile(seed, size, houses=4, trees=12, bushes=10)
    hill = _terrain(seed, generator.uniform(0, steepest))
    points = tile.points - (1000 * seed, 0, 0)
    # A house has one level, whatever the ground below it does.
    levels = hill(points[:, :2])
    rows = np.flatnonzero(tile.classes == BUILDING)
    cells = np.floor(points[rows, :2]).astype(np.int64)
    cells -= cells.min(axis=0)
    is_roof = np.zeros(cells.max(axis=0) + 1, bool)
    is_roof[tuple(cells.T)] = True
    house = ndimage.label(is_roof, np.ones((3, 3)))[0][tuple(cells.T)]
    levels[rows] = (np.bincount(house, levels[rows]) / np.maximum(np.bincount(house), 1))[house]
    points[:, 2] += levels
    village = _labeled(points, tile.classes, tile.return_numbers, tile.return_counts)
    # Trees that touch houses, and hide a part of their rims
    feet = points[generator.choice(rows, 8), :2] + generator.normal(0, 4, (8, 2))
    trees = [(*_dome(generator, foot, generator.uniform(1, 3), 6.0, 1.8), HIGH_VEGETATION) for foot in feet]
    beside = _cloud(trees, lambda flat: 100 - 200 + hill(flat), size, generator)
    return _joined(village, beside)


SCENES: dict[str, Callable[[int], PointCloudData]] = {
    "power line": power_line,
    "hillside": hillside,
    "wood": wood,
    "hedges": hedges,
    "village": village,
}
"""Kinds of places, all but the last one without a building."""


def without_returns(cloud: PointCloudData) -> PointCloudData:
    """Call each point the only return of its pulse."""
    ones = np.ones(len(cloud), np.uint8)
    return replace(cloud, return_number=ones, number_of_returns=ones)


def by_photogrammetry(cloud: PointCloudData, cell: float = 0.4) -> PointCloudData:
    """Keep the surface that cameras see from above: the highest point of each cell, smoothed, without returns."""
    rows = highest_rows(cloud.points, cell)
    points = cloud.points[rows].astype(np.float64)
    cells = np.floor(points[:, :2] / cell).astype(np.int64)
    cells -= cells.min(axis=0) - 1
    heights = np.full(cells.max(axis=0) + 2, np.nan)
    heights[tuple(cells.T)] = points[:, 2]
    window = np.lib.stride_tricks.sliding_window_view(heights, (3, 3))
    around = window[cells[:, 0] - 1, cells[:, 1] - 1].reshape(len(points), 9)
    # Matching bridges gaps between leaves and rounds off edges.
    points[:, 2] = 0.5 * np.nanmedian(around, axis=1) + 0.5 * np.nanmean(around, axis=1)
    return PointCloudData(
        points.astype(cloud.points.dtype),
        labels=None if cloud.labels is None else cloud.labels[rows],
        further={name: values[rows] for name, values in (cloud.further or {}).items()} or None,
        offset=cloud.offset,
        meters_per_unit=cloud.meters_per_unit,
        meters_per_height=cloud.meters_per_height,
    )


def thinned(cloud: PointCloudData, density: float) -> PointCloudData:
    """Keep so many points a square meter, drawn at random."""
    share = density * _area(cloud) / len(cloud)
    return rows_of(cloud, np.flatnonzero(np.random.default_rng(0).random(len(cloud)) < share))


def densified(cloud: PointCloudData, times: int = 10) -> PointCloudData:
    """Repeat each point some times, up to 15 cm away and 3 cm higher or lower."""
    generator = np.random.default_rng(0)
    dense = rows_of(cloud, np.repeat(np.arange(len(cloud)), times))
    points = dense.points + generator.normal(0, (0.15, 0.15, _NOISE), dense.points.shape)
    return replace(dense, points=points.astype(cloud.points.dtype))


def steepened(cloud: PointCloudData, slope: float) -> PointCloudData:
    """Let the place rise by so much in a meter to the east."""
    points = cloud.points.astype(np.float64)
    points[:, 2] += slope * (points[:, 0] - points[:, 0].min())
    return replace(cloud, points=points.astype(cloud.points.dtype))


def with_noise(cloud: PointCloudData, share: float = 0.03) -> PointCloudData:
    """Move some points up to 60 m up or 20 m down."""
    generator = np.random.default_rng(0)
    rows = np.flatnonzero(generator.random(len(cloud)) < share)
    points = cloud.points.copy()
    points[rows, 2] += generator.uniform(-20, 60, len(rows))
    labels = None if cloud.labels is None else cloud.labels.copy()
    if labels is not None:
        labels[rows] = 7
    return replace(cloud, points=points, labels=labels)


def with_water(cloud: PointCloudData, share: float = 0.6, level: float | None = None) -> PointCloudData:
    """Flood the middle of a place: a void, or returns of the water at a `level` above its lowest point."""
    x = cloud.points[:, 0]
    west, east = np.quantile(x, (0.5 - share / 2, 0.5 + share / 2))
    is_wet = (x > west) & (x < east)
    if level is None:
        return rows_of(cloud, np.flatnonzero(~is_wet))
    points = cloud.points.copy()
    noise = np.random.default_rng(0).normal(0, 0.02, int(is_wet.sum()))
    points[is_wet, 2] = points[:, 2].min() + level + noise
    labels = None if cloud.labels is None else np.where(is_wet, 9, cloud.labels)
    return replace(cloud, points=points, labels=labels)


def as_heights(cloud: PointCloudData, heights: np.ndarray) -> PointCloudData:
    """Put heights (points,) above the ground in place of elevations."""
    points = cloud.points.copy()
    points[:, 2] = heights - (0 if cloud.offset is None else cloud.offset[2])
    return replace(cloud, points=points)


def rows_of(cloud: PointCloudData, rows: np.ndarray) -> PointCloudData:
    """Return some points of a scan, which may repeat."""
    part = part_of(cloud, rows)
    part.labels = None if cloud.labels is None else cloud.labels[rows]
    part.offset = cloud.offset
    part.meters_per_unit = cloud.meters_per_unit
    part.meters_per_height = cloud.meters_per_height
    return part


def _area(cloud: PointCloudData) -> float:
    """Return how many square units have points."""
    return float(len(np.unique(np.floor(cloud.points[:, :2] / 2), axis=0))) * 4


def highest_rows(points: np.ndarray, cell: float) -> np.ndarray:
    """Return the numbers of the highest point of each cell."""
    cells = np.floor(points[:, :2] / cell).astype(np.int64)
    cells -= cells.min(axis=0)
    keys = cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1]
    order = np.lexsort((-points[:, 2], keys))
    return order[np.append(True, np.diff(keys[order]) > 0)]


def _terrain(seed: int, steepest: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the heights of a terrain, of which the steepest place rises by so much in a meter."""
    size = 200.0
    step = 1.0
    axis = np.arange(-size / 2, size * 1.5, step)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    found = relief(grid.reshape(-1, 2), np.random.default_rng(seed)).reshape(grid.shape[:2])
    found *= steepest / max(np.quantile(np.hypot(*np.gradient(found, step)), 0.95), 1e-6)

    def heights(flat: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(found, ((flat - axis[0]) / step).T, order=1, mode="nearest")

    return heights


def _dome(
    generator: np.random.Generator, foot: np.ndarray, radius: float, density: float, shape: float = 0.8
) -> tuple[np.ndarray, np.ndarray]:
    """Return places and heights of a dome `shape` times as high as it is wide."""
    away = radius * np.sqrt(generator.random(max(3, int(density * np.pi * radius**2))))
    angle = generator.uniform(0, 2 * np.pi, len(away))
    flat = foot + away[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lumps = 0.1 * radius * np.sin(3 * angle) * np.sin(4 * away)
    return flat, np.maximum(shape * radius * np.sqrt(1 - (away / radius) ** 2) + lumps, 0)


def _tower(
    generator: np.random.Generator, foot: np.ndarray, across: np.ndarray, height: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the points of a lattice tower: legs that lean, struts between them, and arms across."""
    share = generator.random(600) ** 0.7
    width = 0.14 * height * (1 - 0.85 * share)
    side = generator.integers(0, 4, 600)
    around = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])[side] / 2
    mixed = around + generator.random((600, 1)) * (np.roll(around, 1, axis=1) * (1, -1) - around)
    legs = foot + width[:, None] * mixed
    reach = generator.uniform(-5, 5, 200)
    arms = foot + reach[:, None] * across
    level = height - 2 - 3.5 * generator.integers(0, 3, 200)
    return np.concatenate([legs, arms]), np.concatenate([share * height, level]), OTHER


def _cloud(
    parts: list[tuple[np.ndarray, np.ndarray, int]],
    rise: Callable[[np.ndarray], np.ndarray],
    size: float,
    generator: np.random.Generator,
) -> PointCloudData:
    """Put parts, each places, heights and a code, on a terrain, and cut them to the square; without returns."""
    flat = np.concatenate([places for places, _, _ in parts])
    above = np.concatenate([heights for _, heights, _ in parts])
    labels = np.concatenate([np.full(len(places), code) for places, _, code in parts])
    points = np.column_stack([flat, 200 + rise(flat) + above]) + generator.normal(0, _NOISE, (len(flat), 3))
    inside = ((flat >= 0) & (flat < size)).all(axis=1)
    ones = np.ones(int(inside.sum()), np.uint8)
    return _labeled(points[inside], labels[inside], ones, ones)


def _joined(first: PointCloudData, second: PointCloudData) -> PointCloudData:
    columns = [
        np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("points", "labels", "return_number", "number_of_returns")
    ]
    return _labeled(*columns)


def _labeled(points: np.ndarray, labels: np.ndarray, numbers: np.ndarray, counts: np.ndarray) -> PointCloudData:
    returns = {"return_number": numbers.astype(np.uint8), "number_of_returns": counts.astype(np.uint8)}
    return PointCloudData(points, labels=labels.astype(np.int64), **returns, meters_per_unit=1.0)
