"""Rows of datasets as numpy arrays whose coordinates keep their digits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from hf_any3d.data.files import PointCloudData

_Rows = TypeVar("_Rows")
# Columns of coordinates, which may be those of a map.
_PLACES = ("points", "boxes")
_READ_TOGETHER = 64


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
    if _transform(rows) is not None:
        return _with_last_step(rows, _ToNumpy(columns))
    chosen = rows.column_names if columns is None else columns
    settings: dict[str, Any] = {}
    if any(_has_doubles(rows.features[name]) for name in _PLACES if name in chosen):
        settings["dtype"] = None  # of numpy: the type that an array has
    narrow = _narrow_type(rows)
    if narrow is not None:
        settings["dtype"] = narrow
    return rows.with_format("numpy", columns=None if columns is None else list(columns), **settings)


def has_own_rows(rows: Any) -> bool:
    """Return whether a dataset gives other rows than it stores: by a transform, or a type of fewer digits.

    Formats such as numpy or torch give what is stored, in other containers.
    """
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        return False
    return _transform(rows) is not None or _narrow_type(rows) is not None


def columns_of(rows: Any) -> list[str]:
    """Return the names of the columns that the rows of a dataset have as it gives them.

    With a transform of its own, they are those of its first row.
    """
    form = rows.format
    if has_own_rows(rows) and len(rows):
        from hf_any3d.data.epochs import states_kept  # here, since it imports torch

        with states_kept():
            return list(rows[0])
    return list(rows.column_names if form["output_all_columns"] else form["columns"])


def choose_columns(rows: _Rows, columns: Sequence[str]) -> _Rows:
    """Return a dataset with some of the columns of `columns_of`; a transform still gets all that are stored."""
    if _transform(rows) is not None:
        return _with_last_step(rows, _Choice(columns))
    return rows.select_columns(list(columns))  # type: ignore[attr-defined]


def column_of(rows: Any, name: str) -> list[Any]:
    """Return the values of a column as the dataset gives them, as Python objects; a hidden one as it is stored."""
    if not has_own_rows(rows) or name not in columns_of(rows):
        return rows.with_format(None)[name][:]
    values = []
    for start in range(0, len(rows), _READ_TOGETHER):
        values += rows[start : start + _READ_TOGETHER][name]
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


def refuse_transform(rows: Any, work: str) -> None:
    """Raise a ValueError for rows with a transform of their own, for work that stores rows or changes columns."""
    if type(rows).__name__ != "IterableDataset" and _transform(rows) is not None:
        raise ValueError(
            f"{work}: the dataset has a transform (with_transform), which is no part of what it stores; use "
            "dataset.with_format(None).map(transform, batched=True), or leave it out by dataset.with_format(None)"
        )


class _Choice:
    """Chooses columns of a batch."""

    def __init__(self, columns: Sequence[str]):
        self.columns = list(columns)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {name: batch[name] for name in self.columns}


class _ToNumpy:
    """Makes arrays of the numbers in a batch."""

    def __init__(self, columns: Sequence[str] | None):
        self.columns = columns

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        chosen = batch if self.columns is None else _Choice(self.columns)(batch)
        return {name: [_as_array(value) for value in values] for name, values in chosen.items()}


class _Steps:
    """Calls the transform of a dataset, and then further ones."""

    def __init__(self, *steps: Callable | None):
        self.steps = [step for step in steps if step is not None]

    def __call__(self, batch: Any) -> Any:
        for step in self.steps:
            batch = step(batch)
        return batch


def _transform(rows: Any) -> Callable | None:
    return rows.format["format_kwargs"]["transform"] if rows.format["type"] == "custom" else None


def _narrow_type(rows: Any) -> np.dtype | None:
    """Return the type of all numbers in the format of a dataset, if it has fewer digits than coordinates."""
    dtype = rows.format["format_kwargs"].get("dtype")
    if dtype is None:
        return None
    try:
        found = np.dtype(str(dtype).removeprefix("torch.") if "torch." in str(dtype) else dtype)
    except TypeError:  # one that numpy lacks, such as bfloat16
        return None
    return None if found in (np.float32, np.float64) else found


def _with_last_step(rows: Any, step: Callable) -> Any:
    form = rows.format
    return rows.with_transform(_Steps(_transform(rows), step), form["columns"], form["output_all_columns"])


def _as_array(value: Any) -> Any:
    if isinstance(value, (str, bytes, Mapping)) or value is None:
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        return value
    # Indexed by nothing, a number is one of numpy, and an array itself.
    return array[()] if array.dtype.kind in "iufb" else value


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
