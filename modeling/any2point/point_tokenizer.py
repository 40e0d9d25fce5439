"""Tokenizers of point clouds: Point-PN's stages (the paper's), and a mini-PointNet in one step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_any3d.modeling import kernels
from hf_any3d.modeling.any2point.configuration_any2point import TokenizerConfig
from hf_any3d.modeling.any2point.point_index import check_point_index, nearest, sample_centers
from hf_any3d.modeling.any2point.starting_weights import misfit, read_weights
from hf_any3d.modeling.kernels.neighborhoods import Neighborhoods, offset_frequencies
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_encoders.patches import PatchEncoder
from hf_any3d.modeling.point_ops import gather_points, group, scatter_mean
from hf_any3d.modeling.point_ops.grouping import check_channels, flatten_index

# Base and factor of the frequencies of the offsets' sinusoid (Point-NN, Eq. 3)
ALPHA = 1000.0
BETA = 100.0
# Hidden channels of the blocks of the last stage, in all released programs; other stages have half their width.
_LAST_BOTTLENECK = 32


class PatchSizes(NamedTuple):
    """Numbers of tokens that a tokenizer makes, and of neighbors of each center."""

    count: int
    neighbors: int


@dataclass
class PointLevel:
    """Features of a stage of a tokenizer.

    Args:
        features: `(batch, places, width)`.
        centers: `(batch, places, 3)`, in the units of the input; None if the places are the input points.
    """

    features: torch.Tensor
    centers: torch.Tensor | None = None


@dataclass
class PointTokens:
    """Tokens of a batch of clouds.

    Args:
        tokens: `(batch, tokens, hidden)`.
        centers: `(batch, tokens, 3)`, in the units of the input.
        index: `(batch, tokens)`, indices of the centers among the input points.
        levels: Features of the stages before, from fine to coarse; empty unless requested.
    """

    tokens: torch.Tensor
    centers: torch.Tensor
    index: torch.Tensor
    levels: tuple[PointLevel, ...] = ()


class Tokenizer(nn.Module):
    """Base class of the tokenizers; a subclass implements `tokenize`.

    Attributes:
        level_widths: Channels of each of `PointTokens.levels`.
    """

    level_widths: tuple[int, ...] = ()

    def __init__(self, config: TokenizerConfig, hidden_size: int):
        super().__init__()
        self.config = config
        if config.tokenizer_weights != "random" and (reason := misfit(vars(config), hidden_size)):
            raise ValueError(f"tokenizer_weights={config.tokenizer_weights!r} does not fit {reason}")
        # Max-pooled tokens have a large common mean and differ little from it, but an encoder expects a spread around
        # zero as of words or patches. A norm over tokens removes that mean, a norm over channels would not.
        self.token_norm = None if config.token_scale is None else nn.BatchNorm1d(hidden_size)

    def start(self) -> None:
        """Copy the weights that `config.tokenizer_weights` names; random ones stay as they are.

        For constructors of models, after `post_init`: transformers passes no module without tensors of its own to
        `_init_weights`. While a checkpoint is opened, nothing is copied, because tensors are on the meta device.
        """
        name = self.config.tokenizer_weights
        if name != "random" and not next(self.parameters()).is_meta:
            self.load_state_dict(read_weights(name, self.config.in_channels))

    @torch.no_grad()
    def scale_tokens(self, gain: float | torch.Tensor) -> None:
        """Multiply the spread of new tokens, whose norm starts with a gain of 1 (`config.token_scale`)."""
        if self.token_norm is not None:
            # The bias too: `start` may have copied one that is not 0.
            self.token_norm.weight.mul_(gain)
            self.token_norm.bias.mul_(gain)

    def tokenize(
        self,
        points: torch.Tensor,
        with_levels: bool,
        point_index: Mapping[str, Any] | None = None,
        patches: PatchSizes | None = None,
    ) -> PointTokens:
        """Tokenize checked points `(batch, points, in_channels)`; `with_levels` requests `levels`."""
        raise NotImplementedError

    def forward(
        self,
        points: torch.Tensor,
        with_levels: bool = False,
        point_index: Mapping[str, Any] | None = None,
        patches: PatchSizes | None = None,
    ) -> PointTokens:
        """Check points `(batch, points, in_channels)`, xyz first, and tokenize them.

        `with_levels` requests `levels`; `point_index` has centers and neighbors, as `PointIndexer` computes them.
        `patches` asks for other patches than the config's, by the same weights.
        """
        config = self.config
        check_channels(points, config.in_channels, config.min_points)
        if point_index is not None:
            check_point_index(point_index, points[..., :3], config)
        # A custom tokenizer may have no other patches.
        sizes = {} if patches is None else {"patches": patches}
        result = self.tokenize(points, with_levels, point_index, **sizes)
        if self.token_norm is not None:
            result.tokens = self.token_norm(result.tokens.flatten(0, 1)).view_as(result.tokens)
        return result


class PointTokenizer(Tokenizer):
    """Tokenize in stages: sample centers, gather neighbors, encode offsets, pool.

    Shape: points `(batch, points, in_channels)`, at least `config.min_points` points. Trained from scratch
    (Any2Point, Sec. 3.1; Point-PN in its light form).
    """

    def __init__(self, config: TokenizerConfig, hidden_size: int):
        super().__init__(config, hidden_size)
        stages = config.num_stages
        width = config.tokenizer_width
        if width is None:
            # The encoder's, if the sinusoid's channels divide it.
            width = hidden_size if hidden_size <= 768 and hidden_size % (6 * 2 ** (stages - 1)) == 0 else 384
        # Every stage doubles the channels, up to `width` in the last one.
        self.embed = nn.Linear(config.in_channels, width >> stages, bias=False)
        self.embed_norm = nn.BatchNorm1d(width >> stages)
        self.stages = nn.ModuleList()
        for stage, blocks in enumerate(config.tokenizer_blocks):
            bottleneck = _LAST_BOTTLENECK if stage == stages - 1 else None
            self.stages.append(TokenizerStage(config, width >> (stages - 1 - stage), blocks, bottleneck))
        self.level_widths = tuple(width >> (stages - stage) for stage in range(stages))
        self.project = nn.Identity() if width == hidden_size else nn.Linear(width, hidden_size)

    def tokenize(
        self,
        points: torch.Tensor,
        with_levels: bool,
        point_index: Mapping[str, Any] | None = None,
        patches: PatchSizes | None = None,
    ) -> PointTokens:
        """Tokenize `(batch, points, in_channels)`; see the class."""
        sizes = patches or PatchSizes(self.config.num_tokens, self.config.tokenizer_neighbors)
        xyz = points[..., :3].contiguous()
        if point_index is None:
            index = sample_centers(xyz, self.config, sizes.count)
        else:
            index = point_index["centers"].long()
        count = index.shape[1]
        rows = self.embed(in_precision_of(self, points).flatten(0, 1))
        features = self.embed_norm(rows).relu_().view(*points.shape[:2], -1)  # (batch, points, width / 8)
        levels: list[PointLevel] = []
        centers_index = index
        for number, stage in enumerate(self.stages):
            centers = gather_points(xyz, centers_index)  # (batch, centers, 3)
            if with_levels:
                # The places of the first level are the input points.
                levels.append(PointLevel(features, xyz if levels else None))
            if point_index is None:
                neighbors = nearest(centers, xyz, sizes.neighbors)  # (batch, centers, k)
            else:
                neighbors = point_index["neighbors"][number]
            features = stage(xyz, features, centers, centers_index, neighbors)
            xyz = centers
            # Sampling is greedy, so the centers of a later stage are the first half of those of the stage before.
            count //= 2
            centers_index = torch.arange(count, device=xyz.device).expand(xyz.shape[0], -1)
        tokens = self.project(features)  # (batch, tokens, hidden)
        return PointTokens(tokens, xyz, index[:, : sizes.count], tuple(levels))


class TokenizerStage(nn.Module):
    """A stage: k neighbors of every center, encoded offsets, residual blocks, maximum over neighbors."""

    def __init__(self, config: TokenizerConfig, width: int, blocks: int, bottleneck: int | None):
        super().__init__()
        self.config = config
        self.width = width
        self.blocks = nn.ModuleList(ResidualBlock(width, bottleneck or width // 2) for _ in range(blocks))

    def forward(
        self,
        xyz: torch.Tensor,
        features: torch.Tensor,
        centers: torch.Tensor,
        centers_index: torch.Tensor,
        neighbors: torch.Tensor,
    ) -> torch.Tensor:
        """Map the features `(batch, points, width / 2)` of a stage to `(batch, centers, width)` of the next.

        `neighbors (batch, centers, k)` are numbers among the points.
        """
        config = self.config
        k = neighbors.shape[2]
        offsets = group(xyz, neighbors) - centers.unsqueeze(2)  # (batch, centers, k, 3)
        # Neighborhoods are wide where points are sparse: scaled, the sinusoids below see the same shapes alike.
        offsets = normalize_offsets(offsets, config.released.offset_normalization, config.released.offset_eps)
        points = xyz.shape[1]
        neighborhoods = Neighborhoods(
            features.flatten(0, 1),
            flatten_index("neighbors", neighbors, points).view(-1, k),
            flatten_index("centers", centers_index, points),
            offsets.flatten(0, 1),
            offset_frequencies(self.width, ALPHA, BETA, xyz.device),
        )
        # Gathering, sinusoids, blocks and maximum in one, as a row for each neighbor of all centers is large.
        return kernels.pooled_blocks(neighborhoods, self.blocks).view(*centers.shape[:2], self.width)


class ResidualBlock(nn.Module):
    """Two linear layers with batch norms and a residual sum, applied to every row separately."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.reduce = nn.Linear(width, hidden)
        self.reduce_norm = nn.BatchNorm1d(hidden)
        self.expand = nn.Linear(hidden, width)
        self.expand_norm = nn.BatchNorm1d(width)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map `(rows, width)` to `(rows, width)`."""
        # In place: there is a row for every neighbor.
        hidden = self.reduce_norm(self.reduce(rows)).relu_()
        return self.expand_norm(self.expand(hidden)).add_(rows).relu_()


class PatchTokenizer(Tokenizer):
    """Tokenize in one step: a mini-PointNet encodes the neighbors of each center, an MLP the center.

    Shape: points `(batch, points, in_channels)`, at least `config.min_points` points. Lighter than `PointTokenizer`
    and better for few shapes; not in the released Any2Point programs (Point-BERT, Sec. 3.1).
    """

    def __init__(self, config: TokenizerConfig, hidden_size: int):
        super().__init__(config, hidden_size)
        width = config.tokenizer_width or 192
        self.level_widths = (width,)
        self.local = PatchEncoder(config.in_channels, hidden_size, (width // 2, width, width), bias=False)
        self.place = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, hidden_size))

    def tokenize(
        self,
        points: torch.Tensor,
        with_levels: bool,
        point_index: Mapping[str, Any] | None = None,
        patches: PatchSizes | None = None,
    ) -> PointTokens:
        """Tokenize `(batch, points, in_channels)`; see the class."""
        sizes = patches or PatchSizes(self.config.num_tokens, self.config.tokenizer_neighbors)
        xyz = points[..., :3].contiguous()
        if point_index is None:
            index = sample_centers(xyz, self.config, sizes.count)
            centers = gather_points(xyz, index)  # (batch, tokens, 3)
            near = nearest(centers, xyz, sizes.neighbors)  # (batch, tokens, k)
        else:
            index = point_index["centers"].long()
            centers = gather_points(xyz, index)
            near = point_index["neighbors"][0]
        neighbors = group(points, near)  # (batch, tokens, k, channels)
        offsets = neighbors[..., :3] - centers.unsqueeze(2)
        offsets = torch.cat([offsets, neighbors[..., 3:]], dim=-1)
        # Patches are relative to their centers, so tokens get the place of the center besides.
        place = self.place(in_precision_of(self.place, centers))
        if not with_levels:
            return PointTokens(self.local(offsets) + place, centers, index)
        point_features = self.local.point_features(offsets)  # (batch, tokens, k, width)
        # The mean over the patches that contain a point; zero for points in no patch.
        mean = scatter_mean(point_features.flatten(1, 2), near.flatten(1), points.shape[1])  # (batch, points, width)
        return PointTokens(self.local.pool(point_features) + place, centers, index, (PointLevel(mean),))


TOKENIZERS: dict[str, type[Tokenizer]] = {"point_pn": PointTokenizer, "patch": PatchTokenizer}
"""By `config.tokenizer`."""


def normalize_offsets(offsets: torch.Tensor, how: str, eps: float) -> torch.Tensor:
    """Normalize the scale of neighbor offsets `(batch, centers, k, 3)` (Point-PN; see `Any2PointConfig`)."""
    if how == "group_max":
        # (batch, centers, 1, 3): each axis has a scale of its own.
        return offsets / (offsets.abs().amax(dim=2, keepdim=True) + eps)
    # With axis 0 the scale is that of the batch, and a cloud's tokens depend on the others.
    axes = (0, 1, 2, 3) if how == "batch_std" else (1, 2, 3)
    return offsets / (offsets.std(dim=axes, keepdim=True) + eps)
