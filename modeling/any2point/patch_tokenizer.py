"""The patch tokenizer: a mini-PointNet over neighbourhoods, as in Point-BERT."""

from __future__ import annotations

import torch
from torch import nn

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig
from hf_any3d.modeling.any2point.tokenizer import PointLevel, PointTokens, Tokenizer
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, group, knn, scatter_mean
from hf_any3d.modeling.point_transformer import PatchEncoder


class PatchTokenizer(Tokenizer):
    """Turns points into tokens in one step: a mini-PointNet reads the neighbours of each centre, an MLP its place.

    Shape: points `(batch, points, in_channels)`, at least `config.min_points` points. Lighter than `PointTokenizer`
    and better where shapes are few; the released Any2Point programs do not have it (Point-BERT, Sec. 3.1).

    Raises:
        ValueError: If a cloud has fewer points than there are tokens or neighbours.
    """

    def __init__(self, config: Any2PointConfig, hidden_size: int):
        super().__init__(config, hidden_size)
        width = config.tokenizer_width or 192
        self.level_widths = (width,)
        self.local = PatchEncoder(config.in_channels, hidden_size, (width // 2, width, width), bias=False)
        self.place = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, hidden_size))

    def tokenize(self, points: torch.Tensor, with_levels: bool) -> PointTokens:
        """Tokenize `(batch, points, in_channels)`; see the class."""
        config = self.config
        xyz = points[..., :3].contiguous()
        index = farthest_point_sample(
            xyz,
            config.num_tokens,
            min_squared_norm=config.sampling_min_squared_norm,
            tie_rule=config.sampling_tie_rule,
        )
        centers = gather_points(xyz, index)  # (batch, tokens, 3)
        near = knn(centers, xyz, config.tokenizer_neighbors)  # (batch, tokens, k)
        neighbors = group(points, near)  # (batch, tokens, k, channels)
        offsets = neighbors[..., :3] - centers.unsqueeze(2)
        patches = torch.cat([offsets, neighbors[..., 3:]], dim=-1)
        place = self.place(centers.to(self.place[0].weight.dtype))
        if not with_levels:
            return PointTokens(self.local(patches) + place, centers, index)
        of_points = self.local.point_features(patches)  # (batch, tokens, k, width)
        # A point is what the patches that hold it make of it, on average; one that no patch holds is nothing.
        seen = scatter_mean(of_points.flatten(1, 2), near.flatten(1), points.shape[1])  # (batch, points, width)
        return PointTokens(self.local.pool(of_points) + place, centers, index, (PointLevel(seen),))
