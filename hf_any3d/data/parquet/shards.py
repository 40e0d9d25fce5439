"""Write the rows of a split as Parquet shards, in steps that an interruption does not undo."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from datasets import Array2D, ClassLabel, Features, List
from datasets.arrow_writer import ParquetWriter
from tqdm.auto import tqdm

from hf_any3d.atomic_files import publish, temporary_path, write_error, write_json
from hf_any3d.data.files import PointCloudError
from hf_any3d.data.parquet.journal import ShardChecks, ShardRecord, finished_shards, record_path
from hf_any3d.data.parquet.published_dataset import SplitSource
from hf_any3d.modeling.file_stamps import sha256_of

T = TypeVar("T")

IGNORED = -100
"""Label of a point that no loss and no metric counts."""
logger = logging.getLogger(__name__)

SHARD_BYTES = 128 << 20
"""Size of the uncompressed rows at which a shard is closed."""

BUFFER_BYTES = 16 << 20
"""Size of the rows that are passed to Parquet together; bounds the memory of a conversion."""


class ParquetRows:
    """A Parquet file that rows are written to one by one, for programs of any kind; a context manager that closes it.

    Args:
        path: the file.
        features: the columns.

    Attributes:
        num_bytes: size of the rows, uncompressed.
    """

    def __init__(self, path: Path, features: Features):
        self.num_bytes = self._buffered = 0
        self._writer = ParquetWriter(features=features, path=str(path))

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        size = sum(_size(value) for value in row.values())
        self.num_bytes += size
        self._buffered += size
        self._writer.write(dict(row))
        # By bytes, not by rows, whose sizes differ by a factor of a thousand.
        if self._buffered >= BUFFER_BYTES:
            self._writer.write_examples_on_file()
            self._buffered = 0

    def finish(self) -> None:
        """Write what is left, and the end of the file."""
        self._writer.finalize()

    def __enter__(self) -> "ParquetRows":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()


def convert_split(
    source: SplitSource,
    split: str,
    features: Features,
    folder: Path,
    checks: ShardChecks,
    *,
    skip: bool,
    progress: str,
) -> list[ShardRecord]:
    """Write the rows of a split as Parquet, or resume where an earlier call stopped.

    Args:
        source: the rows.
        split: its name.
        features: the columns.
        folder: gets `data/{split}-00000.parquet`, … and a record of each in `journal/`.
        checks: finds damaged shards, which are converted again.
        skip: leave out what cannot be read, with a warning, instead of stopping.
        progress: label of the progress bar.

    Returns:
        The record of each shard.

    Raises:
        PointCloudError: a unit that cannot be read or does not fit the columns.
        FileNotFoundError: a file of a unit no longer exists.
        OSError: a shard that cannot be written; shards written before are kept and not written again.
    """
    records = finished_shards(folder, split, len(source.units), checks)
    start = records[-1].stop if records else 0
    with tqdm(total=len(source.units), initial=start, desc=progress, unit=" pieces", disable=None) as bar:
        while start < len(source.units):
            path = folder / "data" / f"{split}-{len(records):05d}.parquet"
            record = _convert_shard(source, start, path, features, skip, bar)
            # Written after the shard: a shard without its record counts as not written.
            write_json(record_path(folder, split, len(records)), vars(record))
            records.append(record)
            checks.note(record)
            start = record.stop
    return records


def _convert_shard(
    source: SplitSource, start: int, path: Path, features: Features, skip: bool, bar: tqdm
) -> ShardRecord:
    skipped: list[str] = []
    shard = ShardWriter(path, features)
    try:
        for stop in range(start + 1, len(source.units) + 1):
            for row in _checked_rows(source, source.units[stop - 1], features, skipped if skip else None):
                shard.add(row)
            bar.update()
            # Only between units, so that a record names complete ones.
            if shard.num_bytes >= SHARD_BYTES:
                break
        size, sha256 = shard.finish()
    # Interruptions too: no unfinished file stays behind.
    except BaseException:
        shard.discard()
        raise
    return ShardRecord(path.name, start, stop, size, skipped, shard.statistics.as_dict(), sha256)


def _checked_rows(
    source: SplitSource, unit: Any, features: Features, skipped: list[str] | None
) -> Iterator[dict[str, Any]]:
    """Yield the checked rows of a unit; append errors to `skipped`, or raise them if it is None."""

    def failed(error: Exception) -> None:
        if skipped is None:
            raise error
        logger.warning("left out %s", error)
        skipped.append(str(error))

    try:
        # A row that does not fit costs only itself; an error while reading ends the unit.
        for number, row in enumerate(source.read(unit)):
            try:
                checked = checked_row(row, features)
            except PointCloudError as error:
                failed(PointCloudError(f"{source.describe(unit)}, row {number}: {error}"))
                continue
            yield checked
    except (PointCloudError, FileNotFoundError) as error:
        failed(error)


class ShardWriter:
    """Write rows to a temporary file that is renamed when complete.

    Every method raises OSError, which names the shard and leaves nothing of it, if the disk is full or not writable.

    Args:
        path: the final file.
        features: the columns.
    """

    def __init__(self, path: Path, features: Features):
        self.path = path
        self.features = features
        self.statistics = SplitStatistics()
        self._temporary = temporary_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = self._guarded(ParquetRows, self._temporary, features)

    @property
    def num_bytes(self) -> int:
        """Size of the rows, uncompressed."""
        return self._rows.num_bytes

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one checked row."""
        self.statistics.add(row, self.features)
        self._guarded(self._rows.add, row)

    def finish(self) -> tuple[int, str]:
        """Complete the file and return its size in bytes and its SHA-256."""
        self._guarded(self._rows.finish)
        size, sha256 = self._temporary.stat().st_size, sha256_of(self._temporary)
        self._guarded(publish, self._temporary, self.path)
        return size, sha256

    def discard(self) -> None:
        """Remove the temporary file."""
        try:
            self._rows.__exit__()
        except Exception:  # never opened, or removed below anyway
            pass
        self._temporary.unlink(missing_ok=True)

    def _guarded(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return function(*arguments)
        except OSError as error:
            self.discard()
            raise write_error(self.path, error) from error
        except BaseException:
            self.discard()
            raise


@dataclass
class SplitStatistics:
    """Statistics that are updated row by row and can be merged.

    Attributes:
        num_rows: number of clouds.
        num_points: points of all clouds together.
        fewest: points of the smallest cloud.
        most: points of the largest cloud.
        lower: smallest x, y and z of all points.
        upper: largest x, y and z of all points.
        labels: class name -> number of clouds, if there is a ClassLabel column `label`.
    """

    num_rows: int = 0
    num_points: int = 0
    fewest: int | None = None
    most: int | None = None
    lower: list[float] | None = None
    upper: list[float] | None = None
    labels: Counter = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any], features: Features) -> None:
        """Count one row, with `points` (num_points, 3 or more) where the dataset has that column."""
        one = SplitStatistics(num_rows=1)
        if "points" in row:
            points = np.asarray(row["points"])
            one.num_points = one.fewest = one.most = len(points)
            one.lower, one.upper = points[:, :3].min(0).tolist(), points[:, :3].max(0).tolist()
        feature = features.get("label")
        if isinstance(feature, ClassLabel):
            one.labels[feature.int2str(int(row["label"]))] = 1
        self.merge(one)

    def merge(self, other: "SplitStatistics") -> None:
        """Add the rows counted by `other`."""
        self.num_rows += other.num_rows
        self.num_points += other.num_points
        self.labels.update(other.labels)
        for name, choose in (("fewest", min), ("most", max)):
            known = [value for value in (getattr(self, name), getattr(other, name)) if value is not None]
            # None stands for no cloud yet, which `min` and `max` do not take.
            setattr(self, name, choose(known) if known else None)
        for name, choose in (("lower", min), ("upper", max)):
            known = [value for value in (getattr(self, name), getattr(other, name)) if value is not None]
            # Axis by axis. Nothing known gives an empty list, and thus None.
            setattr(self, name, [choose(values) for values in zip(*known, strict=True)] or None)

    def as_dict(self) -> dict:
        """Return the entry of a split in `meta/stats.json`."""
        described: dict = {"num_rows": self.num_rows}
        if self.fewest is not None:
            mean = round(self.num_points / self.num_rows, 3)
            described["points_per_cloud"] = {"min": self.fewest, "mean": mean, "max": self.most}
            described["num_points"] = self.num_points
            described["bounds"] = {"min": self.lower, "max": self.upper}
        if self.labels:
            described["labels"] = dict(sorted(self.labels.items()))
        return described

    @classmethod
    def from_dict(cls, described: Mapping) -> "SplitStatistics":
        """Restore statistics from `as_dict`."""
        sizes, bounds = described.get("points_per_cloud", {}), described.get("bounds", {})
        extremes = (sizes.get("min"), sizes.get("max"), bounds.get("min"), bounds.get("max"))
        labels = Counter(described.get("labels", {}))
        return cls(described["num_rows"], described.get("num_points", 0), *extremes, labels)


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


def _size(value: object) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    # Roughly: sizes only decide when a buffer is written and a shard closed.
    return len(value) if isinstance(value, (str, bytes)) else 8
