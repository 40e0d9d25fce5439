"""Maps of a scan as GeoTIFF: the height of its ground, and of its canopy.

Gaps and pits of the canopy are closed as by Ben-Arie, Hay, Powers, Castilla and St-Onge, "Development of a pit filling
algorithm for LiDAR canopy height models" (2009): only cells that almost all around them overtop change.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from scipy import ndimage

from hf_any3d.utils.atomic_files import atomic_write
from hf_any3d_survey.inventory.terrain import Terrain
from hf_any3d_survey.local_features.map_index import Points, blocks, bounds_of_all

_BLOCK = 256  # cells along the edges of the blocks of a GeoTIFF
_REACH = 10.0
"""Meters from the next point beyond which there is no ground."""
_GAP = 2  # cells that are filled from each side of a gap of the canopy
_RIM = 2 * _GAP  # cells around a raster that decide what is a gap, and a pit, in it
# Meters by which cells around a pit are higher, and how many of the eight have a height at least.
_PIT, _LEAST_KNOWN = 2.0, 5


@dataclass(frozen=True)
class Raster:
    """Values on a grid of square cells, north up.

    Attributes:
        values: (bands, rows, columns) float32, from north to south and from west to east; NaN where there is none.
        corner: Map coordinates (x, y) of the upper left corner, multiples of the cells' width: grids of neighboring
            tiles are one.
        cell: Width of a cell in the unit of the coordinates.
    """

    values: np.ndarray
    corner: tuple[float, float]
    cell: float


def terrain_bands(unit: str) -> dict[str, str]:
    """Return the bands of a raster of the terrain: elevations, and 1 where no ground point lies near, else 0."""
    return {f"ground elevation ({unit})": unit, "ground guessed": ""}


def canopy_bands(unit: str) -> dict[str, str]:
    """Return the band of a raster of the canopy."""
    return {f"canopy height ({unit})": unit}


def terrain_raster(
    terrain: Terrain,
    points: Points,
    *,
    cell: float | None = None,
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    meters_per_unit: float = 1.0,
    meters_per_height: float | None = None,
    reach: float = _REACH,
) -> Raster:
    """Return the bands of `terrain_bands` in cells that are near points.

    Args:
        terrain: Terrain below the points.
        points: (points, 3) in meters, as the terrain was found from.
        cell: Width of the cells in the unit of the map; by default that of the terrain's own grid.
        offset: (3,) map coordinates of the points' origin, in the units of the map.
        meters_per_unit: Length of a unit of x and y of the map in meters.
        meters_per_height: Length of a unit of its heights in meters; by default that of x and y.
        reach: Meters from the next point beyond which a cell has no ground.

    Returns:
        Elevations in the unit of the map's heights, linear between the cells of the terrain.
    """
    if meters_per_height is None:
        meters_per_height = meters_per_unit
    if cell is None:
        cell = terrain.cell / meters_per_unit
    origin = np.asarray(offset, np.float64)
    lowest, highest = bounds_of_all(points)[:, :2] / meters_per_unit + origin[:2]
    first = np.floor(lowest / cell).astype(np.int64)
    shape = np.floor(highest / cell).astype(np.int64) - first + 1
    # Columns along x and rows along y, as those of the terrain
    places = []
    for axis in (0, 1):
        centers = (first[axis] + np.arange(shape[axis]) + 0.5) * cell
        from_origin = (centers - origin[axis]) * meters_per_unit
        places.append((from_origin - terrain.corner[axis]) / terrain.cell - 0.5)
    grid = np.stack(np.meshgrid(*places, indexing="ij"))
    heights = ndimage.map_coordinates(terrain.heights, grid, order=1, mode="nearest") / meters_per_height + origin[2]
    is_guessed = ndimage.map_coordinates(terrain.is_guessed.astype(np.float32), grid, order=0, mode="nearest")
    has_points = np.zeros(shape, bool)
    for rows in blocks(len(points)):
        cells = np.floor((points[rows][:, :2] / meters_per_unit + origin[:2]) / cell).astype(np.int64) - first
        has_points[tuple(cells.T)] = True
    away = ndimage.distance_transform_edt(~has_points, sampling=cell * meters_per_unit)
    values = np.where(np.asarray(away) <= reach, np.stack([heights, is_guessed]), np.nan)
    return _north_up(values, first, cell)


def canopy_raster(points: Points, heights: np.ndarray, cell: float, bounds: np.ndarray | None = None) -> Raster:
    """Return the greatest height above the ground in each cell.

    Gaps of up to four cells between points are filled by the mean around them, and so are pits: cells that all
    around them but one overtop by two meters. Other cells without points are NaN.

    Args:
        points: (points, 3) map coordinates.
        heights: (points,) heights above the ground; below 0 counts as 0.
        cell: Width of the cells in the unit of the coordinates: half a meter, or the spacing of the points if they
            are farther apart.
        bounds: (2, 2) lowest and highest map coordinates of the raster, whose cells see the points around them; by
            default those of the points.
    """
    if bounds is None:
        bounds = bounds_of_all(points)[:, :2]
    first, last = np.floor(bounds / cell).astype(np.int64)
    start = first - _RIM
    shape = last - first + 1 + 2 * _RIM
    values = np.full(int(np.prod(shape)), -np.inf, np.float32)
    for rows in blocks(len(points)):
        cells = np.floor(points[rows][:, :2] / cell).astype(np.int64) - start
        is_inside = ((cells >= 0) & (cells < shape)).all(axis=1)
        place = cells[is_inside] @ (shape[1], 1)
        np.maximum.at(values, place, np.maximum(heights[rows][is_inside], 0).astype(np.float32))
    values[np.isneginf(values)] = np.nan
    inside = slice(_RIM, -_RIM)
    return _north_up(_without_pits(values.reshape(shape))[None, inside, inside], first, cell)


def _without_pits(values: np.ndarray) -> np.ndarray:
    """Return heights (columns, rows) of the canopy with small gaps and pits filled; see `canopy_raster`."""
    around = np.pad(values, 1, constant_values=np.nan)
    columns, rows = values.shape
    known = np.full(values.shape, -1, np.int8)  # without the cell itself
    overtop = np.zeros(values.shape, np.int8)
    for x in range(3):
        for y in range(3):
            other = around[x : x + columns, y : y + rows]
            known += ~np.isnan(other)
            overtop += other > values + _PIT
    is_pit = (known >= _LEAST_KNOWN) & (overtop >= known - 1)
    is_known = np.pad(~np.isnan(values), _GAP)
    is_inside = ndimage.binary_closing(is_known, np.ones((3, 3)), iterations=_GAP)[_GAP:-_GAP, _GAP:-_GAP]
    values = np.where(is_pit, np.nan, values)
    for _ in range(_GAP):
        is_empty = np.isnan(values)
        counts = ndimage.uniform_filter((~is_empty).astype(np.float32), 3, mode="constant")
        sums = ndimage.uniform_filter(np.where(is_empty, 0, values), 3, mode="constant")
        is_filled = is_empty & is_inside & (counts > 0.5 / 9)
        values[is_filled] = sums[is_filled] / counts[is_filled]
    return values


def _north_up(values: np.ndarray, first: np.ndarray, cell: float) -> Raster:
    """Return a raster of values (bands, columns, rows), whose rows go north, by the number (2,) of the first cell."""
    top = first[1] + values.shape[2]
    rows = np.ascontiguousarray(values.swapaxes(1, 2)[:, ::-1], np.float32)
    return Raster(rows, (float(first[0] * cell), float(top * cell)), float(cell))


@contextmanager
def open_mosaic(
    path: str | os.PathLike,
    bounds: tuple[float, float, float, float],
    cell: float,
    coordinate_system: str | None = None,
    bands: Mapping[str, str] = MappingProxyType({"height (m)": "m"}),
) -> Iterator[Mosaic]:
    """Open a GeoTIFF that rasters of several tiles are added to; it is there when the block ends without an error.

    It has float32, deflated, in blocks.

    Args:
        path: The file; it is replaced as a whole.
        bounds: Least x, least y, greatest x and greatest y of all rasters, in map coordinates.
        cell: Width of their cells, a multiple of which all their corners are.
        coordinate_system: Well-known text or a name such as "EPSG:2154".
        bands: Name of each band -> its unit; "" for none.

    Raises:
        ValueError: GDAL does not know the coordinate system.
    """
    left, bottom, right, top = bounds
    # What is a whole number of cells but for rounding stays it.
    columns = int(np.ceil((right - left) / cell - 1e-6))
    rows = int(np.ceil((top - bottom) / cell - 1e-6))
    known = None
    if coordinate_system is not None:
        try:
            known = CRS.from_user_input(coordinate_system)
        except CRSError as error:
            raise ValueError(f"{path}: the coordinate system {coordinate_system!r} is unknown to GDAL") from error
    profile = {
        "driver": "GTiff",
        "dtype": "float32",
        "count": len(bands),
        "width": max(1, columns),
        "height": max(1, rows),
        "nodata": float("nan"),
        "transform": rasterio.Affine(cell, 0, left, 0, -cell, top),
        "crs": known,
        "compress": "deflate",
        "predictor": 3,
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "bigtiff": "if_safer",
        "sparse_ok": True,
    }
    with atomic_write(path) as unfinished:
        with rasterio.open(unfinished, "w+", **profile) as file:
            file.descriptions = list(bands)
            file.units = list(bands.values())
            mosaic = Mosaic(file, (left, top), cell)
            yield mosaic
        mosaic.check_written(unfinished)


class Mosaic:
    """An open GeoTIFF that rasters are added to; see `open_mosaic`."""

    def __init__(self, file: Any, corner: tuple[float, float], cell: float) -> None:
        self._file = file
        self._corner = corner
        self._cell = cell
        # Checksums of the blocks that were written, by their first row and column
        self._written: dict[tuple[int, int], int] = {}

    def add(self, raster: Raster) -> None:
        """Fill the cells that have no value yet; what is beyond the bounds is left out.

        Raises:
            ValueError: The raster has cells of another width, or between those of the mosaic.
        """
        shift = (np.array([raster.corner[0], self._corner[1]]) - (self._corner[0], raster.corner[1])) / self._cell
        first_column, first_row = np.round(shift).astype(int).tolist()
        if raster.cell != self._cell or np.abs(shift - np.round(shift)).max() > 1e-3:
            raise ValueError(
                f"a raster of cells of {raster.cell:g} from {raster.corner}; expected cells of {self._cell:g} at "
                f"multiples from {self._corner}"
            )
        rows, columns = raster.values.shape[1:]
        last_row = min(first_row + rows, self._file.height)
        last_column = min(first_column + columns, self._file.width)
        # Block by block, so that a block is compressed once for each raster
        for top in range(max(0, first_row) // _BLOCK * _BLOCK, last_row, _BLOCK):
            for left in range(max(0, first_column) // _BLOCK * _BLOCK, last_column, _BLOCK):
                north = max(top, first_row)
                west = max(left, first_column)
                south = min(top + _BLOCK, last_row)
                east = min(left + _BLOCK, last_column)
                new = raster.values[
                    :, north - first_row : south - first_row, west - first_column : east - first_column
                ]
                if np.isnan(new).all():
                    continue
                values = self._read(self._file, top, left)
                old = values[:, north - top : south - top, west - left : east - left]
                np.copyto(old, new, where=np.isnan(old))
                self._file.write(values, window=self._window(self._file, top, left))
                self._written[top, left] = zlib.crc32(values.data)

    def check_written(self, unfinished: str | os.PathLike) -> None:
        """Read the blocks of a file that is closed, since GDAL ends without an error on a disk that is full.

        Raises:
            OSError: A block is not as it was written.
        """
        try:
            with rasterio.open(unfinished) as file:
                for (top, left), checksum in self._written.items():
                    if zlib.crc32(self._read(file, top, left).data) != checksum:
                        raise OSError(f"{unfinished}: a block is not as it was written")
        except RasterioError as error:
            raise OSError(f"{unfinished}: {error}") from error

    def _read(self, file: Any, top: int, left: int) -> np.ndarray:
        return np.ascontiguousarray(file.read(window=self._window(file, top, left)), np.float32)

    def _window(self, file: Any, top: int, left: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return first and last rows and columns of a block, which ends with the raster."""
        return (top, min(top + _BLOCK, file.height)), (left, min(left + _BLOCK, file.width))
