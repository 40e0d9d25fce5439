"""One Parquet file of a conversion."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from datasets import Array2D, ClassLabel, Features, List
from datasets.arrow_writer import ParquetWriter

from hf_any3d.data.conversion.journal import sha256_of
from hf_any3d.data.conversion.statistics import SplitStatistics
from hf_any3d.data.files import PointCloudError
from hf_any3d.whole_files import not_written, publish, temporary_path


def checked_row(row: Mapping[str, object], features: Features) -> dict[str, object]:
    """Bring a row to the types of its columns.

    Args:
        row: a value for each column.
        features: the columns; Array2D ones are arrays (num_points, channels), a list `labels` has one class a point.

    Returns:
        The row with arrays of the declared types.

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
            value = int(_classes(name, _number_of(name, value, feature), feature)[0])
        elif isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
            value = _classes(name, np.asarray(value), feature.feature)
            if name == "labels" and value.shape != (len(row["points"]),):
                raise PointCloudError(
                    f"labels has shape {value.shape}; expected one of each of {len(row['points'])} points"
                )
        checked[name] = value
    return checked


def _array(name: str, value: object, feature: Array2D) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise PointCloudError(f"{name} has type {array.dtype}; expected numbers")
    rows, columns = feature.shape
    if array.ndim != 2 or array.shape[1] != columns or rows not in (None, len(array)):
        raise PointCloudError(f"{name} has shape {array.shape}; expected ({rows or 'points'}, {columns})")
    if not len(array):
        raise PointCloudError(f"{name} has no rows; expected at least 1 point")
    with np.errstate(over="ignore"):
        array = array.astype(feature.dtype)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise PointCloudError(f"{name} has NaN or infinite numbers in {bad.sum()} rows, the first is {bad.argmax()}")
    return array


def _number_of(name: str, value: object, feature: ClassLabel) -> np.ndarray:
    if isinstance(value, str):
        if value not in feature.names:
            raise PointCloudError(f"{name} is {value!r}; expected one of {', '.join(feature.names)}")
        return np.array([feature.str2int(value)])
    number = np.asarray(value)
    if number.size != 1:
        raise PointCloudError(f"{name} has shape {number.shape}; expected one number a cloud")
    return number.reshape(1)


def _classes(name: str, values: np.ndarray, feature: ClassLabel) -> np.ndarray:
    if values.dtype.kind not in "iub":
        raise PointCloudError(f"{name} has type {values.dtype}; expected whole numbers")
    wrong = (values < 0) | (values >= feature.num_classes)
    if wrong.any():
        raise PointCloudError(f"{name} is {values[wrong][0]}; expected 0 to {feature.num_classes - 1}")
    return values.astype(np.int64)


BUFFER_BYTES = 16 << 20
"""Rows are handed to Parquet when they are this large together: what bounds the memory of a conversion."""


class ShardWriter:
    """Write rows to a temporary file that gets its name when it is complete.

    Args:
        path: the file to be.
        features: the columns.

    Raises:
        OSError: the disk is full or cannot be written, in any method; names the shard, and nothing is left of it.
    """

    def __init__(self, path: Path, features: Features):
        self.path = path
        self.features = features
        self.statistics = SplitStatistics()
        self.num_bytes = 0
        self._buffered = 0
        self._temporary = temporary_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer: ParquetWriter | None = None
        self._guarded(self._open)

    def add(self, row: Mapping[str, object]) -> None:
        """Write one checked row."""
        size = sum(_size(value) for value in row.values())
        self.num_bytes += size
        self._buffered += size
        self.statistics.add(row, self.features)
        self._guarded(self._writer.write, dict(row))
        if self._buffered >= BUFFER_BYTES:
            self._guarded(self._writer.write_examples_on_file)
            self._buffered = 0

    def finish(self) -> tuple[int, str]:
        """Complete the file; gives its size in bytes and its SHA-256."""
        self._guarded(self._writer.finalize)
        size, sha256 = self._temporary.stat().st_size, sha256_of(self._temporary)
        self._guarded(publish, self._temporary, self.path)
        return size, sha256

    def discard(self) -> None:
        """Leave nothing behind."""
        try:
            if self._writer is not None:
                self._writer.close()
        except Exception:  # what cannot be closed cannot be kept either
            pass
        self._temporary.unlink(missing_ok=True)

    def _open(self) -> None:
        self._writer = ParquetWriter(features=self.features, path=str(self._temporary))

    def _guarded(self, function, *arguments) -> None:
        try:
            function(*arguments)
        except OSError as error:
            self.discard()
            raise not_written(self.path, error) from error
        except BaseException:
            self.discard()
            raise


def _size(value: object) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return len(value) if isinstance(value, (str, bytes)) else 8
