"""Rows of a dataset as a model sees them: brought to form by the processor, then augmented."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_any3d.data.inputs import ATTRIBUTES, to_cloud
from hf_any3d.data.torch_datasets import ArrowRows, read_table
from hf_any3d.data.transforms import Compose, build_transform
from hf_any3d.processing import PointCloudProcessor


class SharedEpoch:
    """The number of an epoch that the worker processes of a DataLoader see as soon as it is set.

    A plain attribute reaches workers only when they are started: those that outlive an epoch (`persistent_workers`)
    would repeat the augmentation of the first one for ever.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_shared_{name}"

    def __get__(self, rows: Any, owner: type | None = None) -> int:
        return int(getattr(rows, self.name))

    def __set__(self, rows: Any, epoch: int) -> None:
        if not hasattr(rows, self.name):
            setattr(rows, self.name, torch.zeros((), dtype=torch.int64).share_memory_())
        getattr(rows, self.name).fill_(epoch)


class ProcessedDataset(torch.utils.data.Dataset):
    """Rows `{"points": (num_points, channels), "label": …}`, prepared when they are read.

    Clouds pass through the processor that is saved with the model, so that training and evaluation see what
    a pipeline will give the model, down to the choice of points.

    With a `seed`, what is random follows from it, `epoch` and the row's number alone: not from the number of worker
    processes, nor from where a run was interrupted.

    Args:
        dataset: Rows with `points`, the columns that the processor's features need, and `label` where there is one.
        processor: Makes the clouds.
        transform: Applied to each cloud behind the processor; needs a seed.
        seed: Draws points and augmentation anew in each epoch; None leaves the processor its own seed.
        whole: Give the transform the whole clouds as they are stored, in place of the processor; it must bring them
            to as many points as the processor gives.
    """

    # Columns beside the points that rows keep, where the dataset has them.
    label_columns: tuple[str, ...] = ("label",)
    epoch = SharedEpoch()

    def __init__(
        self,
        dataset: Dataset,
        processor: PointCloudProcessor,
        transform: Compose | None = None,
        seed: int | None = None,
        whole: bool = False,
    ):
        if transform is not None and seed is None:
            raise ValueError("transform without a seed; expected both, or neither")
        if whole and transform is None:
            raise ValueError("whole clouds without a transform that brings them to form")
        wanted = ("points", *(ATTRIBUTES[name] for name in processor.features[1:]), *self.label_columns)
        columns = [name for name in wanted if name in dataset.column_names]
        self.dataset = dataset.select_columns(columns).with_format("numpy")
        self.rows = ArrowRows(self.dataset)
        self.processor, self.transform, self.seed = processor, transform, seed
        self.whole = whole
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Rows of a batch, each as if it were read alone; DataLoader asks for them together."""
        rows = self.rows.__getitems__(indices)
        keys = None if self.seed is None else [(self.seed, self.epoch, index) for index in indices]
        clouds = prepare_clouds(rows, self.processor, self.transform, keys, self.whole)
        return [
            {"points": points, **{name: row[name] for name in self.label_columns if name in row}}
            for points, row in zip(clouds, rows, strict=True)
        ]


def prepare_clouds(
    rows: Sequence[dict[str, Any]],
    processor: PointCloudProcessor,
    transform: Compose | None = None,
    keys: Sequence[tuple[int, ...]] | None = None,
    whole: bool = False,
) -> list[np.ndarray]:
    """Clouds as a model sees them in training: other points for other keys, and augmented.

    Args:
        rows: Rows of a dataset.
        processor: Makes the clouds.
        transform: Applied to each cloud behind the processor.
        keys: For each row whole numbers from 0 that all that is random follows from; None leaves the processor its
            own seed.
        whole: Give the transform the whole clouds, in place of the processor.

    Returns:
        For each row (num_points, channels) float32, whatever rows it is read with.

    Raises:
        ValueError: A cloud that the processor refuses, or a transform of whole clouds that gives too few points.
    """
    generators = [None] * len(rows) if keys is None else [np.random.default_rng(key) for key in keys]
    drawn = None if keys is None else [int(generator.integers(2**31)) for generator in generators]
    if whole:
        clouds = [whole_cloud(row, processor.features) for row in rows]
    else:
        clouds = list(processor(rows, seed=drawn, return_tensors="np")["points"])  # each (num_points, channels)
    if transform is not None:
        clouds = [transform(cloud, generator) for cloud, generator in zip(clouds, generators, strict=True)]
    for cloud in clouds:
        if len(cloud) != processor.num_points and whole:
            raise ValueError(
                f"transforms of whole clouds gave {len(cloud)} points, the model takes {processor.num_points}; "
                f"expected a last one such as subsample:num_points={processor.num_points}"
            )
    return clouds


def whole_cloud(row: dict[str, Any], features: Sequence[str]) -> np.ndarray:
    """A row's cloud as it is stored, `(points, channels)` with the channels of `features`.

    Raises:
        ValueError: A row that lacks one of the features.
    """
    cloud = to_cloud(row, features)
    columns = [cloud.points, *(getattr(cloud, ATTRIBUTES[name]) for name in features[1:])]
    missing = [name for name, column in zip(features, columns, strict=True) if column is None]
    if missing:
        raise ValueError(f"a row has no {ATTRIBUTES[missing[0]]}, which features {', '.join(features)} ask for")
    return np.concatenate(columns, axis=1, dtype=np.float32)


class EpochCallback(TrainerCallback):
    """Tells training rows which epoch it is; a Trainer with such rows needs it among its `callbacks`."""

    def __init__(self, rows: ProcessedDataset):
        self.rows = rows

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called before the first batch of an epoch is read, also where a run is resumed amid one."""
        self.rows.epoch = int(state.epoch + 1e-6)


