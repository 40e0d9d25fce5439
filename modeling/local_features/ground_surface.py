"""The ground below a scan: the lowest supported point of each cell, opened with growing windows.

Source: Zhang et al., "A progressive morphological filter for removing nonground measurements from airborne LIDAR
data" (2003), whose windows and slopes these follow; cells without a point are filled first, and points below the
ground are left out (`lowest_points`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hf_any3d.modeling.local_features.lowest_points import filled, lowest_points

WINDOWS = (3, 7, 15, 31, 41)
"""Widths in cells of the windows: what is narrower than the last one, such as a roof, does not count as ground."""
SLOPE, STEP, STEEP = 0.3, 0.3, 1.0
"""Rise of the ground for each unit of length, and height in units, that an opening may cut without finding a thing;
and the rise on steep ground, where the first one cuts hills."""
NOISE_DEPTH = 3.0
"""Meters below the ground beyond which points without support are noise."""
_MOST_CELLS = 1 << 24


@dataclass(frozen=True)
class GroundSurface:
    """Heights of the ground on a grid of square cells.

    Attributes:
        corner: (2,) the lowest coordinates of the grid.
        cell: Width of a cell.
        heights: (surfaces, rows, columns) heights of the cells' centers: of the surface that the openings leave; of
            the lowest points that none has cut, smoothed; of one opening with the widest window alone; and the first
            again, for steep ground.
        is_noise: (points,) which of the points are noise below the ground.
    """

    corner: np.ndarray
    cell: float
    heights: np.ndarray
    is_noise: np.ndarray

    @classmethod
    def below(
        cls, points: np.ndarray, cell: float, windows: Sequence[int] = WINDOWS, slope: float = SLOPE
    ) -> GroundSurface:
        """Find the ground below points (points, 3), z up, in meters."""
        flat = points[:, :2]
        corner = np.floor(flat.min(axis=0) / cell) * cell
        # Few points may span a map: then cells are larger.
        area = np.prod((flat.max(axis=0) - corner) / cell + 1)
        cell *= max(1.0, float(np.sqrt(area / _MOST_CELLS)))
        # Wherever there is ground to see, the lowest point of a cell lies on it, but for points below the ground.
        lowest, is_empty, is_left_out = lowest_points(points, corner, cell)
        surface, is_cut = _opened(lowest, windows, slope * cell)
        steep, _ = _opened(lowest, windows, STEEP * cell)
        # Under things, the ground is that of the nearest cell which no opening has cut.
        ground = ndimage.uniform_filter(filled(lowest, is_cut | is_empty), 3, mode="nearest")
        # A single wide window cuts hills too, which the growing ones keep by their slope.
        opened = ndimage.grey_opening(lowest, size=windows[-1], mode="nearest")
        widest = ndimage.uniform_filter(opened, 5, mode="nearest")
        found = cls(corner, cell, np.stack([surface, ground, widest, steep]), is_left_out)
        # Few points at the bottom of a narrow pit, such as a yard, are left out too, and are no noise.
        is_deep = found.heights_above(points[is_left_out])[:, 1] < -NOISE_DEPTH
        is_left_out[is_left_out] = is_deep
        return found

    def heights_above(self, points: np.ndarray) -> np.ndarray:
        """Return how high points (points, 3) are above each of the surfaces, (points, surfaces) float32."""
        place = (points[:, :2] - self.corner).T / self.cell - 0.5  # in cells, from the center of the first
        # Linear between centers of cells; beyond the grid, the nearest cell.
        below = [ndimage.map_coordinates(heights, place, order=1, mode="nearest") for heights in self.heights]
        return (points[:, 2:3] - np.stack(below, axis=1)).astype(np.float32)


def _opened(heights: np.ndarray, windows: Sequence[int], rise: float) -> tuple[np.ndarray, np.ndarray]:
    """Open heights (rows, columns) with growing windows; also returns which cells were cut as things on the ground.

    The ground may rise by `rise` from cell to cell.
    """
    is_cut = np.zeros(heights.shape, bool)
    last = 1
    for window in windows:
        opened = ndimage.grey_opening(heights, size=window, mode="nearest")
        # Zhang et al.: a window may cut what the slope allows over its growth, and one step more.
        is_thing = heights - opened > STEP + rise * (window - last) / 2
        heights = np.where(is_thing, opened, heights)
        is_cut = is_cut | is_thing
        last = window
    return heights, is_cut
