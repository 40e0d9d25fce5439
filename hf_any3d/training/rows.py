"""Rows of a dataset as model inputs: prepared by the processor, then augmented.

All rows of trainings that are read by number are `PreparedRows`; streamed ones are `StreamedRows`.
"""

import copy
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset
from datasets.distributed import split_dataset_by_node
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_any3d.data.epochs import SharedEpoch
from hf_any3d.data.inputs import ATTRIBUTES, first_channel, to_cloud
from hf_any3d.data.tables.numpy_rows import choose_columns, columns_of, numpy_rows
from hf_any3d.data.torch_datasets import ArrowRows, read_table, refuse_without_points
from hf_any3d.data.transforms import (
    Compose,
    GlobalRotScaleTrans,
    RandomFlip,
    RandomRotation,
    RandomScale,
    RandomUpAxis,
    build_transform,
)
from hf_any3d.processing.point_clouds import HOW_TO_ESTIMATE, PointCloudProcessor

READ_TOGETHER = 32
"""Streamed rows that are decoded and prepared together."""
# Settings of transforms that are about an axis.
_AXES = {"rotate": "axis", "up": "up_axis", "flip": "up_axis", "rot_scale_trans": "up_axis"}
_WITH_NORMALS = (GlobalRotScaleTrans, RandomFlip, RandomRotation, RandomScale, RandomUpAxis)


def class_names(rows: Dataset, origin: str = "the training split") -> list[str]:
    """Return the names of the classes of rows with `label`; an error names their origin."""
    label = rows.features.get("label")
    if not isinstance(label, ClassLabel):
        raise ValueError(f"{origin}: label is {label}; expected a ClassLabel, text or whole numbers from 0")
    return label.names


class PreparedRows(torch.utils.data.Dataset):
    """Rows that are prepared when they are read, one alone or those of a batch.

    A subclass has `__len__`, and either `prepare_row` or, where rows of a batch are read faster together, `prepare`.
    Random choices depend on numbers of rows and `epoch`, not on the order of reading, so that they are the same with
    any number of workers, and after resuming.
    """

    epoch = SharedEpoch()

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows of a batch, each as if read alone; called by DataLoader."""
        # Negative numbers count from the end; beyond it, IndexError ends Python's loops.
        places = range(len(self))
        return self.prepare([places[index] for index in indices])

    def prepare(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return the rows with these numbers, counted from 0."""
        return [self.prepare_row(number) for number in numbers]

    def prepare_row(self, number: int) -> dict[str, Any]:
        """Return the row with this number, counted from 0."""
        raise NotImplementedError


