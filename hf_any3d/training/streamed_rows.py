"""Rows of a streamed dataset as a model sees them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import IterableDataset

from hf_any3d.data.arrow_rows import read_table
from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.data.transforms import Compose
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.rows import SharedEpoch, prepare_clouds, training_transform

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
