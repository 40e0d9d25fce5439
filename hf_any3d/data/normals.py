"""Normals of clouds without them: planes through neighbors, turned to the side from which the points were seen."""

import warnings
from dataclasses import replace

import numpy as np

from hf_any3d.data.files import PointCloudData

NEIGHBORS = 24
"""Points through which a plane is fitted, the point itself among them."""
# Points whose neighbors are looked up at a time: some tens of megabytes.
_PIECE = 1 << 15
# Spreads of neighbors along the three axes of their plane: a line has one, a place none.
_LEAST_SPREAD = 1e-10
# Cells along each side of a scene, seen from above, whose lowest and highest points show whether it has a ceiling.
_CELLS = 24
# Share of the height within which a floor or ceiling is level, and least height of a room by its width.
_LEVEL, _LEAST_HEIGHT = 0.1, 0.05


def local_planes(points: np.ndarray, neighbors: int = NEIGHBORS) -> tuple[np.ndarray, np.ndarray]:
    """Fit a plane to the nearest neighbors of each point, by principal components.

    Args:
        points: (points, 3).
        neighbors: Number of neighbors, the point itself among them; of fewer points all.

    Returns:
        Unit normals (points, 3) float64, to either side, and squared spreads of the neighbors along the axes of their
        plane, (points, 3), that along the normal first.

    Source: Hoppe et al., "Surface reconstruction from unorganized points", 1992, Sec. 3.1.
    """
    from scipy.spatial import KDTree

    points = np.asarray(points, np.float64)
    tree = KDTree(points)
    count = min(neighbors, len(points))
    normals = np.empty((len(points), 3))
    spreads = np.empty((len(points), 3))
    # In pieces, as neighbors take many times the memory of the points.
    for start in range(0, len(points), _PIECE):
        piece = slice(start, start + _PIECE)
        _, index = tree.query(points[piece], k=count)
        # A single neighbor has no axis of its own.
        near = points[np.asarray(index).reshape(-1, count)]  # (points, neighbors, 3)
        near -= near.mean(axis=1, keepdims=True)
        # The normal of a plane through the neighbors is the direction of their least scatter.
        values, vectors = np.linalg.eigh(near.transpose(0, 2, 1) @ near)  # ascending
        normals[piece] = vectors[:, :, 0]
        spreads[piece] = values
    return normals, spreads


def estimate_normals(
    points: np.ndarray, scanner: np.ndarray | None = None, up_axis: str | None = None
) -> tuple[np.ndarray, int]:
    """Estimate the normals of a cloud from nearest neighbors.

    They point towards the scanner, where its place is known. Those of a scene, whose `up_axis` is given, point up, and
    on walls to the middle; in a room, which has a ceiling, inwards, from where it was scanned. Those of a single
    object point away from the middle of its bounding box.

    Args:
        points: (points, 3), in any unit, finite.
        scanner: (3,) or (points, 3), where the points were measured from.
        up_axis: "x", "y" or "z" of a scene; None for a single object.

    Returns:
        Unit normals (points, 3) float32, and at how many points the neighbors span no plane, as they are in one place
        or on a line; there the normal is any direction across the line.
    """
    points = np.asarray(points, np.float64)
    low = points.min(axis=0)
    high = points.max(axis=0)
    middle = (low + high) / 2
    # Of size one, so that squares neither overflow nor vanish.
    extent = float((high - low).max()) or 1.0
    placed = (points - middle) / extent
    normals, is_none = _fitted(placed)
    if is_none.any():
        # Points that are repeated have themselves for neighbors.
        distinct, inverse = np.unique(placed, axis=0, return_inverse=True)
        if len(distinct) < len(placed):
            normals, is_none = _fitted(distinct)
            normals = normals[inverse.reshape(-1)]
            is_none = is_none[inverse.reshape(-1)]
    if scanner is not None:
        outside = (np.asarray(scanner, np.float64) - middle) / extent - placed
    elif up_axis is None:
        outside = placed
    else:
        outside = _towards_viewer(placed, "xyz".index(up_axis))
    away = np.einsum("ij,ij->i", normals, outside) < 0
    normals[away] *= -1
    return normals.astype(np.float32), int(is_none.sum())


def _fitted(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return normals (points, 3) of either side, and where neighbors span no plane, (points,)."""
    normals, spreads = local_planes(points)
    # A line has no second axis. Rounding of float32 alone is far below the squares of real spreads.
    is_none = spreads[:, 1] <= _LEAST_SPREAD * spreads[:, 2]
    return normals, is_none | (spreads[:, 2] <= 0)


def _towards_viewer(points: np.ndarray, up: int) -> np.ndarray:
    """Return directions (points, 3) to where a scene is usually seen from: above, or the inside of a room."""
    if _has_ceiling(points, up):
        return -points
    # Mainly up, so that walls alone, whose normals are level, follow the rest.
    towards = -0.1 * points
    towards[:, up] = 1
    return towards


def _has_ceiling(points: np.ndarray, up: int) -> bool:
    """Return whether a scene of extent 1 is a room: level below, level above, and high enough."""
    heights = points[:, up]
    plan = np.delete(points, up, axis=1)
    cells = ((plan + 0.5) * _CELLS).astype(int).clip(0, _CELLS - 1)
    number = cells[:, 0] * _CELLS + cells[:, 1]
    lowest = np.full(_CELLS**2, np.inf)
    highest = np.full(_CELLS**2, -np.inf)
    np.minimum.at(lowest, number, heights)
    np.maximum.at(highest, number, heights)
    is_seen = np.isfinite(lowest)
    floor = np.median(lowest[is_seen])
    ceiling = np.median(highest[is_seen])
    height = ceiling - floor
    if height < _LEAST_HEIGHT:
        return False
    has_floor = (np.abs(lowest[is_seen] - floor) <= _LEVEL * height).mean() > 0.5
    has_ceiling = (np.abs(highest[is_seen] - ceiling) <= _LEVEL * height).mean() > 0.5
    return bool(has_floor and has_ceiling)


def with_normals(cloud: PointCloudData, up_axis: str | None = None) -> PointCloudData:
    """Return a cloud with estimated normals, if it has neither normals nor faces, and warn of it.

    Args:
        cloud: The cloud; a mesh has the normals of its faces.
        up_axis: See `estimate_normals`.
    """
    if cloud.normals is not None or cloud.is_mesh:
        return cloud
    # Coordinates that are NaN or infinite are errors of clouds, so all are finite here.
    normals, without = estimate_normals(cloud.points, cloud.scanner, up_axis)
    if cloud.scanner is not None:
        side = "to the scanner"
    elif up_axis is None:
        side = "outwards"
    else:
        side = "upwards, or into the room"
    text = f"no normals: estimated from {min(NEIGHBORS, len(cloud))} neighbors, {side}"
    if without:
        text += (
            f"; at {without:,} of {len(cloud):,} points the neighbors span no plane, and the direction is arbitrary"
        )
    warnings.warn(text, stacklevel=2)
    return replace(cloud, normals=normals)