class ProcessedDataset(PreparedRows):
    """Rows `{"points": (num_points, channels), "label": …}`, prepared when they are read.

    Clouds are prepared by the processor that is saved with the model, so that training and evaluation have the same
    inputs as a pipeline, including the sampled points.

    With a `seed`, all random choices depend only on it, `epoch` and the row number: not on the number of worker
    processes or on interruptions.

    Args:
        dataset: Rows with `points`, the columns that the processor's features need, and `label` if there is one.
        processor: Processor of the clouds.
        transform: Applied to each processed cloud.
        seed: Seed of points and augmentation, which differ in each epoch; None for the processor's seed.
        whole: Apply the transform to complete clouds as stored, instead of the processor; it must return `num_points`
            points.
    """

    # Columns to keep in addition to the points, if the dataset has them.
    label_columns: tuple[str, ...] = ("label",)

    def __init__(
        self,
        dataset: Dataset,
        processor: PointCloudProcessor,
        transform: Compose | None = None,
        seed: int | None = None,
        whole: bool = False,
    ):
        columns = _columns(columns_of(dataset), processor, self.label_columns)
        self.dataset = numpy_rows(choose_columns(dataset, columns))
        self.rows = ArrowRows(self.dataset)
        self.processor = processor
        self.transform = transform
        self.seed = seed
        self.whole = whole
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def prepare(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return the rows with these numbers, prepared together."""
        rows = self.rows.__getitems__(numbers)
        for number, row in zip(numbers, rows, strict=True):
            _refuse_without_label(row, self.dataset.features, f"row {number}")
        keys = None
        if self.seed is not None:
            keys = [(self.seed, self.epoch, number) for number in numbers]
        clouds = prepare_clouds(rows, self.processor, self.transform, keys, self.whole)
        return [
            {"points": points, **{name: row[name] for name in self.label_columns if name in row}}
            for points, row in zip(clouds, rows, strict=True)
        ]


def _refuse_without_label(row: dict[str, Any], features: Features, name: str) -> None:
    """Raise a ValueError that names a row whose `label` is null, or -1 as a class: it would be learned as another."""
    if "label" not in row:
        return
    label = row["label"]
    # `datasets` reads null as None or NaN; numbers that are no classes may be negative.
    is_class = isinstance(features.get("label"), ClassLabel)
    if label is None or label != label or (is_class and label < 0):
        raise ValueError(f"{name} has no label ({label}); leave it out (`dataset.filter`)")


def prepare_clouds(
    rows: Sequence[dict[str, Any]],
    processor: PointCloudProcessor,
    transform: Compose | None = None,
    keys: Sequence[tuple[int, ...]] | None = None,
    whole: bool = False,
) -> list[np.ndarray]:
    """Prepare clouds for training: sampled and augmented, each (num_points, channels) float32.

    Non-negative integers for each row, its keys, seed all random choices; without them it is the processor's seed.
    With `whole`, the transform is applied to complete clouds, instead of the processor.
    """
    seeded = None if keys is None else [np.random.default_rng(key) for key in keys]
    # Drawn before the augmentation uses the generator, so that another augmentation leaves the sampled points the
    # same.
    drawn = None if seeded is None else [int(generator.integers(2**31)) for generator in seeded]
    if whole:
        clouds = [whole_cloud(row, processor.features) for row in rows]
    else:
        clouds = list(processor(rows, seed=drawn, return_tensors="np")["points"])  # each (num_points, channels)
    if transform is not None:
        generators = seeded or [None] * len(rows)
        clouds = [transform(cloud, generator) for cloud, generator in zip(clouds, generators, strict=True)]
    for cloud in clouds:
        if len(cloud) != processor.num_points and whole:
            raise ValueError(f"transforms gave {len(cloud)} points; add subsample:num_points={processor.num_points}")
    return clouds


def whole_cloud(row: dict[str, Any], features: Sequence[str]) -> np.ndarray:
    """Return a row's complete cloud, `(points, channels)` with the channels of `features`."""
    cloud = to_cloud(row, features)
    columns = [cloud.points, *(getattr(cloud, ATTRIBUTES[name]) for name in features[1:])]
    missing = [name for name, column in zip(features, columns, strict=True) if column is None]
    if missing:
        hint = f"; {HOW_TO_ESTIMATE}" if "normals" in missing else ""
        raise ValueError(f"a row has no {ATTRIBUTES[missing[0]]}, which features {', '.join(features)} require{hint}")
    return np.concatenate([column.reshape(len(cloud), -1) for column in columns], axis=1, dtype=np.float32)


class EpochCallback(TrainerCallback):
    """Set the epoch of training rows; required in the `callbacks` of a Trainer with such rows."""

    def __init__(self, rows: Any):
        self.rows = rows

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch before its first batch is read, also when a run is resumed within an epoch."""
        # A resumed run computes the epoch by division, which may round 3 to 2.9999.
        self.rows.epoch = int(state.epoch + 1e-6)


def training_rows(
    dataset: Dataset,
    processor: PointCloudProcessor,
    augment: Sequence[str] = (),
    *,
    seed: int = 0,
    whole: bool = False,
) -> ProcessedDataset:
    """Return training rows: other points of larger clouds in each epoch, and augmentation.

    Transforms are those of `build_transform`; rotations are about the processor's up axis unless they name one, and
    normals are rotated too. The other arguments are those of `ProcessedDataset`.
    """
    return ProcessedDataset(dataset, processor, training_transform(processor, augment), seed, whole)


def training_transform(processor: PointCloudProcessor, augment: Sequence[str]) -> Compose | None:
    """Build the augmentation for the processor's up axis and features; None if `augment` is empty."""
    if not augment:
        return None
    texts = []
    for text in augment:
        name, _, settings = text.partition(":")
        axis = _AXES.get(name.strip())
        # A transform that names an axis keeps it.
        if axis is not None and not any(part.split("=")[0].strip() == axis for part in settings.split(",")):
            text = f"{name}:{axis}={processor.up_axis}" + (f",{settings}" if settings else "")
        texts.append(text)
    transform = build_transform(texts)
    if "normals" in processor.features:
        # Normals turn and scale with their points, so the transforms have to know their channels.
        first = first_channel(processor.features, "normals")
        for part in transform.transforms:
            if isinstance(part, _WITH_NORMALS) and part.normals_columns is None:
                part.normals_columns = (first, first + 1, first + 2)
    return transform


def evaluation_rows(dataset: Dataset, processor: PointCloudProcessor) -> ProcessedDataset:
    """Return evaluation rows, which are the same in each epoch."""
    if processor.seed is None:
        raise ValueError("the processor's seed is None; expected a number, for the same points in each evaluation")
    return ProcessedDataset(dataset, processor)


class StreamedRows(torch.utils.data.IterableDataset):
    """`ProcessedDataset` for streamed data, read in order and never completely in memory.

    With a `seed`, all random choices depend only on it, `epoch` and the cloud's points, so that a cloud is prepared
    the same by any process and in any order.

    Worker processes of a DataLoader split the shards of the dataset. Of several training processes each needs a part:
    `PointTrainer` takes it by `of_process`, in your own loop `datasets.distributed.split_dataset_by_node` does. The
    stock Trainer needs the complete dataset, which every process then reads. All processes need the same number of
    workers.

    The arguments are those of `ProcessedDataset`; for training shuffle by `dataset.shuffle(seed, buffer_size)`.
    """

    label_columns: tuple[str, ...] = ("label",)
    epoch = SharedEpoch()
    is_endless = False

    def __init__(
        self,
        dataset: IterableDataset,
        processor: PointCloudProcessor,
        transform: Compose | None = None,
        seed: int | None = None,
    ):
        dataset = dataset.select_columns(_columns(dataset.column_names or [], processor, self.label_columns))
        assert dataset.features is not None
        self.features = dataset.features
        # The numpy format would decode every number of every cloud separately.
        self.dataset = dataset.with_format("arrow")
        self.processor = processor
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of random choices and of shuffling; called by Trainer."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def of_process(self, rank: int, processes: int) -> "StreamedRows":
        """Return the part of a process, which it reads again and again.

        Parts may have different numbers of rows, while processes must take equally many batches. Each pass is shuffled
        and augmented as an epoch of its own. If `processes` divides the number of shards, each reads only its own.
        """
        # A shallow copy, which shares the tensor of the epoch.
        part = copy.copy(self)
        part.dataset = split_dataset_by_node(self.dataset, rank, processes)
        # Parts may differ by a few rows, and processes have to make the same number of steps.
        part.is_endless = True
        return part

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.epoch
        is_empty = True
        while True:
            for row in self._rows(epoch):
                is_empty = False
                yield row
            # A worker process without a shard of its own ends.
            if is_empty or not self.is_endless:
                return
            epoch += 1
            self.dataset.set_epoch(epoch)

    def _rows(self, epoch: int) -> Iterator[dict[str, Any]]:
        tables: Any
        if torch.utils.data.get_worker_info() is None:
            tables = self.dataset.iter(READ_TOGETHER)
        else:
            single_rows = iter(self.dataset)  # `datasets` splits only row-wise iteration among workers
            tables = map(pa.concat_tables, iter(lambda: list(islice(single_rows, READ_TOGETHER)), []))
        read = 0
        for table in tables:
            decoded = read_table(table.combine_chunks(), self.features)
            rows = table.to_pylist() if decoded is None else decoded
            for row in rows:
                refuse_without_points(row["points"], f"row {read} of the stream")
                _refuse_without_label(row, self.features, f"row {read} of the stream")
                read += 1
            # A shuffled stream has no row numbers; the points of a row stand in for its own.
            clouds_bytes = (np.ascontiguousarray(row["points"], dtype=np.float32).data for row in rows)
            keys = None if self.seed is None else [(self.seed, epoch, zlib.crc32(data)) for data in clouds_bytes]
            clouds = prepare_clouds(rows, self.processor, self.transform, keys)
            for points, row in zip(clouds, rows, strict=True):
                yield {"points": points, **{name: row[name] for name in self.label_columns if name in row}}


def streamed_training_rows(
    dataset: IterableDataset, processor: PointCloudProcessor, augment: Sequence[str] = (), *, seed: int = 0
) -> StreamedRows:
    """Return training rows of a streamed dataset: other points and augmentation in each epoch; see `training_rows`.

    The seed is that of all random choices except for the order of the rows.
    """
    return StreamedRows(dataset, processor, training_transform(processor, augment), seed)


def _columns(names: Sequence[str], processor: PointCloudProcessor, label_columns: Sequence[str]) -> list[str]:
    needed = ("points", *(ATTRIBUTES[name] for name in processor.features[1:]), *label_columns)
    return [name for name in needed if name in names]
