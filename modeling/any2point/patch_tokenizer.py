"""The patch tokenizer: a mini-PointNet over neighbourhoods, as in Point-BERT."""

from __future__ import annotations

import torch
from torch import nn

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig
from hf_any3d.modeling.any2point.tokenizer import PointTokens, Tokenizer
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, group, knn


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
        self.local = MiniPointNet(config.in_channels, width, hidden_size)
        self.place = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, hidden_size))

    def tokenize(self, points: torch.Tensor) -> PointTokens:
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
        neighbors = group(points, knn(centers, xyz, config.tokenizer_neighbors))  # (batch, tokens, k, channels)
        offsets = neighbors[..., :3] - centers.unsqueeze(2)
        tokens = self.local(torch.cat([offsets, neighbors[..., 3:]], dim=-1)) + self.place(
            centers.to(self.place[0].weight.dtype)
        )
        return PointTokens(tokens, centers, index)


class MiniPointNet(nn.Module):
    """Two shared layers, a maximum joined to every point, two shared layers, a maximum.

    Shape: `(batch, groups, k, channels)` to `(batch, groups, hidden)`.
    """

    def __init__(self, channels: int, width: int, hidden_size: int):
        super().__init__()
        self.lift = nn.Linear(channels, width // 2, bias=False)
        self.lift_norm = nn.BatchNorm1d(width // 2)
        self.widen = nn.Linear(width // 2, width)
        self.join = nn.Linear(2 * width, width, bias=False)
        self.join_norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Read patches; see the class."""
        batch, groups, k, channels = patches.shape
        rows = patches.reshape(-1, channels).to(self.lift.weight.dtype)  # (batch * groups * k, channels)
        rows = self.widen(self.lift_norm(self.lift(rows)).relu_())
        whole = rows.view(-1, k, rows.shape[-1]).amax(dim=1)  # (batch * groups, width)
        # The joined layer is linear: the part of the whole patch is computed once, not for each of its points.
        for_whole, for_points = self.join.weight.chunk(2, dim=1)
        shared = nn.functional.linear(whole, for_whole).repeat_interleave(k, dim=0)
        rows = self.join_norm(nn.functional.linear(rows, for_points) + shared).relu_()
        # So is the last one, but a maximum follows it: no short cut there.
        return self.out(rows).view(batch, groups, k, -1).amax(dim=2)
