"""Rows for segmentation: crops and blocks of labeled clouds as model inputs, and a class-weighted loss."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers.modeling_outputs import TokenClassifierOutput

from hf_any3d.data.blocks import bounds_of, draw_crop, split_into_blocks
from hf_any3d.data.tables.numpy_rows import choose_columns, column_of, has_own_rows, near_origin
from hf_any3d.data.transforms import Compose
from hf_any3d.evaluation.segmentation import IGNORED, counted_labels
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.rows import ProcessedDataset


class _PointLabelRows(ProcessedDataset):
    """Base class of both kinds of rows: pieces of clouds with a label for each point.

    A row is `{"points": (num_points, channels) float32, "labels": (num_points,) int64}`, with `with_category` also
    `category`, the `label` of the cloud.
    """

    label_columns = ("labels", "label")
    with_category: bool

    def prepare(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return the rows with these numbers, read one by one: several may be pieces of one large cloud."""
        return [self.prepare_row(number) for number in numbers]

    def _piece(
        self, row: dict[str, Any], index: np.ndarray, generator: np.random.Generator | None = None
    ) -> dict[str, Any]:
        columns = [name for name in row if name not in self.label_columns]
        # The piece has num_points points, so the processor keeps all of them in order, as the labels require.
        cloud = {name: row[name][index] for name in columns}
        bounds = bounds_of(row["points"])
        points = self.processor(cloud, bounds=bounds, return_tensors="np")["points"][0]
        labels = counted_labels(row["labels"])[index]
        if self.transform is not None:
            # Labels are transformed with their points, as one more channel; float32 is exact up to 2**24.
            labeled = self.transform(np.column_stack([points, labels.astype(np.float32)]), generator)
            points = labeled[:, :-1]
            labels = labeled[:, -1].astype(np.int64)
        piece = {"points": np.ascontiguousarray(points), "labels": labels}
        return {**piece, "category": int(row["label"])} if self.with_category else piece


class CropRows(_PointLabelRows):
    """Training rows: in each epoch other random crops of every cloud, about as many as cover it once.

    All random choices depend only on seed, epoch and row number.

    Args:
        dataset: Rows with `points`, `labels` (num_points,), the columns of the processor's features, and `label`.
        processor: Processor of the crops, with their `block_size`.
        transform: Augmentation that keeps the number of points.
        seed: Seed of all random choices.
        with_category: Return the cloud's `label` as `category`.
        min_points: Minimum number of points of a crop before sampling, see `draw_crop`.
    """

    seed: int

    def __init__(
        self,
        dataset: Dataset,
        processor: PointCloudProcessor,
        transform: Compose | None = None,
        seed: int = 0,
        with_category: bool = False,
        min_points: int = 1,
    ):
        super().__init__(dataset, processor, transform, seed)
        self.with_category = with_category
        self.min_points = min_points
        # Rows with a transform of their own have no columns.
        of_points = column_of(dataset, "labels") if has_own_rows(dataset) else self.dataset["labels"]
        sizes = [np.size(labels) for labels in of_points]
        # A large scene has more crops than a small one, so that all points are seen about equally often.
        times = [max(1, round(size / processor.num_points)) for size in sizes]
        self.clouds = np.repeat(np.arange(len(sizes)), times)  # (rows,), cloud of each row

    def __len__(self) -> int:
        return len(self.clouds)

    def prepare_row(self, number: int) -> dict[str, Any]:
        """Return a crop of a cloud."""
        row, _ = near_origin(self.rows[int(self.clouds[number])])
        generator = np.random.default_rng([self.seed, self.epoch, number])
        processor = self.processor
        index = draw_crop(
            row["points"],
            processor.num_points,
            processor.block_size,
            generator,
            up_axis=processor.up_axis,
            min_points=self.min_points,
        )
        return self._piece(row, index, generator)


class BlockRows(_PointLabelRows):
    """Evaluation rows: blocks that cover every point of every cloud, the same in each epoch; see `CropRows`.

    The processor has a seed. `votes` is the number of different divisions of each cloud into blocks.
    """

    def __init__(self, dataset: Dataset, processor: PointCloudProcessor, with_category: bool = False, votes: int = 1):
        super().__init__(dataset, processor)
        self.with_category = with_category
        seed = cast(int, processor.seed)  # so that blocks stay the same
        self.index: list[np.ndarray] = []
        self.clouds: list[int] = []
        rows: Any = choose_columns(self.dataset, ["points"])
        for cloud, stored in enumerate(rows):
            row, _ = near_origin(stored)
            for vote in range(votes):
                blocks = split_into_blocks(
                    row["points"],
                    processor.num_points,
                    processor.block_size,
                    processor.block_overlap,
                    up_axis=processor.up_axis,
                    # Another seed divides and fills the blocks in another way, so that votes differ.
                    generator=seed + vote,
                )
                self.index.extend(blocks)
                self.clouds.extend([cloud] * len(blocks))

    def __len__(self) -> int:
        return len(self.index)

    def prepare_row(self, number: int) -> dict[str, Any]:
        """Return a block of a cloud."""
        row, _ = near_origin(self.rows[self.clouds[number]])
        return self._piece(row, self.index[number])


def class_weights(labels: Iterable[np.ndarray], num_classes: int, power: float) -> torch.Tensor:
    """Weigh classes by their inverse frequency.

    Args:
        labels: For each cloud the class numbers of its points; -100 for ignored points.
        num_classes: Number of classes.
        power: Exponent of the inverse frequency: 0 gives equal weights, 1 balances the classes, 0.5 is in between.

    Returns:
        `(num_classes,)` float32 with a mean of 1 over points; 0 for a class that does not occur.
    """
    counts = np.zeros(num_classes)
    for cloud in labels:
        cloud = counted_labels(cloud)
        counts += np.bincount(cloud[cloud != IGNORED], minlength=num_classes)
    share = counts / counts.sum()
    # Classes without points have no effect on the loss, but 0 to a negative power would be infinite.
    weights = np.where(share > 0, np.maximum(share, np.finfo(float).tiny) ** -power, 0.0)
    # The mean weight of a point is 1, so that the loss keeps its size and learning rates still fit.
    return torch.tensor(weights / (weights * share).sum(), dtype=torch.float32)


class WeightedPointLoss:
    """Cross-entropy over points with weights `(num_classes,)` of classes; a `compute_loss_func` of Trainer."""

    def __init__(self, weights: torch.Tensor):
        self.weights = weights

    def __call__(
        self,
        outputs: TokenClassifierOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the mean over points of `(batch, points, classes)` logits and `(batch, points)` labels.

        `num_items_in_batch` is the number of points that are not ignored, in all batches of the optimizer step.
        """
        assert outputs.logits is not None
        logits = outputs.logits.flatten(0, 1).float()
        total = nn.functional.cross_entropy(
            logits, labels.flatten(), self.weights.to(logits.device), ignore_index=IGNORED, reduction="sum"
        )
        # With gradient accumulation Trainer counts the labels of all batches of a step.
        return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def parts_of_categories(parts: Sequence[str], categories: Sequence[str]) -> list[list[int]] | None:
    """Find the parts of each category by names such as "chair back".

    Returns:
        The labels of each category's parts; None if a name starts with no category, or a category has no parts.
    """
    numbers: dict[str, list[int]] = {category: [] for category in categories}
    for number, part in enumerate(parts):
        owners = [category for category in categories if part.startswith(f"{category} ")]
        if not owners:
            return None
        # The longest name that fits: "table lamp shade" belongs to "table lamp", not to "table".
        numbers[max(owners, key=len)].append(number)
    return list(numbers.values()) if all(numbers.values()) else None
