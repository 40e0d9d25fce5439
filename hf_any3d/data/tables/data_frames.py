"""Tables of pandas, polars and pyarrow as clouds. None of these packages is imported here, nor need be installed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.data.files.attributes import by_name
from hf_any3d.data.files.column_names import fields_of, names_in_degrees
from hf_any3d.data.files.source import Source

_TABLES = {"pandas.DataFrame", "polars.DataFrame", "polars.LazyFrame", "pyarrow.Table", "pyarrow.RecordBatch"}
_COLUMNS = {"pandas.Series", "polars.Series", "pyarrow.Array", "pyarrow.ChunkedArray"}
# Columns whose cells are a cloud each.
_OF_CLOUDS = ("points", "path", "bytes")


def is_table(value: Any) -> bool:
    """Return whether a value is a data frame, or a table of pyarrow."""
    return not _TABLES.isdisjoint(_kinds(value))


def without_tables(value: Any) -> Any:
    """Return the clouds of a table or column as plain Python objects; anything else unchanged.

    A table with a column `points`, `path` or `bytes` has a cloud in each row, and becomes a list of dicts; any other
    is one cloud, with a point in each row, and becomes one by the names of its columns, as a CSV file would. A column
    becomes a list, a row of a data frame a dict.

    Raises:
        PointCloudError: A table has neither such a column nor x, y and z.
    """
    if not _COLUMNS.isdisjoint(_kinds(value)):
        # A row of a data frame is a column, too.
        index: Any = () if hasattr(value, "to_pylist") else getattr(value, "index", ())
        if any(name in index for name in _OF_CLOUDS):
            return {name: _cell(value[name]) for name in index}
        return [_cell(cell) for cell in (value.to_pylist() if hasattr(value, "to_pylist") else value)]
    if not is_table(value):
        return value
    columns = _columns(value)
    if any(name in columns for name in _OF_CLOUDS):
        cells = {name: list(map(_cell, values)) for name, values in columns.items()}
        return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    numbers = {name: _as_numbers(values) for name, values in columns.items()}
    if all(isinstance(name, (int, np.integer)) for name in numbers):
        # Read without a line of names.
        rows = [column for column in numbers.values() if column is not None]
        return np.stack(rows, axis=1) if len(rows) > 2 else _refused(columns)
    source = Source("a table", b"", "table")
    source.leave_out([str(name) for name, column in numbers.items() if column is None], "words, not numbers")
    # Lazy frames, which look their names up, have each once.
    if not hasattr(value, "collect"):
        source.note_columns(map(str, value.column_names if hasattr(value, "column_names") else value.columns))
    found = {str(name): column for name, column in numbers.items() if column is not None}
    if "points" not in fields_of(found) and not names_in_degrees(found):
        _refused(columns)
    cloud = PointCloudData(**by_name(found, source))
    source.tell_left_out()
    return cloud


def _refused(columns: Mapping) -> Any:
    found = ", ".join(map(repr, columns)) or "nothing"
    raise PointCloudError(
        f"a table with {found}; expected columns x, y and z, or points or path for a cloud in each row"
    )


def _kinds(value: Any) -> set[str]:
    kinds = type(value).__mro__
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in kinds if kind is not object}


def _columns(table: Any) -> dict[Any, Any]:
    """Return the columns of a table, as arrays or, where cells are nested, as lists."""
    if hasattr(table, "collect"):  # a frame of polars that is computed when needed
        table = table.collect()
    names = table.column_names if hasattr(table, "column_names") else list(table.columns)
    columns = {}
    for name in names:
        # Of two columns of one name the first, which is refused where it is read.
        column = table.column(names.index(name)) if hasattr(table, "column_names") else table[name]
        column = column.iloc[:, 0] if hasattr(column, "iloc") and column.ndim > 1 else column
        is_nested = hasattr(column, "to_pylist") and "list" in str(column.type)
        if is_nested:
            columns[name] = column.to_pylist()
        elif hasattr(column, "chunks"):
            columns[name] = column.to_numpy()
        elif hasattr(column, "to_pylist"):
            columns[name] = column.to_numpy(zero_copy_only=False)
        else:
            columns[name] = column.to_numpy()
    return columns


def _as_numbers(values: Any) -> np.ndarray | None:
    """Return a column of numbers, with NaN for missing ones; None of anything else."""
    array = np.asarray(values)
    if array.dtype.kind in "iufb":
        return array
    if array.dtype != object or any(isinstance(value, (str, bytes)) for value in array):
        return None
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError):
        return None


def _cell(value: Any) -> Any:
    # Points of a cell may be an array of arrays.
    return value.tolist() if isinstance(value, np.ndarray) and value.dtype == object else value
