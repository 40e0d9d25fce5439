"""Indices of centers and their neighbors: all that a tokenizer computes from coordinates alone.

`PointIndexer` computes it where the batches are made, in the workers of a DataLoader, after augmentation, so that the
training process or its GPU need not; a forward pass without `point_index` computes it itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_any3d.modeling.any2point.configuration_any2point import TokenizerConfig
from hf_any3d.modeling.deferred_errors import refuse_later
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, knn


@dataclass(frozen=True)
class PointIndexer:
    """Compute the `point_index` of a model's forward pass; the `indexer` of a `PointCloudCollator`.

    Example:
        ```python
        collator = PointCloudCollator(num_points=1024, indexer=PointIndexer(model.config))
        ```
    """

    config: TokenizerConfig

    def __call__(self, points: Tensor) -> dict[str, Any]:
        """Index the points `(batch, points, channels)` of a batch, xyz first.

        Returns:
            `centers` `(batch, centers)`, numbers of the points that the first stage takes as centers;
            `center_positions` `(batch, centers, 3)`, by which a forward pass recognizes the points; `neighbors`, for
            each stage `(batch, centers of the stage, k)`, numbers among the input points, then among the centers of
            the stage before.
        """
        config = self.config
        # As the forward pass, which computes places in full precision.
        xyz = points[..., :3].to(torch.promote_types(points.dtype, torch.float32)).contiguous()
        centers = sample_centers(xyz, config)
        positions = gather_points(xyz, centers)  # (batch, centers, 3)
        neighbors = [nearest(positions, xyz, config.tokenizer_neighbors)]
        for stage in range(1, config.num_stages):
            # Sampling is greedy, so the centers of a later stage are the first half of those of the stage before.
            before = positions[:, : positions.shape[1] >> (stage - 1)]
            neighbors.append(nearest(before[:, : before.shape[1] // 2], before, config.tokenizer_neighbors))
        # Half the bytes of int64 on the way from a worker.
        return {
            "centers": centers.int(),
            "center_positions": positions,
            "neighbors": tuple(index.int() for index in neighbors),
        }


def sample_centers(xyz: Tensor, config: TokenizerConfig) -> Tensor:
    """Return the numbers `(batch, centers)` of the points of `(batch, points, 3)` that the first stage takes."""
    return farthest_point_sample(
        xyz,
        config.num_tokens << (config.num_stages - 1),
        min_squared_norm=config.released.sampling_min_squared_norm,
        tie_rule=config.released.sampling_tie_rule,
    )


def nearest(centers: Tensor, xyz: Tensor, neighbors: int) -> Tensor:
    """Return the neighbors `(batch, centers, k)` of centers among `(batch, points, 3)`; all, if there are fewer."""
    # Not min(…), which an exporter would keep as an unknown size.
    k = neighbors if xyz.shape[1] >= neighbors else xyz.shape[1]
    return knn(centers, xyz, k)


def check_point_index(point_index: Mapping[str, Any], xyz: Tensor, config: TokenizerConfig) -> None:
    """Refuse an index, as `PointIndexer` computes it, of other points than `(batch, points, 3)` or another config."""
    batch = len(xyz)
    count = config.num_tokens << (config.num_stages - 1)
    expected = {"centers": (batch, count), "center_positions": (batch, count, 3)}
    arrays = {name: point_index[name] for name in expected}
    places = xyz.shape[1]
    for stage, index in enumerate(point_index["neighbors"]):
        arrays[f"neighbors[{stage}]"] = index
        expected[f"neighbors[{stage}]"] = (batch, count >> stage, min(config.tokenizer_neighbors, places))
        places = count >> stage
    for name, index in arrays.items():
        if tuple(index.shape) != expected[name]:
            raise ValueError(f"point_index: {name} has shape {tuple(index.shape)}; expected {expected[name]}")
    if torch.compiler.is_compiling():
        return
    moved = gather_points(xyz, point_index["centers"]) != point_index["center_positions"].to(xyz.dtype)
    message = (
        "point_index: the centers are elsewhere in points; expected an index of these points, made after any "
        "augmentation"
    )
    if xyz.device.type != "cpu":
        refuse_later(moved.any(), message)
    elif moved.any():
        raise ValueError(message)
