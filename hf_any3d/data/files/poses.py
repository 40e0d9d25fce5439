"""Poses as files state them: rotations and transforms that turn points, or the name of what is none."""

from typing import Any

import numpy as np

from hf_any3d.data.files.source import PointCloudError
from hf_any3d.data.files.text_numbers import shorten

# Lengths along the axes of a transform: of those of a rotation, rounded as files are, the shortest is not shorter than
# this share of the longest; below the second share, all points are in a plane.
_RIGID, _FLAT = 0.99, 1e-9


def vector(values: Any, count: int, name: str) -> np.ndarray:
    """Return numbers of a pose in JSON, (count,) float64.

    Raises:
        PointCloudError: They are not so many finite numbers; the error begins with the name.
    """
    is_list = isinstance(values, list) and len(values) == count
    if not is_list or not all(type(value) in (int, float) for value in values):
        raise PointCloudError(f"{name} is {_shown(values)}; expected {count} numbers")
    return finite(np.array(values, np.float64), name)


def finite(values: np.ndarray, name: str) -> np.ndarray:
    """Return the numbers of poses, (…, numbers), as they are.

    Raises:
        PointCloudError: One is NaN or infinite; the error begins with the name.
    """
    is_finite = np.isfinite(values)
    if not is_finite.all():
        row = values.reshape(-1, values.shape[-1])[~is_finite.reshape(-1, values.shape[-1]).all(axis=1)][0]
        raise PointCloudError(f"{name} is {_shown(row)}; expected finite numbers: correct it, or export without it")
    return values


def rotations(quaternions: np.ndarray, name: str) -> np.ndarray:
    """Return the rotations (count, 3, 3) of quaternions w x y z (count, 4) of any length.

    Those of zeros are no rotation: libE57Format and pye57 wrote them until 2022 for what is not turned.

    Raises:
        PointCloudError: A number is NaN or infinite; the error begins with the name.
    """
    quaternions = finite(np.asarray(quaternions, np.float64), name)
    largest = np.abs(quaternions).max(axis=1, keepdims=True)
    # Divided twice, as squares of the smallest and the largest numbers are no floats.
    units = np.where(largest > 0, quaternions, [1, 0, 0, 0]) / np.where(largest > 0, largest, 1)
    w, x, y, z = (units / np.linalg.norm(units, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def linear_part(matrix: np.ndarray, name: str, *, is_rigid: bool = False) -> np.ndarray:
    """Return the part of a transform (3, 3) that turns and scales; one of zeros does neither.

    Args:
        matrix: As the file has it.
        name: What errors begin with.
        is_rigid: Whether the format allows rotations alone, perhaps with one scale for all axes.

    Raises:
        PointCloudError: A number is NaN or infinite, the matrix moves all points into a plane, or it is no rotation
            where the format says that it is.
    """
    finite(matrix, name)
    if not matrix.any():
        return np.eye(3)
    lengths = np.linalg.svd(matrix, compute_uv=False)
    if lengths[-1] <= _FLAT * lengths[0]:
        raise PointCloudError(f"{name} is {_shown(matrix)}, which flattens all points: correct it, or export without")
    # A mirrored one, of axes in another order, is as clear as a rotation.
    if is_rigid and lengths[-1] < _RIGID * lengths[0]:
        raise PointCloudError(f"{name} is {_shown(matrix)}, which is no rotation: correct it, or export without it")
    return matrix


def _shown(values: Any) -> str:
    if isinstance(values, np.ndarray):
        values = " ".join(f"{value:g}" for value in values.reshape(-1))
    return shorten(str(values))
