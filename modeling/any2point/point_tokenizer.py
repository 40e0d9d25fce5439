"""Tokenizers of point clouds: Point-PN's stages (the paper's), and a mini-PointNet in one step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
            self.load_state_dict(read_weights(name, self.config.token_channels))

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
    ) -> PointTokens:
        """Tokenize checked points `(batch, points, in_channels)`; `with_levels` requests `levels`."""
        raise NotImplementedError

    def forward(
        self,
        points: torch.Tensor,
        with_levels: bool = False,
        point_index: Mapping[str, Any] | None = None,
    ) -> PointTokens:
        """Check points `(batch, points, in_channels)`, xyz first, and tokenize them.

        `with_levels` requests `levels`; `point_index` has centers and neighbors, as `PointIndexer` computes them.
        """
        config = self.config
        check_channels(points, config.in_channels, config.min_points)
        if config.height_axis is not None:
            along = points[..., config.height_axis].unsqueeze(-1)
            points = torch.cat([points, along - along.amin(dim=1, keepdim=True)], dim=-1)
        if point_index is not None:
            check_point_index(point_index, points[..., :3], config)
        result = self.tokenize(points, with_levels, point_index)
        if self.token_norm is not None:
            result.tokens = self.token_norm(result.tokens.flatten(0, 1)).view_as(result.tokens)
        return result


class PointTokenizer(Tokenizer):
    """Tokenize in stages: sample centers, gather neighbors, encode offsets, pool.

    Shape: points `(batch, points, in_channels)`, at least `config.min_points` points. Trained from scratch
    (Any2Point, Sec. 3.1; Point-PN in its light form).
    """

    # Hidden channels of the blocks of the last stage, as released; None, as in other stages, for half their width.
    last_bottleneck: ClassVar[int | None] = 32

    def __init__(self, config: TokenizerConfig, hidden_size: int):
        super().__init__(config, hidden_size)
        widths = self.widths_of(config, hidden_size)
        self.embed = nn.Linear(config.token_channels, widths[0], bias=False)
        self.embed_norm = nn.BatchNorm1d(widths[0])
        self.stages = nn.ModuleList()
        for number, (width, blocks) in enumerate(zip(widths[1:], config.tokenizer_blocks, strict=True)):
            bottleneck = self.last_bottleneck if number == config.num_stages - 1 else None
            self.stages.append(self.stage_of(config, widths[number], width, blocks, bottleneck))
        self.level_widths = tuple(widths[:-1])
        self.project = nn.Identity() if widths[-1] == hidden_size else nn.Linear(widths[-1], hidden_size)

    @staticmethod
    def widths_of(config: TokenizerConfig, hidden_size: int) -> list[int]:
        """Return the channels of the embedded points and of each stage, each of which doubles them."""
        stages = config.num_stages
        width = config.tokenizer_width
        if width is None:
            # The encoder's, if the sinusoid's channels divide it.
            width = hidden_size if hidden_size <= 768 and hidden_size % (6 * 2 ** (stages - 1)) == 0 else 384
        return [width >> (stages - stage) for stage in range(stages + 1)]

    @staticmethod
    def stage_of(config: TokenizerConfig, before: int, width: int, blocks: int, bottleneck: int | None) -> nn.Module:
        """Return a stage from features of width `before` to those of `width`."""
        return TokenizerStage(config, width, blocks, bottleneck)

    def tokenize(
        self,
        points: torch.Tensor,
        with_levels: bool,
        point_index: Mapping[str, Any] | None = None,
    ) -> PointTokens:
        """Tokenize `(batch, points, in_channels)`; see the class."""
        xyz = points[..., :3].contiguous()
        if point_index is None:
            index = sample_centers(xyz, self.config)
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
                neighbors = nearest(centers, xyz, self.config.tokenizer_neighbors)  # (batch, centers, k)
            else:
                neighbors = point_index["neighbors"][number]
            features = stage(xyz, features, centers, centers_index, neighbors)
            xyz = centers
            # Sampling is greedy, so the centers of a later stage are the first half of those of the stage before.
            count //= 2
            centers_index = torch.arange(count, device=xyz.device).expand(xyz.shape[0], -1)
        tokens = self.project(features)  # (batch, tokens, hidden)
        return PointTokens(tokens, xyz, index[:, : self.config.num_tokens], tuple(levels))


class FullPointTokenizer(PointTokenizer):
    """`PointTokenizer` in Point-PN's own form, of which Any2Point's is the light one (APPT's tokens)."""

    last_bottleneck = None

    @staticmethod
    def widths_of(config: TokenizerConfig, hidden_size: int) -> list[int]:
        """Return the channels of the embedded points and of each stage."""
        width = config.tokenizer_width or hidden_size
        if len(config.tokenizer_expansions) != config.num_stages:
            raise ValueError(
                f"tokenizer_expansions={list(config.tokenizer_expansions)}; expected {config.num_stages} numbers, one "
                "for each stage of tokenizer_blocks"
            )
        divisor = math.prod(config.tokenizer_expansions)
        if width % divisor:
            raise ValueError(
                f"tokenizer_expansions={list(config.tokenizer_expansions)}: {width} channels of the last stage are no "
                f"multiple of {divisor}, the product"
            )
        widths = [width // divisor]
        for factor in config.tokenizer_expansions:
            widths.append(widths[-1] * factor)
        return widths

    @staticmethod
    def stage_of(config: TokenizerConfig, before: int, width: int, blocks: int, bottleneck: int | None) -> nn.Module:
        """Return a stage from features of width `before` to those of `width`."""
        return FullTokenizerStage(config, before, width, blocks, bottleneck)


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


class FullTokenizerStage(nn.Module):
    """A stage with a linear layer before the encoded offsets, and maximum plus mean over neighbors (Point-PN).

    Convolutions, as in the released program, whose order of sums decides between nearly equal numbers.
    """

    def __init__(self, config: TokenizerConfig, before: int, width: int, blocks: int, bottleneck: int | None):
        super().__init__()
        if width % 6:
            raise ValueError(
                f"tokenizer_expansions={list(config.tokenizer_expansions)}: a stage has {width} channels; expected a "
                "multiple of 6, for sines and cosines of three axes"
            )
        self.config = config
        self.width = width
        self.lift = nn.Conv1d(2 * before, width, kernel_size=1, bias=False)
        self.lift_norm = nn.BatchNorm1d(width)
        self.blocks = nn.ModuleList(_ConvolutionBlock(width, bottleneck or width // 2) for _ in range(blocks))

    def forward(
        self,
        xyz: torch.Tensor,
        features: torch.Tensor,
        centers: torch.Tensor,
        centers_index: torch.Tensor,
        neighbors: torch.Tensor,
    ) -> torch.Tensor:
        """Map the features `(batch, points, before)` of a stage to `(batch, centers, width)` of the next."""
        config = self.config
        offsets = group(xyz, neighbors) - centers.unsqueeze(2)  # (batch, centers, k, 3)
        offsets = normalize_offsets(offsets, config.released.offset_normalization, config.released.offset_eps)
        around = group(features, neighbors)  # (batch, centers, k, before)
        own = gather_points(features, centers_index).unsqueeze(2).expand_as(around)
        # A column for every neighbor of all centers: (batch, width, centers * k)
        columns = self.lift(torch.cat([around, own], dim=-1).flatten(1, 2).transpose(1, 2))
        columns = self.lift_norm(columns).relu()
        encoded = self._encoded(offsets).to(columns.dtype).flatten(1, 2).transpose(1, 2)
        columns = (columns + encoded) * encoded
        for block in self.blocks:
            columns = block(columns)
        columns = columns.unflatten(2, neighbors.shape[1:])  # (batch, width, centers, k)
        # Not amax, which shares the gradient among equal numbers; as released, one of them gets it.
        return (columns.max(dim=-1).values + columns.mean(dim=-1)).transpose(1, 2)

    def _encoded(self, offsets: torch.Tensor) -> torch.Tensor:
        """Encode offsets as `encode_offsets`, but divide by wavelengths: angles are so large that rounding shows."""
        steps = torch.arange(self.width // 6, device=offsets.device, dtype=torch.float32)
        wavelengths = ALPHA ** (steps / len(steps))
        angles = (BETA * offsets).unsqueeze(-1) / wavelengths
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class _ConvolutionBlock(nn.Module):
    """Two convolutions of one place with batch norms and a residual sum."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.reduce = nn.Conv1d(width, hidden, kernel_size=1)
        self.reduce_norm = nn.BatchNorm1d(hidden)
        self.expand = nn.Conv1d(hidden, width, kernel_size=1)
        self.expand_norm = nn.BatchNorm1d(width)

    def forward(self, columns: torch.Tensor) -> torch.Tensor:
        """Map `(batch, width, places)` to the same."""
        hidden = self.reduce_norm(self.reduce(columns)).relu()
        return (self.expand_norm(self.expand(hidden)) + columns).relu()


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

    Attributes:
        first_tokens: Tokens of a cloud in training, the first of all; None for all. Set by `FewTokensFirst`.
    """

    first_tokens: int | None = None

    def __init__(self, config: TokenizerConfig, hidden_size: int):
        super().__init__(config, hidden_size)
        width = config.tokenizer_width or 192
        self.level_widths = (width,)
        self.local = PatchEncoder(config.token_channels, hidden_size, (width // 2, width, width), bias=False)
        self.place = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, hidden_size))

    def tokenize(
        self,
        points: torch.Tensor,
        with_levels: bool,
        point_index: Mapping[str, Any] | None = None,
    ) -> PointTokens:
        """Tokenize `(batch, points, in_channels)`; see the class."""
        xyz = points[..., :3].contiguous()
        # Sampling is greedy, so fewer tokens are the first of all, and each has the neighbors that it always has.
        tokens = self.first_tokens if self.training else None
        if point_index is None:
            index = sample_centers(xyz, self.config)[:, :tokens]
            centers = gather_points(xyz, index)  # (batch, tokens, 3)
            near = nearest(centers, xyz, self.config.tokenizer_neighbors)  # (batch, tokens, k)
        else:
            index = point_index["centers"][:, :tokens].long()
            centers = gather_points(xyz, index)
            near = point_index["neighbors"][0][:, :tokens]
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


TOKENIZERS: dict[str, type[Tokenizer]] = {
    "point_pn": PointTokenizer,
    "point_pn_full": FullPointTokenizer,
    "patch": PatchTokenizer,
}
"""By `config.tokenizer`."""


def normalize_offsets(offsets: torch.Tensor, how: str, eps: float) -> torch.Tensor:
    """Normalize the scale of neighbor offsets `(batch, centers, k, 3)` (Point-PN; see `Any2PointConfig`)."""
    if how == "group_max":
        # (batch, centers, 1, 3): each axis has a scale of its own.
        return offsets / (offsets.abs().amax(dim=2, keepdim=True) + eps)
    # With axis 0 the scale is that of the batch, and a cloud's tokens depend on the others.
    axes = (0, 1, 2, 3) if how == "batch_std" else (1, 2, 3)
    return offsets / (offsets.std(dim=axes, keepdim=True) + eps)
