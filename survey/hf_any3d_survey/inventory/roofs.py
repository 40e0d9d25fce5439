"""Shapes of roofs: what tells blocks of buildings from canopies, rocks and wires that a model took for roofs.

A roof is made of planes, nothing returns from below it, and its rim stands above what is beside it. Cells are
described with the points around them, and a block by the means of its cells, so that it is the same wherever tiles
begin. The logistic model of these numbers was learned from labeled and generated places
(`python -m survey.studies.roofs`).
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_any3d_survey.inventory.blocks import CELL, Block, corners_of, find_cells, keys_of, shift_of
from hf_any3d_survey.inventory.seen import Seen
from hf_any3d_survey.local_features.map_index import Points, blocks, numbered_keys

GROUND, BUILDING, NOISE = 2, 6, 7
"""Codes of ASPRS."""
LEAST_PROBABILITY = 0.5
"""Probability from which on a block is a building."""
_FILE = Path(__file__).with_name("roofs.json")
# Meters below the top of a cell within which points are of its roof, and not of its walls.
_SHELL = 1.5
# Meters below a roof from which on a point was seen through it or beside it.
_BELOW = 2.0
# Share of a block's cells with ground far below from which on it hides nothing, in scans without returns. Roofs of
# 100 square meters or more of six towns' tiles and an island have 0.54 at most, 81 generated bundles of wires 0.97.
_OPEN = 0.75
# Meters by which a roof stands free above its neighbors, and within which they are as high.
_FREE, _LEVEL = 1.5, 0.7
# Points for a plane: those of the cell, if there are so many, else of the cells around, and the least.
_OF_A_CELL, _AROUND, _LEAST = 10, 8, 6
_FLAT, _NEARLY_FLAT = 0.15, 0.3  # meters from the plane
_STEEPEST = 80.0  # degrees
_STEEPEST_GROUND = 1.5  # rise over run
# Points in three by three cells from which on these are enough to look at; five by five otherwise.
_ENOUGH = 12
_REACH = 2
_LEAST_VARIANCE = 1e-3  # square meters
CELL_COLUMNS = (
    "planes",
    "flat",
    "nearly flat",
    "steepness",
    "neighbors",
    "free",
    "ground level",
    "below",
    "own",
    "several returns",
    "terrain",
    "open",
)
"""Numbers of a cell: of the plane through its roof, if there is one; of neighboring cells that are no roof, how many
stand lower, and how many are ground as high; shares of the points in it and around it, the slope of the ground, and
whether ground is seen below."""
_OF_PLANES = slice(1, 4)
_OF_NEIGHBORS = slice(5, 7)
_OF_CELLS = slice(7, 11)
BLOCK_COLUMNS = (*CELL_COLUMNS[_OF_PLANES], *CELL_COLUMNS[_OF_NEIGHBORS], *CELL_COLUMNS[_OF_CELLS], "rim", "score")
"""Numbers of a block: means over its cells, neighbors a cell, and the mean probability of its points."""


def describe_cells(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Describe the cells of a tile, and of what lies around it, that have points of roofs.

    Returns:
        Their keys (cells,), sorted, and float32 numbers (cells, columns) named by `CELL_COLUMNS`.
    """
    roofs = np.flatnonzero(seen.classes == BUILDING)
    if not len(roofs):
        return np.zeros(0, np.int64), np.zeros((0, len(CELL_COLUMNS)), np.float32)
    keys, cell_of = numbered_keys(lambda part: keys_of(seen.points[roofs[part]]), len(roofs))
    counts = np.zeros(len(keys))
    several = np.zeros(len(keys))
    for part in blocks(len(roofs)):
        counts += np.bincount(cell_of[part], minlength=len(keys))
        if seen.returns is not None:
            several += np.bincount(cell_of[part], seen.returns[roofs[part]] > 1, len(keys))
    moments, levels = _shells(seen.points, roofs, cell_of, len(keys))
    columns = _planes(keys, moments)
    *around, is_open = _surroundings(seen, keys, counts, levels)
    columns += around
    slopes = seen.ground.slope_at(corners_of(keys) + CELL / 2)
    columns += [several / counts, np.minimum(slopes, _STEEPEST_GROUND), is_open]
    return keys, np.stack(columns, axis=1).astype(np.float32)


