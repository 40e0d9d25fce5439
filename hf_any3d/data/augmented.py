"""Training rows that are augmented each time they are read."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset

from hf_any3d.data.arrow_rows import ArrowRows
from hf_any3d.data.point_arrays import stack_channels
from hf_any3d.data.transforms import Transform


class AugmentedDataset(torch.utils.data.Dataset):
    """A dataset with augmented points, for Trainer's `train_dataset`.

    The augmentation belongs to the training rows rather than to the collator, which Trainer uses for evaluation too.
    A row has `points`, the extra columns and `label` (or `labels`) where there is one; `points` and the extra columns
    go through the transform together and come out as separate float32 columns again.

    Args:
        dataset: rows with a column `points`; Array2D is read many times faster than nested lists.
        transform: called with one cloud (num_points, channels); its randomness follows torch's seed, so that each
            DataLoader worker draws its own.
        extra_columns: columns that belong to the points, such as "normals" (then channels 3, 4, 5 of the transform)
            or "colors" (integers become [0, 1]).

    Raises:
        ValueError: a column that the dataset does not have.
    """

    def __init__(self, dataset: Dataset, transform: Transform, extra_columns: Sequence[str] = ()):
        self.array_columns = ("points", *extra_columns)
        missing = [name for name in self.array_columns if name not in dataset.column_names]
        if missing:
            raise ValueError(f"dataset has no column {missing[0]!r}; it has {', '.join(dataset.column_names)}")
        labels = [name for name in ("label", "labels") if name in dataset.column_names]
        self.rows = ArrowRows(dataset.select_columns([*self.array_columns, *labels]))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self._augment(self.rows[index])

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """Rows of a batch; DataLoader asks for them together."""
        return [self._augment(row) for row in self.rows.__getitems__(indices)]

    def _augment(self, row: dict) -> dict:
        # A copy: what is read is the dataset's own memory, and a transform may write.
        cloud = self.transform(np.array(stack_channels(row, self.array_columns[1:])))  # (num_points, channels)
        ends = np.cumsum([row[name].shape[1] for name in self.array_columns])
        return {**row, **dict(zip(self.array_columns, np.split(cloud, ends[:-1], axis=1), strict=True))}
