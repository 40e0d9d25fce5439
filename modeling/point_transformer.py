"""Point-BERT's point transformer, shared by several models: patches, their mini-PointNet, and pre-norm blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from hf_any3d.modeling import kernels
from hf_any3d.modeling.layers.forward_contract import is_unmodified
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, group, in_full_precision, knn
from hf_any3d.modeling.point_ops.grouping import check_channels


@dataclass
class Patches:
    """Patches of a batch of clouds.

    Args:
        neighborhoods: `(batch, groups, neighbors, channels)`, xyz relative to the centre in the units of the input,
            further channels unchanged; the nearest point, the centre itself, comes first.
        centers: `(batch, groups, 3)`, in the order in which they were sampled.
        center_index: `(batch, groups)`, the indices of the centres among the input points.
    """

    neighborhoods: torch.Tensor
    centers: torch.Tensor
    center_index: torch.Tensor

    @property
    def points(self) -> torch.Tensor:
        """Coordinates of the neighbourhoods' points in the cloud, `(batch, groups, neighbors, 3)`."""
        return self.neighborhoods[..., :3] + self.centers.unsqueeze(2)


def group_patches(
    points: torch.Tensor, num_groups: int, group_size: int, sampling_min_squared_norm: float | None = None
) -> Patches:
    """Group clouds into patches around centres from farthest point sampling.

    Args:
        points: `(batch, points, channels)`, xyz first.
        num_groups: Patches per cloud.
        group_size: Points per patch.
        sampling_min_squared_norm: Points this close to the origin are never sampled as centres, except for the
            first point (released programs: 1e-3, from their CUDA kernel); None samples from all points.

    Raises:
        ValueError: If a cloud has fewer than `num_groups` or `group_size` points.

    Source: Point-BERT, Sec. 3.1.
    """
    count = points.shape[1] if points.ndim == 3 else 0
    if count < max(num_groups, group_size):
        raise ValueError(
            f"points has shape {tuple(points.shape)}; expected (batch, points, channels) with at least "
            f"{max(num_groups, group_size)} points for num_groups={num_groups}, group_size={group_size}"
        )
    xyz = points[..., :3].contiguous()
    index = farthest_point_sample(xyz, num_groups, min_squared_norm=sampling_min_squared_norm)
    centers = gather_points(xyz, index)  # (batch, groups, 3)
    neighbors = group(points, knn(centers, xyz, group_size))  # (batch, groups, neighbors, channels)
    offsets = neighbors[..., :3] - centers.unsqueeze(2)
    if points.shape[2] > 3:
        offsets = torch.cat([offsets, neighbors[..., 3:]], dim=-1)
    return Patches(offsets, centers, index)


