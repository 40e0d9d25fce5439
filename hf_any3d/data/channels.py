"""One array (num_points, channels) out of the columns of a dataset row."""

from collections.abc import Mapping, Sequence

import numpy as np


def stack_channels(row: Mapping, extra_columns: Sequence[str] = ()) -> np.ndarray:
    """Join `points` and further columns of a row, such as colours and normals, along the channels.

    Args:
        row: columns as arrays, tensors or nested lists; `points` is (num_points, 3 or more).
        extra_columns: columns (num_points, c) appended in this order; colours stored as integers go from 0..255 to
            [0, 1].

    Returns:
        (num_points, channels) float32, xyz first.

    Raises:
        ValueError: a column that is missing, has another shape or another number of points.
    """
    columns: list[np.ndarray] = []
    for name in ("points", *extra_columns):
        if name not in row:
            raise ValueError(f"no column {name!r}; there are {', '.join(map(str, row)) or 'none'}")
        values = np.asarray(row[name])
        least = 3 if name == "points" else 1
        if values.ndim != 2 or values.shape[1] < least or len(values) == 0:
            raise ValueError(f"{name} has shape {values.shape}; expected (num_points >= 1, channels >= {least})")
        if columns and len(values) != len(columns[0]):
            raise ValueError(f"{name} has {len(values)} rows; points has {len(columns[0])}")
        if name == "colors" and values.dtype.kind in "iu":
            values = values / np.float32(255)
        columns.append(values.astype(np.float32, copy=False))
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
