"""Torch datasets over `datasets.Dataset`: rows read directly from Arrow buffers, and augmented rows."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Array2D, Dataset, Features, IterableDataset

from hf_any3d.data.epochs import SharedEpoch, seed_all, states_kept
from hf_any3d.data.options import require_columns
from hf_any3d.data.point_arrays import stack_channels
from hf_any3d.data.tables.numpy_rows import choose_columns, columns_of, has_own_rows, numpy_rows, usual_types
from hf_any3d.data.transforms import Transform

Reader = Callable[[int], Any]
"""Returns the value of a column in a row of one chunk."""


class ArrowRows(torch.utils.data.Dataset):
    """The rows of `dataset.with_format("numpy")`, with float64 kept, without building a table for each.

    Clouds (Array2D columns of floats) are read-only views of the dataset's memory, or of its memory-mapped file, so
    that reading a row takes the same time whatever the size of its cloud. Columns of other types, and columns with
    missing values, are read through `datasets`; so are all rows of a dataset with a transform of its own, row by row.

    Attributes:
        are_own: Rows are not the stored ones, see `has_own_rows`.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = numpy_rows(dataset)
        self.are_own = has_own_rows(dataset)
        self._columns, self._size = dataset.column_names, len(dataset)  # `datasets` recomputes them at each call
        # A shuffled or selected dataset keeps its table, and a list of row numbers.
        self._order = None if dataset._indices is None else dataset._indices.column(0).to_numpy()
        self._chunks: dict[str, ColumnChunks] = {}
        for name, feature in dataset.features.items() if not self.are_own else ():
            chunks = ColumnChunks.of(dataset.data.column(name), feature)
            if chunks is not None:
                self._chunks[name] = chunks
        rest = [name for name in self._columns if name not in self._chunks]
        self._rest = self.dataset.select_columns(rest) if rest else None

    def __reduce__(self):
        # A pickle would copy the views; of a memory-mapped dataset it has only the path.
        return ArrowRows, (self.dataset,)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row, its columns in the order of the dataset."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows of a batch, as DataLoader requests them."""
        for index in indices:
            if not -self._size <= index < self._size:
                raise IndexError(f"row {index} of {self._size}")
        places = [index % self._size for index in indices]
        if self.are_own:
            return [self._checked(usual_types(self.dataset[place]), place) for place in places]
        if self._rest is None:
            return [self._read(place, {}) for place in places]
        # `datasets` builds a table for each call, so columns of other types are read for the whole batch.
        rest = self._rest.__getitems__(places) if len(places) > 1 else [self._rest[place] for place in places]
        return [self._read(place, usual_types(row)) for place, row in zip(places, rest, strict=True)]

    def _read(self, place: int, rest: dict[str, Any]) -> dict[str, Any]:
        number = place if self._order is None else int(self._order[place])
        row = {name: self._chunks[name].read(number) if name in self._chunks else rest[name] for name in self._columns}
        return self._checked(row, place)

    def _checked(self, row: dict[str, Any], place: int) -> dict[str, Any]:
        if "points" in row:
            refuse_without_points(row["points"], f"row {place}")
        return row


def refuse_without_points(points: Any, name: str) -> None:
    """Raise a ValueError that names a row whose `points` are null or empty, or null or not finite at some point.

    Not an IndexError, as numpy would: by that, Python ends a loop over rows.
    """
    if isinstance(points, Mapping):
        return  # a file of a `PointCloud` column, which its reader checks
    # `datasets` reads null as None or NaN, by the type of the column, and a null point as an object.
    array = np.asarray(points)
    is_complete = array.ndim > 0 and len(array) > 0 and array.dtype.kind in "fiub"
    if not is_complete or not np.isfinite(array).all():
        raise ValueError(f"{name} has no points, or null, NaN or infinite ones; leave it out (`dataset.filter`)")