def cut_patches(points: torch.Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> Patches:
    """Check clouds `(batch, points, in_channels)` and group them into the patches that a config describes.

    Args:
        points: xyz first.
        config: Has `in_channels`, `num_groups`, `group_size` and `sampling_min_squared_norm`.
        dtype: Precision of the model.

    Raises:
        ValueError: If there is no cloud, the points have other channels or are too few, or a number is NaN, infinite
            or too large.
    """
    check_channels(points, config.in_channels)
    points = in_full_precision(points, dtype)
    return group_patches(points, config.num_groups, config.group_size, config.sampling_min_squared_norm)


class PatchEncoder(nn.Module):
    """Two shared layers, a maximum that is concatenated to every point, two shared layers, a maximum.

    Shape: `(batch, groups, neighbors, in_channels)` to `(batch, groups, width)`.

    Args:
        in_channels: Channels of a point: 3 for xyz, more with colours.
        width: Channels of a token.
        hidden_widths: Output channels of the first, second and third layer.
        bias: Whether layers before a norm have biases, which the norm cancels.
        pooled_width: Channels of the last maximum, if a final layer maps them to `width`; None for `width` and no
            final layer.

    Raises:
        ValueError: If there are not three hidden widths.

    Source: Point-BERT, Sec. 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        hidden_widths: Sequence[int] = (128, 256, 512),
        bias: bool = True,
        pooled_width: int | None = None,
    ):
        super().__init__()
        if len(hidden_widths) != 3:
            raise ValueError(f"patch_widths={tuple(hidden_widths)}; expected three widths")
        lifted, own, joined = hidden_widths
        self.lift = nn.Linear(in_channels, lifted, bias=bias)
        self.lift_norm = nn.BatchNorm1d(lifted)
        self.widen = nn.Linear(lifted, own)
        self.join = nn.Linear(2 * own, joined, bias=bias)
        self.join_norm = nn.BatchNorm1d(joined)
        self.out = nn.Linear(joined, width if pooled_width is None else pooled_width)
        self.project = None if pooled_width is None else nn.Linear(pooled_width, width)

    def forward(self, neighborhoods: torch.Tensor) -> torch.Tensor:
        """Encode patches; see the class."""
        return self._project(kernels.pooled_patches(neighborhoods, self))

    def point_features(self, neighborhoods: torch.Tensor) -> torch.Tensor:
        """Compute features of every point in its patch, `(batch, groups, neighbors, hidden_widths[-1])`."""
        batch, groups, k, channels = neighborhoods.shape
        rows = neighborhoods.reshape(-1, channels).to(self.lift.weight.dtype)  # (batch * groups * k, channels)
        rows = self.widen(self.lift_norm(self.lift(rows)).relu_())
        patch_max = rows.view(-1, k, rows.shape[-1]).amax(dim=1)  # (batch * groups, own)
        if not is_unmodified(self.join):
            joined = torch.cat([patch_max.repeat_interleave(k, dim=0), rows], dim=1)  # (batch * groups * k, 2 * own)
            return self.join_norm(self.join(joined)).relu_().view(batch, groups, k, -1)
        # The joined layer is linear: the term of the patch maximum is computed once per patch, not for each point.
        patch_weight, point_weight = self.join.weight.chunk(2, dim=1)
        shared = nn.functional.linear(patch_max, patch_weight, self.join.bias).unsqueeze(1)
        rows = nn.functional.linear(rows, point_weight).view(-1, k, shared.shape[-1]).add_(shared).flatten(0, 1)
        return self.join_norm(rows).relu_().view(batch, groups, k, -1)

    def pool(self, rows: torch.Tensor) -> torch.Tensor:
        """Pool the output of `point_features` into patch tokens `(batch, groups, width)`."""
        # Unlike amax, max does not keep the rows for the backward pass.
        return self._project(self.out(rows).max(dim=2).values)

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        return pooled if self.project is None else self.project(pooled)


class PointBlocks(nn.Module):
    """Stack of blocks; positions are added before each of them.

    Args:
        config: Has the fields that `PointBlock` reads and defaults for the other arguments.
        depth: Number of blocks; by default `num_hidden_layers` of the config.
        num_heads: Heads of the attention; by default `num_attention_heads` of the config.
        drop_path_rate: Rate of the last block, by default that of the config; it grows linearly from 0.

    Raises:
        ValueError: If the width is not divisible by the number of heads.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        depth: int | None = None,
        num_heads: int | None = None,
        drop_path_rate: float | None = None,
    ):
        super().__init__()
        depth = config.num_hidden_layers if depth is None else depth
        num_heads = config.num_attention_heads if num_heads is None else num_heads
        drop_path_rate = config.drop_path_rate if drop_path_rate is None else drop_path_rate
        if config.hidden_size % num_heads:
            raise ValueError(f"num_heads={num_heads}; expected a divisor of hidden_size={config.hidden_size}")
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.layers = nn.ModuleList(PointBlock(config, num_heads, rate) for rate in rates)

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor | None = None,
        outputs_of: Sequence[int] = (),
        geometry: Any = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Run all blocks.

        Args:
            hidden_states: `(batch, tokens, hidden)`.
            positions: The same shape, or None.
            outputs_of: Numbers of blocks, from 0, whose outputs are returned too.
            geometry: Geometry of the tokens, for adapters around blocks that take it.

        Returns:
            The last block's output `(batch, tokens, hidden)`, and the requested outputs, in the order of `outputs_of`.
        """
        kept = {}
        for number, layer in enumerate(self.layers):
            own_positions = positions
            # Layers that append prompts to the tokens need positions of the same length; prompts have none.
            if positions is not None and (extra := getattr(layer, "extra_tokens", 0)):
                own_positions = nn.functional.pad(positions, (0, 0, 0, extra))
            # Only a guided adapter around a block takes the geometry of the tokens.
            guidance = {"geometry": geometry} if getattr(layer, "takes_geometry", False) else {}
            hidden_states = layer(hidden_states, own_positions, **guidance)
            if number in outputs_of:
                kept[number] = hidden_states
        return hidden_states, tuple(kept[number] for number in outputs_of)


class PointBlock(GradientCheckpointingLayer):
    """Attention and MLP, each with a norm before and a residual connection.

    Args:
        config: Has `hidden_size`, `mlp_ratio`, `layer_norm_eps` and `qkv_bias`.
        num_heads: Heads of the attention.
        drop_path_rate: Probability of dropping a branch in training.
    """

    def __init__(self, config: PreTrainedConfig, num_heads: int, drop_path_rate: float = 0.0):
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = PointAttention(config, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = PointMlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Run on `(batch, tokens, hidden)`, after adding positions of the same shape, if given."""
        if positions is not None:
            hidden_states = hidden_states + positions
        hidden_states = hidden_states + self.drop_path(self.attention(self.norm1(hidden_states))[0])
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)))


class PointAttention(nn.Module):
    """Multi-head attention between all tokens of a cloud, `(batch, tokens, hidden)` to the same.

    As in transformers, the weights `(batch, heads, tokens, tokens)` are the second output, None without
    `attn_implementation="eager"`.
    """

    def __init__(self, config: PreTrainedConfig, num_heads: int):
        super().__init__()
        self.config, self.num_heads = config, num_heads
        width = config.hidden_size
        self.scaling = (width // num_heads) ** -0.5
        self.is_causal = False
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; see the class."""
        batch, tokens, width = hidden_states.shape
        heads = self.qkv(hidden_states).view(batch, tokens, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (batch, heads, tokens, width / heads) each
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0, is_causal=False)
        return self.proj(mixed.reshape(batch, tokens, width)), weights


class PointMlp(nn.Module):
    """Two linear layers with GELU between them, applied to each token."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run on `(…, width)`."""
        return self.fc2(nn.functional.gelu(self.fc1(hidden_states)))


class DropPath(nn.Module):
    """Stochastic depth: drop a branch for some clouds of a training batch, and rescale it for the others."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """Drop the branch `(batch, …)` for some clouds; identity in eval mode."""
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        kept = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(keep)
        return branch * kept.div_(keep)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.rate}"
