"""Rows of datasets without points or without a label: found in Arrow's buffers, left out with a word."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from hf_any3d.data.feature import PointCloud
from hf_any3d.utils.messages import listed

_MOST_NAMED = 10


def rows_with_points(rows: Dataset, where: str, column: str = "points") -> Dataset:
    """Return rows without those whose cloud, or a point of it, is null, or that have no points; a warning names them.

    Args:
        rows: Rows with a column of nested lists of any type, Array2D or files; others are returned unchanged.
        where: Origin and split of the rows, for the warning.
        column: Name of the column.

    Raises:
        ValueError: No row has points.
    """
    if column not in rows.column_names:
        return rows
    chunks = rows.data.column(column).chunks
    are_missing = np.concatenate([np.zeros(0, dtype=bool), *map(_have_nulls, chunks)])
    # A shuffled or selected dataset keeps its table, and a list of row numbers.
    if rows._indices is not None:
        are_missing = are_missing[rows._indices.column(0).to_numpy()]
    return _without(rows, are_missing, f"{where}: %s no points (null or empty)")


def labeled_rows(rows: Dataset, where: str) -> Dataset:
    """Return rows without those whose class `label` is -1, the hub's "no label", or null; a warning names them.

    Raises:
        ValueError: No row has a label.
    """
    if not isinstance(rows.features.get("label"), ClassLabel):
        return rows
    return _without(rows, ~are_labeled(rows), f"{where}: %s no label (-1 or null)")


def are_labeled(rows: Dataset) -> np.ndarray:
    """Return which rows have a class, (rows,): neither -1 nor null."""
    labels = rows.with_format(None)["label"][:]
    return np.array([label is not None and label >= 0 for label in labels], dtype=bool)


def _without(rows: Dataset, are_missing: np.ndarray, text: str) -> Dataset:
    """Return rows without missing ones; `%s` in the text of the warning is replaced by their number."""
    missing = np.flatnonzero(are_missing)
    if not len(missing):
        return rows
    if len(missing) == len(rows):
        raise ValueError(text % f"all {len(rows):,} rows have")
    verb = "has" if len(missing) == 1 else "have"
    count = text % f"{len(missing):,} of {len(rows):,} rows {verb}"
    warnings.warn(f"{count}, left out: row {listed(missing.tolist(), _MOST_NAMED)} (counted from 0)", stacklevel=4)
    return rows.select(np.flatnonzero(~are_missing))


def _have_nulls(array: pa.Array) -> np.ndarray:
    """Return which values are null, are empty lists, or have such values within, (values,)."""
    storage = array.storage if isinstance(array, pa.ExtensionArray) else array
    are_null = storage.is_null().to_numpy(zero_copy_only=False)
    if storage.type == PointCloud.pa_type:
        # A file with neither bytes nor path is none.
        fields = [storage.field(name).is_null().to_numpy(zero_copy_only=False) for name in ("bytes", "path")]
        return are_null | (fields[0] & fields[1])
    if not _is_list(storage.type):
        return are_null
    # Functions of Arrow by their names, as type checkers do not know them.
    lengths = pc.call_function("list_value_length", [storage]).fill_null(0).to_numpy(zero_copy_only=False)
    are_null = are_null | (lengths == 0)
    values = storage.flatten()
    # Nearly no column has nulls; numbers without any are not looked at.
    if values.null_count or _is_list(values.type):
        owners = pc.call_function("list_parent_indices", [storage]).to_numpy(zero_copy_only=False)
        are_null[owners[_have_nulls(values)]] = True
    return are_null


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