class AugmentedDataset(torch.utils.data.Dataset):
    """A dataset with augmented points, for Trainer's `train_dataset`.

    The augmentation belongs to the training rows rather than to the collator, which Trainer uses for evaluation too.
    A row has `points`, the extra columns and `label` or `labels` if there is one; `points` and the extra columns are
    transformed together and returned as separate float32 columns. Rows are read as the dataset gives them, with its
    own transform and format.

    Trainer sets the epoch, also in several processes and when it resumes within an epoch. What a transform draws from
    torch, numpy or `random` then depends on seed, epoch and row alone, so that a resumed run sees the same clouds as
    an uninterrupted one, with any number of workers. Before, it depends on torch's state.

    Of a stream, it is an `IterableDataset` of torch. There the points of a row and its place in the stream stand in
    for its number. Trainer cannot resume in a later pass of a stream that ends; use `dataset.repeat(None)`.

    Args:
        dataset: rows with a column `points`: of `datasets`, streamed or not, a dataset of torch such as a `Subset`, or
            a list of rows. Array2D is read many times faster than nested lists.
        transform: called with one cloud (num_points, channels).
        extra_columns: columns of the points, such as "normals" (channels 3, 4, 5 of the transform) or "colors"
            (integers are scaled to [0, 1]).
        seed: of the augmentation.

    Raises:
        TypeError: `dataset` is none of these, such as a `DatasetDict`.
        ValueError: It lacks a column.
    """

    epoch = SharedEpoch()

    def __new__(cls, dataset: Any = None, *args: Any, **kwargs: Any) -> AugmentedDataset:
        """Make an `AugmentedStream` of a stream."""
        return super().__new__(AugmentedStream if cls is AugmentedDataset and _is_stream(dataset) else cls)

    def __init__(self, dataset: Any, transform: Transform, extra_columns: Sequence[str] = (), seed: int = 0):
        self.array_columns = ("points", *extra_columns)
        self.rows: Any = self._open(dataset)
        self.transform = transform
        self.seed = seed
        self.epoch = -1

    def _open(self, dataset: Any) -> Any:
        if isinstance(dataset, torch.utils.data.Subset) and isinstance(dataset.dataset, Dataset):
            dataset = dataset.dataset.select([int(index) for index in dataset.indices])
        if isinstance(dataset, Dataset):
            return ArrowRows(choose_columns(dataset, self._columns(columns_of(dataset))))
        is_sequence = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if not is_sequence or isinstance(dataset, (Mapping, str, bytes)):
            raise TypeError(f"dataset is a {type(dataset).__name__}; {_EXPECTED}")
        if len(dataset):
            with states_kept():
                try:
                    first = dataset[0]
                except LookupError as error:  # a data frame, whose columns are read by name
                    raise TypeError(f"dataset is a {type(dataset).__name__}; {_EXPECTED}") from error
            self._columns(_names(first))
        return dataset

    def _columns(self, names: Iterable[str]) -> list[str]:
        """Return the columns to read, of those that there are."""
        names = list(names)
        require_columns(self.array_columns, names)
        return [*self.array_columns, *(name for name in ("label", "labels") if name in names)]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of random choices; called by Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """Return the rows of a batch, as DataLoader requests them."""
        places = range(len(self))
        numbers = [places[index] for index in indices]
        # Stored rows are the same at each reading, and are read faster together.
        is_stored = isinstance(self.rows, ArrowRows) and not self.rows.are_own
        read = self.rows.__getitems__(numbers) if is_stored else map(self.rows.__getitem__, numbers)
        epoch = self.epoch
        if epoch < 0:
            return [self._augment(row) for row in read]
        augmented = []
        with states_kept():
            rows = iter(read)
            for number in numbers:
                seed_all(self.seed, epoch, number)
                augmented.append(self._augment(next(rows)))
        return augmented

    def _augment(self, row: Any) -> dict:
        row = {name: row[name] for name in self._columns(_names(row))}
        # A copy, since rows are views of the dataset's memory and a transform may write.
        cloud = self.transform(np.array(stack_channels(row, self.array_columns[1:])))  # (num_points, channels)
        # Where the channels of each column end in the joined cloud.
        shapes = [np.shape(row[name]) for name in self.array_columns]
        ends = np.cumsum([1 if len(shape) == 1 else shape[1] for shape in shapes])
        parts = np.split(cloud, ends[:-1], axis=1)
        for name, shape, part in zip(self.array_columns, shapes, parts, strict=True):
            # A column of one number for each point, such as intensities, stays one.
            row[name] = part[:, 0] if len(shape) == 1 else part
        return row


