"""Operations on the points of one cloud as arrays: joining channels, resampling, mean and radius."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hf_any3d.data.files.attributes import unit_colors
from hf_any3d.data.options import require_columns
from hf_any3d.data.tables.numpy_rows import near_origin


def stack_channels(row: Mapping, extra_columns: Sequence[str] = ()) -> np.ndarray:
    """Join `points` (num_points, 3 or more) and further columns of a row, such as colors and normals, along channels.

    `extra_columns` are (num_points, c), or (num_points,) for one channel, in this order; colors are scaled to [0, 1],
    as files' are. The result is (num_points, channels) float32; of points in float64 at coordinates of a map, an
    offset is split off, as `PointCloudData` does.
    """
    columns: list[np.ndarray] = []
    require_columns(("points", *extra_columns), row)
    for name in ("points", *extra_columns):
        values = np.asarray(row[name])
        if name == "points":
            values = near_origin({name: values})[0][name]
        if values.dtype.kind not in "iufb":  # meshes of a `Mesh` column, paths, dicts of a `PointCloud` column
            raise ValueError(
                f"{name} is a {type(row[name]).__name__}; expected numbers, which "
                f"hf_any3d.data.files_to_points makes of dataset.cast_column({name!r}, PointCloud())"
            )
        if name != "points" and values.ndim == 1:
            values = values[:, None]
        least = 3 if name == "points" else 1
        if values.ndim != 2 or values.shape[1] < least or len(values) == 0:
            raise ValueError(f"{name} has shape {values.shape}; expected (num_points >= 1, channels >= {least})")
        if name == "colors":
            values = unit_colors(values)
        columns.append(values.astype(np.float32, copy=False))
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def mean_point(axes: np.ndarray) -> np.ndarray:
    """Return the mean of the points of a cloud, `axes` (3, num_points), as (3, 1) float64.

    It is bitwise equal to the mean of an array (num_points, 3), whose points numpy adds one by one.
    """
    # A cumulative sum adds point by point; `np.sum` along contiguous rows adds in pairs, with other roundings.
    return np.cumsum(axes, axis=1, dtype=np.float64)[:, -1:] / axes.shape[1]


def largest_norm(axes: np.ndarray) -> np.floating:
    """Return the largest distance of a point from the origin, in the type of `axes` (3, num_points)."""
    squares = axes * axes
    # Only one root: the largest square belongs to the largest distance.
    return np.sqrt((squares[0] + squares[1] + squares[2]).max())


def means_of_cells(cells: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """Average the rows of arrays (points, c) that are in the same of `cells` (points, 3); sorted by cell, float64."""
    # The cell of each point, by the sorted order of cells
    _, inverse, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    sums = ([np.bincount(inverse, weights=column) for column in array.T] for array in arrays)
    return [np.stack(columns, axis=1) / counts[:, None] for columns in sums]


def rotation_matrix(axis: int, angle: float) -> np.ndarray:
    """Return the matrix (3, 3) of a rotation by `angle` radians about axis 0, 1 or 2: `xyz @ matrix.T` turns rows."""
    first, second = (other for other in range(3) if other != axis)
    matrix = np.eye(3)
    matrix[[first, second], [first, second]] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def new_generator(seed: int | None = None) -> np.random.Generator:
    """Return a numpy generator seeded from torch's generator unless a seed is given.

    Trainer and `torch.utils.data.DataLoader` seed torch, differently in every worker and epoch, but not always numpy.
    Drawing the seed from torch's global generator makes augmentation repeatable and different in each worker.
    """
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())) if seed is None else seed)


def resample_index(num_available: int, num_points: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """Return indices of `num_points` points out of `num_available`, drawn at random or in order, cyclically.

    No point is repeated before all have been used once.
    """
    if min(num_available, num_points) < 1:
        raise ValueError(f"num_points is {num_points} of {num_available}; expected at least 1")
    if generator is None:
        return np.arange(num_points, dtype=np.int64) % num_available
    # Every point occurs equally often, up to one, so that no part of a small cloud gets lost.
    rounds, rest = divmod(num_points, num_available)
    whole = np.tile(np.arange(num_available, dtype=np.int64), rounds)
    return np.concatenate([whole, generator.choice(num_available, rest, replace=False)])  # (num_points,)
