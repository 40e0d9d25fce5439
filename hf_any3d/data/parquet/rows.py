"""Check the rows of published datasets, and convert them to the types of their columns."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Array2D, ClassLabel, Features, List

from hf_any3d.data.files import PointCloudError

IGNORED = -100
"""Label of a point that no loss and no metric counts."""


def checked_row(row: Mapping[str, Any], features: Features) -> dict[str, Any]:
    """Convert a row to the types of its columns.

    Array2D columns are arrays (num_points, channels), a list `labels` has one class per point, or `IGNORED`.

    Raises:
        PointCloudError: no points, another shape, NaN or infinite numbers, or a class that does not exist.
    """
    checked = {}
    for name, feature in features.items():
        if name not in row:
            raise PointCloudError(f"there are no {name}")
        value = row[name]
        if isinstance(feature, Array2D):
            value = _array(name, value, feature)
        elif isinstance(feature, ClassLabel):
            value = int(_classes(name, _class_number(name, value, feature), feature)[0])
        elif isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
            value = _classes(name, np.asarray(value), feature.feature, IGNORED)
            if name == "labels" and value.shape != (len(row["points"]),):
                raise PointCloudError(
                    f"labels has shape {value.shape}; expected one of each of {len(row['points'])} points"
                )
        checked[name] = value
    return checked


def _array(name: str, value: object, feature: Array2D) -> np.ndarray:
    array = np.asarray(value)
    # Floats, integers with and without sign, booleans; not complex numbers, texts and objects.
    if array.dtype.kind not in "fiub":
        raise PointCloudError(f"{name} has type {array.dtype}; expected numbers")
    # `rows` is None for clouds of any size.
    rows, columns = feature.shape
    if array.ndim != 2 or array.shape[1] != columns or rows not in (None, len(array)):
        raise PointCloudError(f"{name} has shape {array.shape}; expected ({rows or 'points'}, {columns})")
    if not len(array):
        raise PointCloudError(f"{name} has no rows; expected at least 1 point")
    with np.errstate(over="ignore"):
        # Numbers beyond the range of float32 become infinite, and are refused below.
        array = array.astype(feature.dtype)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise PointCloudError(f"{name} has NaN or infinite numbers in {bad.sum()} rows, the first is {bad.argmax()}")
    return array


def _class_number(name: str, value: object, feature: ClassLabel) -> np.ndarray:
    if isinstance(value, str):
        if value not in feature.names:
            raise PointCloudError(f"{name} is {value!r}; expected one of {', '.join(feature.names)}")
        return np.array([feature.str2int(value)])
    number = np.asarray(value)
    if number.size != 1:
        raise PointCloudError(f"{name} has shape {number.shape}; expected one number a cloud")
    return number.reshape(1)


def _classes(name: str, values: np.ndarray, feature: ClassLabel, none: int | None = None) -> np.ndarray:
    if values.dtype.kind not in "iub":
        raise PointCloudError(f"{name} has type {values.dtype}; expected whole numbers")
    wrong = ((values < 0) | (values >= len(feature.names))) & (values != none)
    if wrong.any():
        raise PointCloudError(f"{name} is {values[wrong][0]}; expected 0 to {len(feature.names) - 1}")
    return values.astype(np.int64)