class AugmentedStream(AugmentedDataset, torch.utils.data.IterableDataset):
    """`AugmentedDataset` of a stream, read in order."""

    def _open(self, dataset: Any) -> Any:
        self._features: Features | None = None
        if not isinstance(dataset, IterableDataset):
            return dataset
        if dataset.column_names is not None:
            dataset = dataset.select_columns(self._columns(dataset.column_names))
        self._features = dataset.features
        # Other formats decode every number of every cloud separately.
        return dataset if self._features is None else dataset.with_format("arrow")

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of random choices, and of shuffling; called by Trainer."""
        super().set_epoch(epoch)
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict:
        raise TypeError("rows of a stream have no numbers; expected a loop over them")

    def __iter__(self) -> Iterator[dict]:
        epoch = self.epoch
        for place, given in enumerate(self.rows):
            row = given
            if isinstance(given, pa.Table):
                assert self._features is not None
                row = (read_table(given.combine_chunks(), self._features) or given.to_pylist())[0]
            if "points" in _names(row):
                refuse_without_points(row["points"], f"row {place} of the stream")
            if epoch < 0:
                yield self._augment(row)
                continue
            with states_kept():
                points = np.ascontiguousarray(stack_channels(row))
                # Equal clouds, such as those of a class that is repeated, are augmented each in its own way.
                seed_all(self.seed, epoch, zlib.crc32(points.data), place)
                augmented = self._augment(row)
            yield augmented


_EXPECTED = "expected rows that are read by number or in order, such as dataset['train'], a Subset or a list of dicts"


def _is_stream(dataset: Any) -> bool:
    """Return whether rows can be read again and again, but in order alone."""
    if isinstance(dataset, (IterableDataset, torch.utils.data.IterableDataset)):
        return True
    # A generator could be read once only.
    return (
        isinstance(dataset, Iterable)
        and not isinstance(dataset, (Iterator, Mapping))
        and not hasattr(dataset, "__getitem__")
    )


def _names(row: Any) -> Iterable[str]:
    if not isinstance(row, Mapping):
        raise TypeError(f"a row is a {type(row).__name__}; expected a mapping with 'points'")
    return row


class ColumnChunks:
    """The chunks of a column, each with a function that reads one of its rows."""

    def __init__(self, starts: np.ndarray, readers: list[Reader]):
        # The number of the first row of each chunk, and the number of rows: (chunks + 1,).
        self.starts = starts
        self.readers = readers

    @classmethod
    def of(cls, column: pa.ChunkedArray, feature: Any) -> ColumnChunks | None:
        """Return the chunks of a column, or None if its type or missing values need `datasets`."""
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        readers = [reader for chunk in chunks if (reader := _reader(chunk, feature)) is not None]
        if len(readers) < len(chunks):
            return None
        return cls(np.cumsum([0, *map(len, chunks)]), readers)

    def read(self, number: int) -> Any:
        """Return the value of row `number`, counted from 0."""
        # The last chunk that starts at or before the row.
        chunk = int(self.starts.searchsorted(number, side="right")) - 1
        return self.readers[chunk](number - int(self.starts[chunk]))


def read_table(table: pa.Table, features: Features) -> list[dict[str, Any]] | None:
    """Return the rows of a table as `ArrowRows` does, or None if a column needs `datasets`."""
    columns = {}
    for name in table.column_names:
        columns[name] = ColumnChunks.of(table.column(name), features[name])
        if columns[name] is None:
            return None
    return [{name: column.read(number) for name, column in columns.items()} for number in range(len(table))]


def _reader(chunk: pa.Array, feature: Any) -> Reader | None:
    # A missing value has no number in the buffer.
    if chunk.null_count or not (isinstance(feature, Array2D) or pa.types.is_integer(chunk.type)):
        return None
    if not isinstance(feature, Array2D):
        numbers_of_rows = chunk.to_numpy()
        return lambda number: np.int64(numbers_of_rows[number])
    outer = chunk.storage
    channels = feature.shape[1]
    inner = outer.values  # of the complete column, also for slices; the offsets locate the rows
    if inner.null_count or inner.values.null_count:
        return None
    numbers = inner.values.type
    if not (pa.types.is_integer(numbers) or pa.types.is_float32(numbers) or pa.types.is_float64(numbers)):
        return None
    values = inner.values.to_numpy()
    # As in the numpy format, which would round float64 too
    dtype = np.int64 if pa.types.is_integer(numbers) else values.dtype
    first_point = outer.offsets.to_numpy()
    first_value = inner.offsets.to_numpy()

    def read(number: int) -> np.ndarray:
        start = first_value[first_point[number]]
        stop = first_value[first_point[number + 1]]
        return values[start:stop].reshape(-1, channels).astype(dtype, copy=False)  # (num_points, channels)

    return read
