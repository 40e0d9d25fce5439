"""Collate clouds of different sizes into batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_any3d.data.point_arrays import new_generator, resample_index, stack_channels
from hf_any3d.data.transforms import Transform
from hf_any3d.modeling.point_ops import LARGEST_COORDINATE


@dataclass
class PointCloudCollator:
    """Convert dataset rows to model input; a `data_collator` for Trainer.

    A row has "points" (num_points_i, channels), as array, tensor or nested lists, and "label" or "labels" or neither.
    The batch has "points" (batch, num_points, channels) float32 and "labels", by the `problem_type` of the model's
    config: of integers (batch,) int64; of a number or a list of numbers, as a regression has them or as zeros and ones
    for several classes a cloud, (batch,) or (batch, labels) float32.

    Points of a cloud are chosen:

    - with a `transform` (training) at random, before the transform is applied; torch's seed governs both;
    - with a `seed` at random, but the same for the same cloud at every call, whatever else is in the batch;
    - otherwise the first `num_points`, which is a fair sample only if points are stored in random order.

    A cloud with fewer than `num_points` repeats points, none before all have been used once. A cloud's points never
    depend on the other clouds of its batch: without `num_points` all must have equally many.

    Trainer uses one collator for training and evaluation: wrap the training rows in `AugmentedDataset` and leave
    `transform` out, so that evaluation gets unchanged clouds.

    Args:
        num_points: points per cloud in the batch; None keeps clouds as they are, such as those prepared by a
            `PointCloudProcessor`, and refuses a batch of clouds of different sizes.
        transform: an augmentation that is applied to every cloud and must keep its number of points.
        seed: fixes the choice of points and the augmentation.
        extra_columns: columns (num_points_i, c) appended to xyz as further channels, such as "colors" or "normals";
            integer colors are scaled to [0, 1].
        indexer: called with the finished points, such as a `PointIndexer` of the model's config; its result is
            `point_index` of the batch, which the model then does not compute. In the workers of a DataLoader this
            takes sampling and the search for neighbors out of the training step.
    """

    num_points: int | None = None
    transform: Transform | None = None
    seed: int | None = None
    extra_columns: Sequence[str] = ()
    indexer: Callable[[torch.Tensor], Mapping[str, Any]] | None = None

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Any]:
        """Collate one batch."""
        clouds = [stack_channels(row, self.extra_columns) for row in rows]
        for number, cloud in enumerate(clouds):
            largest = np.abs(cloud).max()
            if not largest <= LARGEST_COORDINATE:  # or NaN
                raise ValueError(f"row {number}: points has {largest:.3g}; expected at most {LARGEST_COORDINATE:.3g}")
        sizes = [len(cloud) for cloud in clouds]
        if self.num_points is None and len(set(sizes)) > 1:
            # Padded to the largest, a cloud's prediction would depend on its batch.
            raise ValueError(f"rows have {min(sizes)} to {max(sizes)} points: give PointCloudCollator(num_points=…)")
        num_points = len(clouds[0]) if self.num_points is None else self.num_points
        is_random = self.transform is not None or self.seed is not None
        samples = []
        for cloud in clouds:
            # One generator per cloud, so that its points do not depend on the other clouds of the batch.
            generator = new_generator(self.seed) if is_random else None
            if len(cloud) != num_points:
                cloud = cloud[resample_index(len(cloud), num_points, generator)]
            if self.transform is not None:
                cloud = np.asarray(self.transform(cloud, generator), dtype=np.float32)
            samples.append(cloud)
        batch: dict[str, Any] = {"points": torch.from_numpy(np.stack(samples))}  # (batch, num_points, channels)
        # `labels` of points or of several classes come before the single class.
        labels = [row.get("labels", row.get("label")) for row in rows]
        missing = [number for number, value in enumerate(labels) if value is None]
        if missing and len(missing) < len(labels):
            raise ValueError(f"rows {missing} have no label, others do; expected labels in all rows or in none")
        if not missing:
            numbers = torch.as_tensor(np.asarray(labels))
            # A list of whole numbers is one of zeros and ones, for several classes.
            are_classes = numbers.ndim == 1 and not numbers.is_floating_point()
            batch["labels"] = numbers.long() if are_classes else numbers.float()
        if self.indexer is not None:
            # On the points as the model gets them, after sampling and augmentation.
            batch["point_index"] = self.indexer(batch["points"])
        return batch
