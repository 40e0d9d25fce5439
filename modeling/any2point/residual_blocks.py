"""The residual blocks of the point tokenizer, module by module or all of a stage as one operation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from hf_any3d.modeling.any2point.neighborhoods import Neighborhoods
from hf_any3d.modeling.any2point.pooled_blocks import Kept
from hf_any3d.modeling.any2point.pooled_blocks_backward import pooled_blocks
from hf_any3d.modeling.batch_norms import is_plain_training, update_running_statistics


class ResidualBlock(nn.Module):
    """Two linear layers with batch norms around a residual sum, applied to every point alone."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.reduce = nn.Linear(width, hidden)
        self.reduce_norm = nn.BatchNorm1d(hidden)
        self.expand = nn.Linear(hidden, width)
        self.expand_norm = nn.BatchNorm1d(width)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map `(rows, width)` to `(rows, width)`."""
        # In place: these tensors, one row for every neighbour, are large.
        hidden = self.reduce_norm(self.reduce(rows)).relu_()
        return self.expand_norm(self.expand(hidden)).add_(rows).relu_()


def trains_as_one(blocks: Iterable[ResidualBlock], hoods: Neighborhoods) -> bool:
    """Whether `train_as_one` computes what these blocks would: training, in full precision, of unchanged modules."""
    features = hoods.features
    if torch.is_autocast_enabled(features.device.type) or hoods.offsets.requires_grad:
        return False
    return all(
        is_plain_training(linear, norm)
        for block in blocks
        for linear, norm in ((block.reduce, block.reduce_norm), (block.expand, block.expand_norm))
    )


def train_as_one(blocks: nn.ModuleList, hoods: Neighborhoods) -> torch.Tensor:
    """Train a stage's blocks on its rows and pool them: `(centers, width)`; running statistics move on."""
    weights, eps = [], []
    for block in blocks:
        for linear, norm in ((block.reduce, block.reduce_norm), (block.expand, block.expand_norm)):
            weights += [linear.weight, linear.bias, norm.weight, norm.bias]
            eps.append(norm.eps)
    pooled, _, *rest = pooled_blocks(
        hoods.features, hoods.neighbors, hoods.centers, hoods.offsets, hoods.frequencies, weights, eps
    )
    for block, kept in zip(blocks, Kept.unpack(rest, len(blocks), len(hoods.parts())), strict=True):
        update_running_statistics(
            block.reduce_norm, block.reduce.bias, kept.reduce_mean, kept.reduce_variance, hoods.count
        )
        update_running_statistics(
            block.expand_norm, block.expand.bias, kept.expand_mean, kept.expand_variance, hoods.count
        )
    return pooled
