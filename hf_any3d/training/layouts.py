"""Fine-tune SpatialLM on scans with layouts or boxes: rows, batches, adapters, and a run from arguments to card."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.torch_datasets import ArrowRows
from hf_any3d.modeling.spatiallm import Box, Layout
from hf_any3d.spatiallm_processing import SpatialLMProcessor, VoxelizedRoom
from hf_any3d.training.rows import SharedEpoch

logger = logging.getLogger(__name__)

TURNS = ("none", "quarter", "any")
_NEAR = 0.15
"""Points this close to a box count as inside, in meters, as in the released program."""


class LayoutRows(torch.utils.data.Dataset):
    """Rows `{"room": VoxelizedRoom, "layout": Layout}`, prepared when they are read.

    Args:
        dataset: Rows with `points`, perhaps `colors`, and `layout`, the text of a layout in meters; without that
            column, `boxes` and `box_labels` are the objects of the layout.
        processor: Processor of the model; drawn points of training cells are its business only without a `seed`.
        seed: Seed of what differs in each epoch: turns, sizes, and the point of each cell. None for rows as they are,
            for evaluation.
        turns: Turns of training rooms about z: "none", "quarter" ones or "any".
        sizes: Smallest and largest factor of the size of training rooms.
        min_points: Boxes with fewer points are left out of training rows.

    Raises:
        ValueError: The dataset lacks these columns.
    """

    epoch = SharedEpoch()

    def __init__(
        self,
        dataset: Dataset,
        processor: SpatialLMProcessor,
        seed: int | None = None,
        turns: str = "quarter",
        sizes: tuple[float, float] = (1.0, 1.0),
        min_points: int = 0,
    ):
        self._names: list[str] | None = None
        if "layout" not in dataset.column_names:
            label = getattr(dataset.features.get("box_labels"), "feature", None)
            if not isinstance(label, ClassLabel) or "boxes" not in dataset.column_names:
                raise ValueError(
                    f"the data have no column 'layout', nor boxes with classes; there are {dataset.column_names}"
                )
            self._names = label.names
        self.dataset = dataset.with_format("numpy")
        self.rows = ArrowRows(self.dataset)
        self.processor, self.seed = processor, seed
        self.turns, self.sizes, self.min_points = turns, sizes, min_points
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows.__getitems__([index])[0]
        try:
            layout = self._layout(row)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from None
        if self.seed is None:
            return {"room": self.processor.read([row], align=False)[0], "layout": layout}
        generator = np.random.default_rng((self.seed, self.epoch, index))
        cloud = to_cloud(row, ("xyz", "rgb"))
        points = cloud.points.astype(np.float64)
        colors = np.zeros_like(points) if cloud.colors is None else np.trunc(cloud.colors * np.float32(255))
        points, layout = self._moved(points, layout, generator)
        if self.min_points:
            kept = tuple(box for box in layout.boxes if _points_near(box, points) >= self.min_points)
            layout = dataclasses.replace(layout, boxes=kept)
        return {"room": self.processor.voxelize(points, colors, generator), "layout": layout}

    def _layout(self, row: Mapping[str, Any]) -> Layout:
        if self._names is None:
            return Layout.parse(str(row["layout"]), strict=True)
        boxes = np.asarray(row["boxes"], dtype=np.float64).reshape(-1, 7)
        labels = np.asarray(row["box_labels"]).reshape(-1)
        return Layout(
            boxes=tuple(
                Box(number, self._names[int(label)], *box[:3], box[6], *box[3:6])
                for number, (box, label) in enumerate(zip(boxes.tolist(), labels, strict=True))
            )
        )

    def _moved(self, points: np.ndarray, layout: Layout, generator: np.random.Generator) -> tuple[np.ndarray, Layout]:
        """Turn and scale a room about the center of its box."""
        center = (points.min(axis=0) + points.max(axis=0)) / 2
        angle = 0.0
        if self.turns == "quarter":
            angle = math.pi / 2 * int(generator.integers(4))
        elif self.turns == "any":
            angle = generator.uniform(0, 2 * math.pi)
        size = float(generator.uniform(*self.sizes))
        cosine, sine = math.cos(angle), math.sin(angle)
        matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        moved = layout.translated(-center).scaled(size)
        if angle:
            moved = moved.rotated(angle)
        return (points - center) * size @ matrix.T + center, moved.translated(center)


def _points_near(box: Box, points: np.ndarray) -> int:
    cosine, sine = math.cos(box.angle), math.sin(box.angle)
    # Points in the frame of the box: turned back by its angle.
    own = (points - (box.x, box.y, box.z)) @ np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    return int((np.abs(own) <= np.array([box.sx, box.sy, box.sz]) / 2 + _NEAR).all(axis=1).sum())


@dataclass
class LayoutCollator:
    """Collate rows of `LayoutRows` to prompts with answers to learn.

    Args:
        processor: Processor of the model.
        task: What the model is asked to write.
    """

    processor: SpatialLMProcessor
    task: str = "all"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what a call of the processor with layouts returns."""
        rooms: list[VoxelizedRoom] = [row["room"] for row in rows]
        return dict(self.processor(rooms, task=self.task, layouts=[row["layout"] for row in rows]))