def _shells(points: Points, roofs: np.ndarray, cell_of: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Add up the uppermost points of each cell.

    Args:
        points: All points.
        roofs: Rows of the points of roofs.
        cell_of: Cell of each of these.
        cells: Number of cells.

    Returns:
        Moments (cells, 10) from the first point, and mean elevations (cells,).
    """
    tops = np.full(cells, -np.inf)
    for part in blocks(len(roofs)):
        np.maximum.at(tops, cell_of[part], points[roofs[part]][:, 2])
    origin = points[roofs[:1]][0]
    moments = np.zeros((cells, 10))
    for part in blocks(len(roofs)):
        xyz = points[roofs[part]]
        is_upper = xyz[:, 2] >= tops[cell_of[part]] - _SHELL
        moments += _moments(xyz[is_upper] - origin, cell_of[part][is_upper], cells)
    return moments, moments[:, 3] / moments[:, 0] + origin[2]


def _moments(points: np.ndarray, cell_of: np.ndarray, cells: int) -> np.ndarray:
    """Return how many points (points, 3) each cell has, and sums of x, y and z and of their products, (cells, 10)."""
    x, y, z = points.T
    terms = (None, x, y, z, x * x, x * y, y * y, x * z, y * z, z * z)
    return np.stack([np.bincount(cell_of, term, cells) for term in terms], axis=1)


def _fit_planes(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit planes; returns the root mean square distance in z, and the rise over run, (cells,) each."""
    counts = np.maximum(moments[:, 0], 1)
    x, y, z, xx, xy, yy, xz, yz, zz = (moments[:, 1:] / counts[:, None]).T
    var_x = xx - x * x + _LEAST_VARIANCE
    var_y = yy - y * y + _LEAST_VARIANCE
    cov_xy, cov_xz, cov_yz = xy - x * y, xz - x * z, yz - y * z
    determinant = var_x * var_y - cov_xy**2
    along_x = (cov_xz * var_y - cov_yz * cov_xy) / determinant
    along_y = (cov_yz * var_x - cov_xz * cov_xy) / determinant
    rest = zz - z * z - along_x * cov_xz - along_y * cov_yz
    # A plane has three free numbers.
    rest *= counts / np.maximum(counts - 3, 1)
    return np.sqrt(np.maximum(rest, 0)), np.hypot(along_x, along_y)


def _planes(keys: np.ndarray, moments: np.ndarray) -> list[np.ndarray]:
    """Return the columns of planes, of as few cells as have enough points."""
    around = moments.copy()
    for reach, least in ((1, _OF_A_CELL), (2, _AROUND)):
        few = np.flatnonzero(around[:, 0] < least)
        around[few] = _box_sums(keys, moments, few, reach)
    has_plane = around[:, 0] >= _LEAST
    distances, rise = _fit_planes(around)
    steepness = np.minimum(np.degrees(np.arctan(rise)), _STEEPEST)
    columns = [distances < _FLAT, distances < _NEARLY_FLAT, steepness / 45]
    return [has_plane, *(np.where(has_plane, column, 0) for column in columns)]


def _box_sums(keys: np.ndarray, values: np.ndarray, rows: np.ndarray, reach: int) -> np.ndarray:
    """Add values (cells, c) over the cells around some of them, (rows, c)."""
    sums = np.zeros((len(rows), values.shape[1]))
    for shift in _shifts(reach):
        at, is_there = find_cells(keys, keys[rows] + shift)
        sums[is_there] += values[at[is_there]]
    return sums


def _shifts(reach: int) -> list[int]:
    """Return what is added to the key of a cell for those around it, and for itself."""
    steps = range(-reach, reach + 1)
    return [shift_of(right, up) for right in steps for up in steps]


def _surroundings(seen: Seen, keys: np.ndarray, counts: np.ndarray, levels: np.ndarray) -> list[np.ndarray]:
    """Return the columns of neighbors, the shares of points below the roof and of its own ones, and what is open.

    Args:
        seen: The tile.
        keys: (cells,) keys of the cells with roofs.
        counts: (cells,) points of the roofs in them.
        levels: (cells,) elevations of the roofs.
    """
    near = np.unique(np.concatenate([keys + shift for shift in _shifts(_REACH)]))
    own, _ = find_cells(near, keys)
    roof_levels = np.full(len(near), -np.inf)
    roof_levels[own] = levels
    totals = np.zeros(len(near))
    below = np.zeros(len(near))
    # Highest points of the ground, and of what is neither ground nor roof
    tops = np.full((2, len(near)), -np.inf)
    for part in blocks(len(seen.points)):
        xyz = seen.points[part]
        at, is_near = find_cells(near, keys_of(xyz))
        is_near &= seen.classes[part] != NOISE
        at, z = at[is_near], xyz[is_near, 2]
        classes = seen.classes[part][is_near]
        totals += np.bincount(at, minlength=len(near))
        below += np.bincount(at, z < roof_levels[at] - _BELOW, len(near))
        for top, is_of_top in zip(tops, (classes == GROUND, (classes != GROUND) & (classes != BUILDING)), strict=True):
            np.maximum.at(top, at[is_of_top], z[is_of_top])
    roof_counts = np.zeros(len(near))
    roof_counts[own] = counts
    narrow, wide = (_beside(near, keys, levels, totals, roof_counts, tops, reach) for reach in (1, _REACH))
    found = np.where(narrow[-1] < _ENOUGH, wide, narrow)
    *beside, own_points, all_points = found
    is_open = np.isfinite(tops[0, own]) & (tops[0, own] < levels - _BELOW)
    return [*beside, below[own] / totals[own], own_points / all_points, is_open]


def _beside(
    near: np.ndarray,
    keys: np.ndarray,
    levels: np.ndarray,
    totals: np.ndarray,
    roof_counts: np.ndarray,
    tops: np.ndarray,
    reach: int,
) -> np.ndarray:
    """Count neighbors, those far below, those that are ground as high, points of roofs, and points, (5, cells)."""
    found = np.zeros((5, len(keys)))
    for shift in _shifts(reach):
        at, _ = find_cells(near, keys + shift)
        ground, plants = tops[0, at], tops[1, at]
        highest = np.maximum(ground, plants)
        is_beside = (roof_counts[at] == 0) & np.isfinite(highest)
        found[0] += is_beside
        found[1] += is_beside & (highest < levels - _FREE)
        found[2] += is_beside & (ground > levels - _LEVEL) & (ground >= plants)
        found[3] += roof_counts[at]
        found[4] += totals[at]
    return found


def describe_blocks(found: list[Block]) -> np.ndarray:
    """Return numbers of blocks, (blocks, columns), named by `BLOCK_COLUMNS`."""
    sums = np.array([block.shape for block in found], np.float64).reshape(-1, len(CELL_COLUMNS))
    cells = np.array([len(block.cells) for block in found], np.float64)[:, None]
    planes, neighbors = sums[:, :1], sums[:, 4:5]
    columns = [
        sums[:, _OF_PLANES] / np.maximum(planes, 1),
        sums[:, _OF_NEIGHBORS] / np.maximum(neighbors, 1),
        sums[:, _OF_CELLS] / cells,
        neighbors / cells,
        np.array([block.score for block in found])[:, None],
    ]
    return np.concatenate(columns, axis=1)


def are_plants(numbers: np.ndarray) -> np.ndarray:
    """Return which blocks (blocks,) are plants, if they are no buildings; others are rocks, wires or the ground."""
    named = dict(zip(BLOCK_COLUMNS, numbers.T, strict=True))
    is_rough = named["nearly flat"] < 0.5
    return is_rough & (named["terrain"] < 0.5)


def are_open(found: list[Block]) -> np.ndarray:
    """Return which blocks (blocks,) of a scan without returns hide nothing: ground is seen below, as below wires."""
    sums = np.array([block.shape for block in found])
    shares = sums / np.array([len(block.cells) for block in found])[:, None]
    return (shares[:, CELL_COLUMNS.index("several returns")] == 0) & (shares[:, CELL_COLUMNS.index("open")] > _OPEN)


class RoofModel(NamedTuple):
    """Logistic model of blocks; arrays (columns,) are of `BLOCK_COLUMNS`.

    Attributes:
        base: What the terms add to.
        low: Numbers are cut to low … high, and go to -1 … 1.
        high: See low.
        linear: Coefficients of these.
    """

    base: float
    low: np.ndarray
    high: np.ndarray
    linear: np.ndarray

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Return the probabilities (blocks,) that blocks with these numbers (blocks, columns) are buildings."""
        return 1 / (1 + np.exp(-self.base - self.scaled(numbers) @ self.linear))

    def scaled(self, numbers: np.ndarray) -> np.ndarray:
        """Return numbers (blocks, columns), cut to the bounds, in -1 … 1."""
        return (np.clip(numbers, self.low, self.high) - self.low) / (self.high - self.low) * 2 - 1


@lru_cache(maxsize=1)
def packaged_roof_model() -> RoofModel:
    """Read the model that comes with the package."""
    rows = json.loads(_FILE.read_text(encoding="utf-8"))
    base = rows.pop("base")
    return RoofModel(base, *np.array([rows[name] for name in BLOCK_COLUMNS]).T)
