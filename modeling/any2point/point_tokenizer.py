"""The point tokenizer: a light Point-PN that turns a cloud into tokens with centres."""

from __future__ import annotations

import torch
from torch import nn

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig
from hf_any3d.modeling.any2point.neighborhoods import Neighborhoods, offset_frequencies
from hf_any3d.modeling.any2point.residual_blocks import ResidualBlock, train_as_one, trains_as_one
from hf_any3d.modeling.any2point.tokenizer import PointLevel, PointTokens, Tokenizer
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, group, knn
from hf_any3d.modeling.point_ops.grouping import flatten_index


class PointTokenizer(Tokenizer):
    """Turns points into tokens: sample centres, gather neighbours, encode offsets, pool; three times.

    Shape: points `(batch, points, in_channels)`, at least `config.min_points` points. Trained from scratch; the only
    part of Any2Point that sees coordinates (Any2Point, Sec. 3.1; Point-PN in its light form).

    Raises:
        ValueError: If a cloud has fewer points than the first stage takes centres or neighbours.
    """

    def __init__(self, config: Any2PointConfig, hidden_size: int):
        super().__init__(config, hidden_size)
        stages = config.num_stages
        width = config.tokenizer_width or default_tokenizer_width(hidden_size, stages)
        if width % (6 * 2 ** (stages - 1)):
            raise ValueError(f"tokenizer_width={width}; expected a multiple of {6 * 2 ** (stages - 1)}")
        self.embed = nn.Linear(config.in_channels, width >> stages, bias=False)
        self.embed_norm = nn.BatchNorm1d(width >> stages)
        self.stages = nn.ModuleList(
            TokenizerStage(config, width >> (stages - 1 - stage), config.tokenizer_blocks[stage], bottleneck)
            for stage, bottleneck in enumerate(config.tokenizer_bottlenecks)
        )
        self.level_widths = tuple(width >> (stages - stage) for stage in range(stages))
        self.project = nn.Identity() if width == hidden_size else nn.Linear(width, hidden_size)

    def tokenize(self, points: torch.Tensor, with_levels: bool) -> PointTokens:
        """Tokenize `(batch, points, in_channels)`; see the class."""
        config = self.config
        xyz = points[..., :3].contiguous()
        count = config.num_tokens << (config.num_stages - 1)
        # Greedy sampling of a prefix repeats itself: a later stage keeps the first half of the centres before it.
        index = farthest_point_sample(
            xyz, count, min_squared_norm=config.sampling_min_squared_norm, tie_rule=config.sampling_tie_rule
        )
        rows = self.embed(points.to(self.embed.weight.dtype).flatten(0, 1))
        features = self.embed_norm(rows).relu_().view(*points.shape[:2], -1)  # (batch, points, width / 8)
        levels: list[PointLevel] = []
        centers_index = index
        for stage in self.stages:
            centers = gather_points(xyz, centers_index)  # (batch, centers, 3)
            if with_levels:
                levels.append(PointLevel(features, xyz if levels else None))
            features = stage(xyz, features, centers, centers_index)
            xyz = centers
            count //= 2
            centers_index = torch.arange(count, device=xyz.device).expand(xyz.shape[0], -1)
        tokens = self.project(features)  # (batch, tokens, hidden)
        return PointTokens(tokens, xyz, index[:, : config.num_tokens], tuple(levels))


class TokenizerStage(nn.Module):
    """One level: k neighbours of every centre, offset-encoded features, residual blocks, max over neighbours."""

    def __init__(self, config: Any2PointConfig, width: int, blocks: int, bottleneck: int | None):
        super().__init__()
        self.config = config
        self.width = width
        self.blocks = nn.ModuleList(ResidualBlock(width, bottleneck or width // 2) for _ in range(blocks))

    def forward(
        self, xyz: torch.Tensor, features: torch.Tensor, centers: torch.Tensor, centers_index: torch.Tensor
    ) -> torch.Tensor:
        """Map `(batch, points, width / 2)` features of a level to `(batch, centers, width)` of the next."""
        config = self.config
        # Not min(…), which an exporter keeps as a size that it does not know.
        k = config.tokenizer_neighbors if xyz.shape[1] >= config.tokenizer_neighbors else xyz.shape[1]
        neighbors = knn(centers, xyz, k)  # (batch, centers, k)
        offsets = group(xyz, neighbors) - centers.unsqueeze(2)  # (batch, centers, k, 3)
        offsets = normalize_offsets(offsets, config.offset_normalization, config.offset_eps)
        points = xyz.shape[1]
        hoods = Neighborhoods(
            features.flatten(0, 1),
            flatten_index("neighbors", neighbors, points).view(-1, k),
            flatten_index("centers", centers_index, points),
            offsets.flatten(0, 1),
            offset_frequencies(self.width, config.tokenizer_alpha, config.tokenizer_beta, xyz.device),
        )
        if trains_as_one(self.blocks, hoods):
            pooled = train_as_one(self.blocks, hoods)
        else:
            rows = hoods.all_rows()
            for block in self.blocks:
                rows = block(rows)
            pooled = rows.view(-1, k, self.width).amax(dim=1)
        return pooled.view(*centers.shape[:2], self.width)


def default_tokenizer_width(hidden_size: int, stages: int) -> int:
    """The tokenizer's width for an encoder: the encoder's own where the sinusoid fits and it is not too wide."""
    return hidden_size if hidden_size <= 768 and hidden_size % (6 * 2 ** (stages - 1)) == 0 else 384


def normalize_offsets(offsets: torch.Tensor, how: str, eps: float) -> torch.Tensor:
    """Make neighbour offsets `(batch, centers, k, 3)` scale-free (Point-PN; see `Any2PointConfig`)."""
    if how == "group_max":
        return offsets / (offsets.abs().amax(dim=2, keepdim=True) + eps)
    axes = (0, 1, 2, 3) if how == "batch_std" else (1, 2, 3)
    return offsets / (offsets.std(dim=axes, keepdim=True) + eps)
