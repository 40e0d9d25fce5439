"""Rows for segmentation: pieces of labelled clouds as a model sees them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers.modeling_outputs import TokenClassifierOutput

from hf_any3d.data.blocks import draw_crop, split_into_blocks
from hf_any3d.data.transforms import Compose
from hf_any3d.evaluation.segmentation import IGNORED
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.rows import ProcessedDataset


def class_weights(labels: Iterable[np.ndarray], num_classes: int, power: float) -> torch.Tensor:
    """Weigh classes by their inverse frequency.

    Args:
        labels: The class number of every point, cloud by cloud; -100 where a point does not count.
        num_classes: How many classes there are.
        power: Of the inverse frequency: 0 weighs all classes the same, 1 balances them, 0.5 lies between.

    Returns:
        `(num_classes,)` float32, such that a point weighs 1 on average; 0 for a class that never occurs.

    Raises:
        ValueError: No point counts.
    """
    counts = np.zeros(num_classes)
    for cloud in labels:
        cloud = np.asarray(cloud)
        counts += np.bincount(cloud[cloud != IGNORED], minlength=num_classes)
    if not counts.sum():
        raise ValueError("labels has no point that counts")
    share = counts / counts.sum()
    weights = np.where(share > 0, np.maximum(share, np.finfo(float).tiny) ** -power, 0.0)
    return torch.tensor(weights / (weights * share).sum(), dtype=torch.float32)


class WeightedPointLoss:
    """Cross-entropy over points with weights of classes; a `compute_loss_func` for Trainer.

    Args:
        weights: `(num_classes,)`, see `class_weights`.
    """

    def __init__(self, weights: torch.Tensor):
        self.weights = weights

    def __call__(
        self,
        outputs: TokenClassifierOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean over the points that count, of `(batch, points, classes)` logits and `(batch, points)` labels.

        Args:
            outputs: What a segmentation model returns.
            labels: -100 where a point does not count.
            num_items_in_batch: Points that count in the whole optimisation step, where it has several batches.
        """
        logits = outputs.logits.flatten(0, 1).float()
        total = nn.functional.cross_entropy(
            logits, labels.flatten(), self.weights.to(logits.device), ignore_index=IGNORED, reduction="sum"
        )
        return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


class _PointLabelRows(ProcessedDataset):
    """What both kinds of rows share: a piece of a cloud with a label for each of its points.

    A row is `{"points": (num_points, channels) float32, "labels": (num_points,) int64}`, and `category` where the
    dataset has a `label` for the whole cloud and `with_category` is set.
    """

    label_columns = ("labels", "label")

    def __init__(
        self,
        dataset: Dataset,
        processor: PointCloudProcessor,
        transform: Compose | None = None,
        seed: int | None = None,
        with_category: bool = False,
    ):
        if "labels" not in dataset.column_names:
            raise ValueError(f"dataset has no column 'labels'; it has {', '.join(dataset.column_names)}")
        if with_category and "label" not in dataset.column_names:
            raise ValueError(f"dataset has no column 'label'; it has {', '.join(dataset.column_names)}")
        super().__init__(dataset, processor, transform, seed)
        self.with_category = with_category

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Rows of a batch, one by one: several may be pieces of one large cloud."""
        return [self[number] for number in numbers]

    def _piece(
        self, row: dict[str, Any], index: np.ndarray, generator: np.random.Generator | None = None
    ) -> dict[str, Any]:
        columns = [name for name in row if name not in self.label_columns]
        # As many points as the processor gives: it keeps all, in their order, which labels rely on.
        points = self.processor({name: row[name][index] for name in columns}, return_tensors="np")["points"][0]
        labels = np.asarray(row["labels"])[index].astype(np.int64)
        if self.transform is not None:
            # Labels travel with their points as one more channel; float32 is exact up to 2**24.
            together = self.transform(np.column_stack([points, labels.astype(np.float32)]), generator)
            points, labels = together[:, :-1], together[:, -1].astype(np.int64)
        piece = {"points": np.ascontiguousarray(points), "labels": labels}
        return {**piece, "category": int(row["label"])} if self.with_category else piece


class CropRows(_PointLabelRows):
    """Rows to train on: in each epoch other random crops of every cloud, about as many as cover it once.

    What is random follows from seed, epoch and the row's number alone.

    Args:
        dataset: Rows with `points` and `labels` (num_points,), the columns that the processor's features need, and
            `label` where the category is wanted.
        processor: Makes the pieces; its `block_size` says how large they are.
        transform: Augmentation that keeps the number of points.
        seed: Governs all that is random.
        with_category: Give the cloud's `label` as `category`.
        min_points: Columns with fewer points are drawn again, see `draw_crop`.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: PointCloudProcessor,
        transform: Compose | None = None,
        seed: int = 0,
        with_category: bool = False,
        min_points: int = 1,
    ):
        super().__init__(dataset, processor, transform, seed, with_category)
        self.min_points = min_points
        sizes = [len(labels) for labels in self.dataset["labels"]]
        times = [max(1, round(size / processor.num_points)) for size in sizes]
        self.clouds = np.repeat(np.arange(len(sizes)), times)  # (rows,), which cloud each row is a crop of

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        row = self.rows[int(self.clouds[number])]
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
    """Rows to judge a model by: blocks that cover every point of every cloud, the same each time.

    Args:
        dataset: As for `CropRows`.
        processor: As for `CropRows`; must have a seed.
        with_category: Give the cloud's `label` as `category`.
        votes: Divide every cloud so many times, each time with other points together.

    Raises:
        ValueError: A processor without a seed, a missing column, or fewer than one vote.
    """

    def __init__(self, dataset: Dataset, processor: PointCloudProcessor, with_category: bool = False, votes: int = 1):
        if votes < 1:
            raise ValueError(f"votes is {votes}; expected at least 1")
        if processor.seed is None:
            raise ValueError("the processor's seed is None; expected a number, so that blocks stay the same")
        super().__init__(dataset, processor, with_category=with_category)
        self.index: list[np.ndarray] = []
        self.clouds: list[int] = []
        for cloud, row in enumerate(self.dataset.select_columns(["points"])):
            for vote in range(votes):
                blocks = split_into_blocks(
                    row["points"],
                    processor.num_points,
                    processor.block_size,
                    processor.block_overlap,
                    up_axis=processor.up_axis,
                    generator=processor.seed + vote,
                )
                self.index.extend(blocks)
                self.clouds.extend([cloud] * len(blocks))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self._piece(self.rows[self.clouds[number]], self.index[number])
