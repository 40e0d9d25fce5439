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

    Array2D columns are arrays (num_points, channels), a list `labels` has one class per point, or `IGNORED`. What does
    not fit is an error: another shape, NaN or infinite numbers, or a class that does not exist.
    """
    checked = {}
    for name, feature in features.items():
        value: Any = row[name]
        if isinstance(feature, Array2D):
            value = np.asarray(value)
            # `size` is None for clouds of any size. Kinds: floats, integers with and without sign, booleans.
            size, columns = feature.shape
            is_cloud = value.ndim == 2 and value.shape[1] == columns and size in (None, len(value)) and len(value) > 0
            if value.dtype.kind not in "fiub" or not is_cloud:
                raise PointCloudError(
                    f"{name} has shape {value.shape} and type {value.dtype}; expected numbers "
                    f"({size or 'points'}, {columns})"
                )
            with np.errstate(over="ignore"):
                # Numbers beyond the range of float32 become infinite, and are refused below.
                value = value.astype(feature.dtype)
            # (points,), of rows with any number that is not finite
            bad = ~np.isfinite(value).all(axis=1)
            if bad.any():
                raise PointCloudError(
                    f"{name} has NaN or infinite numbers in {bad.sum()} rows, the first is {bad.argmax()}"
                )
        elif isinstance(feature, ClassLabel):
            # Names of classes become their numbers.
            number = np.asarray(feature.str2int(value) if isinstance(value, str) else value).reshape(1)
            value = int(_classes(name, number, feature)[0])
        elif isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
            value = _classes(name, np.asarray(value), feature.feature, IGNORED)
            if name == "labels" and value.shape != (len(row["points"]),):
                raise PointCloudError(f"labels has shape {value.shape}; expected ({len(row['points'])},)")
        checked[name] = value
    return checked


def _classes(name: str, values: np.ndarray, feature: ClassLabel, none: int | None = None) -> np.ndarray:
    wrong = ((values < 0) | (values >= len(feature.names))) & (values != none)
    if values.dtype.kind not in "iub" or wrong.any():
        raise PointCloudError(
            f"{name} is {values[wrong][:1]} of type {values.dtype}; expected 0 to {len(feature.names) - 1}"
        )
    return values.astype(np.int64)
