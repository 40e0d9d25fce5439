"""Heights that stand for none: what programs write for cells without data, in points that are made of a raster."""

from __future__ import annotations

import numpy as np

NO_DATA = (
    -9999.0,  # ArcGIS, and GDAL for ESRI's grids
    -99999.0,  # SAGA, and R's packages around GDAL
    -32768.0,  # SRTM, and Whitebox
    -32767.0,  # DTED
    -3.4028234663852886e38,  # the least float of 32 bits, for rasters of floats in ArcGIS and R
    1.70141e38,  # Surfer's blank
)
# Coordinates lose digits where an offset is split off, and the largest are written with as few as six digits.
_NEAR, _ROUNDED, _LARGEST = 1e-3, 1e-5, 1e30
_SAMPLE = 1 << 12


def no_data_height(heights: np.ndarray, *, exact: bool) -> float | None:
    """Return the number of `NO_DATA` that some of the heights (points,) are, far from all others; else None.

    Far is farther than the others are from each other, so that a height of a place is never taken for none.

    Args:
        heights: In the coordinates of the file.
        exact: False looks at a sample first, in which a raster has such a cell, as raw arrays are read fast.
    """
    step = 1 if exact else max(1, len(heights) // _SAMPLE)
    sample = heights[::step]
    for end in (sample.min(initial=np.inf), sample.max(initial=-np.inf)):
        value = next((value for value in NO_DATA if _is_close(end, value)), None)
        if value is None:
            continue
        others = heights[~without_height(heights, value)]
        others = others[np.isfinite(others)]
        if len(others):
            low, high = float(others.min()), float(others.max())
            if max(low - value, value - high) > high - low:
                return value
    return None


def without_height(heights: np.ndarray, value: float) -> np.ndarray:
    """Return which heights (points,) are a number that stands for none, (points,) bool."""
    return np.asarray(_is_close(heights, value))


def _is_close(heights: np.ndarray | float, value: float) -> np.ndarray | bool:
    allowed = _NEAR if abs(value) < _LARGEST else _ROUNDED * abs(value)
    return np.abs(np.asarray(heights, np.float64) - value) <= allowed