def training_rows(
    dataset: Dataset,
    processor: PointCloudProcessor,
    augment: Sequence[str] = (),
    *,
    seed: int = 0,
    whole: bool = False,
) -> ProcessedDataset:
    """Rows to train on: other points of larger clouds in each epoch, and augmentation.

    Args:
        dataset: Rows with `points` and `label`.
        processor: The processor that is saved with the model.
        augment: Transforms as `build_transform` takes them. Rotations turn about the processor's up axis unless they
            name one; normals among the features go along.
        seed: Governs all that is random.
        whole: The transforms take whole clouds as they are stored, in place of the processor.
    """
    return ProcessedDataset(dataset, processor, training_transform(processor, augment), seed, whole)


def training_transform(processor: PointCloudProcessor, augment: Sequence[str]) -> Compose | None:
    """The augmentation that `augment` names, fitted to the processor's up axis and features; None for none."""
    if not augment:
        return None
    transform = build_transform([_about_up_axis(text, processor.up_axis) for text in augment])
    if "normals" in processor.features:
        first = 3 * processor.features.index("normals")
        for part in transform.transforms:
            if getattr(part, "normals_columns", ()) is None:
                part.normals_columns = (first, first + 1, first + 2)
    return transform


def evaluation_rows(dataset: Dataset, processor: PointCloudProcessor) -> ProcessedDataset:
    """Rows to judge a model by, equal each time they are read.

    Raises:
        ValueError: A processor without a seed.
    """
    if processor.seed is None:
        raise ValueError(
            "the processor's seed is None; expected a number, so that each evaluation sees the same points"
        )
    return ProcessedDataset(dataset, processor)


def _about_up_axis(text: str, up_axis: str) -> str:
    name, _, settings = text.partition(":")
    if name.strip() != "rotate" or "axis=" in settings:
        return text
    return f"{name}:axis={up_axis}" + (f",{settings}" if settings else "")


READ_TOGETHER = 32
"""Rows that are decoded and prepared in one go."""


class StreamedRows(torch.utils.data.IterableDataset):
    """`ProcessedDataset` for data that is streamed: read in its order, never held as a whole.

    With a `seed`, what is random follows from it, `epoch` and the cloud's own points, so that a cloud is prepared
    alike whichever process reads it, and in whatever order.

    Worker processes of a DataLoader divide the shards of the dataset. Several training processes each take their part
    with `datasets.distributed.split_dataset_by_node` before the dataset comes here; Trainer divides the rows itself
    and takes them whole. All processes need the same number of workers.

    Args:
        dataset: Rows with `points`, the columns that the processor's features need, and `label` where there is one;
            shuffled, if training needs it, by `dataset.shuffle(seed, buffer_size)`.
        processor: Makes the clouds.
        transform: Applied to each cloud behind the processor; needs a seed.
        seed: Draws points and augmentation anew in each epoch; None leaves the processor its own seed.

    Raises:
        ValueError: A dataset that does not say what its columns are, or has no points; a transform without a seed.
    """

    label_columns: tuple[str, ...] = ("label",)
    epoch = SharedEpoch()

    def __init__(
        self,
        dataset: IterableDataset,
        processor: PointCloudProcessor,
        transform: Compose | None = None,
        seed: int | None = None,
    ):
        if transform is not None and seed is None:
            raise ValueError("transform without a seed; expected both, or neither")
        names = dataset.column_names or []
        if dataset.features is None or "points" not in names:
            raise ValueError(f"dataset has columns {', '.join(names) or 'of unknown types'}; expected points")
        wanted = ("points", *(ATTRIBUTES[name] for name in processor.features[1:]), *self.label_columns)
        dataset = dataset.select_columns([name for name in wanted if name in names])
        self.features = dataset.features
        # Arrow hands on what the files hold; numpy's format would decode every number of every cloud on its own.
        self.dataset = dataset.with_format("arrow")
        self.processor, self.transform, self.seed = processor, transform, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, and shuffle anew where the dataset is shuffled; Trainer calls this."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for table in self._tables():
            rows = self._decode(table)
            keys = None if self.seed is None else [self._key(row) for row in rows]
            clouds = prepare_clouds(rows, self.processor, self.transform, keys)
            for points, row in zip(clouds, rows, strict=True):
                yield {"points": points, **{name: row[name] for name in self.label_columns if name in row}}

    def _tables(self) -> Iterator[pa.Table]:
        if torch.utils.data.get_worker_info() is None:
            yield from self.dataset.iter(READ_TOGETHER)
            return
        rows = iter(self.dataset)  # `datasets` divides what is read row by row among workers, and only that
        while some := list(islice(rows, READ_TOGETHER)):
            yield pa.concat_tables(some)

    def _decode(self, table: pa.Table) -> list[dict[str, Any]]:
        rows = read_table(table.combine_chunks(), self.features)
        return table.to_pylist() if rows is None else rows

    def _key(self, row: dict[str, Any]) -> tuple[int, int, int]:
        points = np.ascontiguousarray(row["points"], dtype=np.float32)
        return self.seed, self.epoch, zlib.crc32(points)


def streamed_training_rows(
    dataset: IterableDataset, processor: PointCloudProcessor, augment: Sequence[str] = (), *, seed: int = 0
) -> StreamedRows:
    """Rows to train on from a streamed dataset: other points and other augmentation in each epoch.

    Args:
        dataset: Rows with `points` and `label`.
        processor: The processor that is saved with the model.
        augment: Transforms as `build_transform` takes them; see `training_rows`.
        seed: Governs all that is random but the order of the rows.
    """
    return StreamedRows(dataset, processor, training_transform(processor, augment), seed)
