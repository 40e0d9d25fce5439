"""Rows of datasets as numpy arrays whose coordinates keep their digits."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from hf_any3d.data.files import PointCloudData

_Rows = TypeVar("_Rows")
# Columns of coordinates, which may be those of a map.
_PLACES = ("points", "boxes")


def numpy_rows(rows: _Rows, columns: Sequence[str] | None = None) -> _Rows:
    """Return a dataset, splits or a stream whose rows are numpy arrays, with coordinates in float64 kept.

    The numpy format of `datasets` reads float64 as float32, in which a coordinate of a map loses its decimals. Where
    `points` or `boxes` are float64, arrays have the types that are stored, integers among them; else it is that
    format as it is: float32, and int64 for integers. Streams have no other; `ArrowRows` and `StreamedRows` read
    integers as int64 always.

    Args:
        rows: the dataset.
        columns: the columns to read; None for all.
    """
    from datasets import Dataset, DatasetDict  # here, since pipelines of arrays and files need no `datasets`

    if isinstance(rows, DatasetDict):
        return type(rows)({split: numpy_rows(part, columns) for split, part in rows.items()})
    if not isinstance(rows, Dataset):
        return rows.with_format("numpy")  # type: ignore[attr-defined]
    chosen = rows.column_names if columns is None else columns
    settings: dict[str, Any] = {}
    if any(_has_doubles(rows.features[name]) for name in _PLACES if name in chosen):
        settings["dtype"] = None  # of numpy: the type that an array has
    return rows.with_format("numpy", columns=None if columns is None else list(columns), **settings)


def usual_types(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of `numpy_rows` with integers as int64 and halves as float32, as the numpy format reads them."""
    usual = {}
    for name, value in row.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            value = value.astype(np.int64, copy=False)
        elif isinstance(value, np.ndarray) and value.dtype == np.float16:
            value = value.astype(np.float32)
        usual[name] = value
    return usual


def near_origin(row: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Split an offset off the `points` of a row, and off the centers of its `boxes`, where float32 needs one.

    Points are cast to float32 in the next steps, and `PointCloudData` tells which offset keeps their shape.

    Args:
        row: has `points` (points, 3 or more), float32 or any other type.

    Returns:
        The row with points relative to the offset, and the offset (3,) float64; zeros where nothing is split off.
    """
    points = np.asarray(row["points"])
    shift = np.zeros(3)
    if points.dtype.kind not in "fiu" or points.dtype == np.float32:
        return dict(row), shift
    # Wrong ones are an error of the step that reads them.
    if points.ndim != 2 or points.shape[1] < 3 or not len(points) or not np.isfinite(points[:, :3]).all():
        return dict(row), shift
    cloud = PointCloudData(points[:, :3])
    if cloud.offset is None:
        return dict(row), shift
    moved = {**row, "points": np.concatenate([cloud.points, points[:, 3:]], axis=1)}
    boxes = np.array(row.get("boxes", ()), dtype=np.float64)
    if boxes.ndim == 2 and boxes.size:
        boxes[:, :3] -= cloud.offset
        moved["boxes"] = boxes
    return moved, cloud.offset


def _has_doubles(feature: Any) -> bool:
    """Return whether a column has arrays or lists of float64."""
    from datasets import Array2D, Array3D, LargeList, List, Value

    if isinstance(feature, (Array2D, Array3D)):
        return feature.dtype == "float64"
    if not isinstance(feature, (List, LargeList)):
        return False
    inner = feature.feature
    return inner.dtype == "float64" if isinstance(inner, Value) else _has_doubles(inner)
