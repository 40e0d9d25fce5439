"""The patch tokenizer: a mini-PointNet over neighbourhoods, as in Point-BERT."""

from __future__ import annotations

import torch
from torch import nn

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig
from hf_any3d.modeling.any2point.tokenizer import PointLevel, PointTokens, Tokenizer
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, group, knn, scatter_mean


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
        self.local = MiniPointNet(config.in_channels, width, hidden_size)
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
        of_points = self.local.read(torch.cat([offsets, neighbors[..., 3:]], dim=-1))  # (batch, tokens, k, width)
        tokens = self.local.pool(of_points) + self.place(centers.to(self.place[0].weight.dtype))
        levels = ()
        if with_levels:
            # A point is what the patches that hold it make of it, on average; one that no patch holds is nothing.
            seen = scatter_mean(of_points.flatten(1, 2), near.flatten(1), points.shape[1])  # (batch, points, width)
            levels = (PointLevel(seen),)
        return PointTokens(tokens, centers, index, levels)


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
        return self.pool(self.read(patches))

    def read(self, patches: torch.Tensor) -> torch.Tensor:
        """What every point of `(batch, groups, k, channels)` is within its patch, `(batch, groups, k, width)`."""
        batch, groups, k, channels = patches.shape
        rows = patches.reshape(-1, channels).to(self.lift.weight.dtype)  # (batch * groups * k, channels)
        rows = self.widen(self.lift_norm(self.lift(rows)).relu_())
        whole = rows.view(-1, k, rows.shape[-1]).amax(dim=1)  # (batch * groups, width)
        # The joined layer is linear: the part of the whole patch is computed once, not for each of its points.
        for_whole, for_points = self.join.weight.chunk(2, dim=1)
        shared = nn.functional.linear(whole, for_whole).repeat_interleave(k, dim=0)
        rows = self.join_norm(nn.functional.linear(rows, for_points) + shared).relu_()
        return rows.view(batch, groups, k, -1)

    def pool(self, rows: torch.Tensor) -> torch.Tensor:
        """Patches `(batch, groups, hidden)` from what `read` gave."""
        # This layer is linear, too, but a maximum follows it: no short cut here.
        return self.out(rows).amax(dim=2)
