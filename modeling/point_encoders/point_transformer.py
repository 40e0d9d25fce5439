"""Point-BERT's point transformer, shared by several models.

Pre-norm blocks, the places of tokens for guided adapters, and a head for each point; patches are in `patches`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from hf_any3d.modeling.kernels.cells import Membership, membership
from hf_any3d.modeling.layers.adapted_layers import asks_of, enter_layer
from hf_any3d.modeling.layers.heads import ClassificationHead, HeadNorm, in_precision_of
from hf_any3d.modeling.point_ops import (
    three_nearest_interpolate,
    voxel_cells,
)
from hf_any3d.modeling.point_ops.geometry import GRIDS, Geometry, normalize_centers


class PointBlocks(nn.Module):
    """Stack of blocks; positions are added before each of them.

    Depth, heads and the drop path rate of the last block, which grows linearly from 0, are by default the config's;
    `block` is the class of the blocks, `PointBlock` by default.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        depth: int | None = None,
        num_heads: int | None = None,
        drop_path_rate: float | None = None,
        block: Callable[[PreTrainedConfig, int, float], nn.Module] | None = None,
    ):
        super().__init__()
        depth = config.num_hidden_layers if depth is None else depth
        num_heads = config.num_attention_heads if num_heads is None else num_heads
        drop_path_rate = config.drop_path_rate if drop_path_rate is None else drop_path_rate
        # On the CPU, since transformers builds models on the meta device, where values cannot be read.
        self.layers = nn.ModuleList()
        for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist():
            self.layers.append((block or PointBlock)(config, num_heads, rate))

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor | None = None,
        outputs_of: Sequence[int] = (),
        geometry: Any = None,
        added: dict[int, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Run all blocks on `(batch, tokens, hidden)`; positions have the same shape.

        The outputs of the blocks `outputs_of` are returned too, in this order. `geometry` is for adapters around
        blocks that take it; `added` gets, by the number of a block, the tokens `(batch, some, hidden)` that adapters
        leave behind its output. `attention_mask` is that of `PointAttention`.
        """
        kept = {}
        count = hidden_states.shape[1]
        for number, layer in enumerate(self.layers):
            own_positions = positions
            # Layers that append prompts to the tokens need positions of the same length; prompts have none.
            if positions is not None and (extra := asks_of(layer).extra_tokens):
                own_positions = nn.functional.pad(positions, (0, 0, 0, extra))
            # Blocks add positions themselves.
            hidden_states, asked = enter_layer(layer, hidden_states, geometry, count=count)
            if attention_mask is not None:
                asked["attention_mask"] = attention_mask
            hidden_states = layer(hidden_states, own_positions, **asked)
            if number in outputs_of:
                kept[number] = hidden_states[:, :count]
            if added is not None and hidden_states.shape[1] > count:
                added[number] = hidden_states[:, count:]
        return hidden_states[:, :count], tuple(kept[number] for number in outputs_of)


class PointBlock(GradientCheckpointingLayer):
    """Attention and MLP, each with a norm before and a residual connection.

    The config has `hidden_size`, `layer_norm_eps`, `qkv_bias` and either `mlp_ratio` or `intermediate_size`; for a
    gated MLP also `gated_mlp` and `mlp_norm`.
    """

    def __init__(self, config: PreTrainedConfig, num_heads: int, drop_path_rate: float = 0.0):
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = PointAttention(config, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        hidden = getattr(config, "intermediate_size", None) or int(width * config.mlp_ratio)
        if getattr(config, "gated_mlp", False):
            self.mlp = GatedMlp(width, hidden, config.layer_norm_eps if config.mlp_norm else None)
        else:
            self.mlp = PointMlp(width, hidden)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor | None = None,
        beside_mlp: Callable[[torch.Tensor], torch.Tensor] | None = None,
        second_half: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run on `(batch, tokens, hidden)`; positions of the same shape are added first.

        `beside_mlp` is a function of the tokens between attention and MLP, whose result is added to the output.
        `second_half` is a function of the normed tokens, of those that the residual connection adds, and of the MLP's
        output, whose result is the output of the block.
        """
        if positions is not None:
            hidden_states = hidden_states + positions
        hidden_states = self.attend(hidden_states, attention_mask)
        normed = self.norm2(hidden_states)
        branch = self.mlp(normed)
        if second_half is not None:
            return second_half(normed, hidden_states, branch)
        output = hidden_states + self.drop_path(branch)
        return output if beside_mlp is None else output + beside_mlp(hidden_states)

    def attend(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Run the first half of the block, norm and attention."""
        # The second output, the attention weights, is read by a recorder around the module.
        return hidden_states + self.drop_path(self.attention(self.norm1(hidden_states), attention_mask)[0])


class PointAttention(nn.Module):
    """Multi-head attention between all tokens of a cloud, `(batch, tokens, hidden)` to the same.

    As in transformers, the weights `(batch, heads, tokens, tokens)` are the second output, None without
    `attn_implementation="eager"`.

    `attention_mask (tokens, tokens)`, or with axes of clouds and heads before, is added to the scores. Tokens that
    adapters have added behind those of the mask are in no order: all others see them, and they see all others.
    """

    def __init__(self, config: PreTrainedConfig, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        width = config.hidden_size
        self.scaling = (width // num_heads) ** -0.5
        self.is_causal = False
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; see the class."""
        batch, tokens, width = hidden_states.shape
        # Query, key and value are stacked in one layer, in this order, as in Point-BERT's weights.
        heads = self.qkv(hidden_states).view(batch, tokens, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (batch, heads, tokens, width / heads) each
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mask = None
        if attention_mask is not None:
            added = tokens - attention_mask.shape[-1]
            mask = nn.functional.pad(attention_mask, (0, added, 0, added)).to(query.dtype)
            mask = mask.expand(batch, 1, -1, -1)
        mixed, weights = attend(self, query, key, value, mask, scaling=self.scaling, dropout=0.0, is_causal=False)
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


class GatedMlp(nn.Module):
    """SwiGLU: a layer whose output is multiplied by a gate, an optional norm, and a second layer, for each token.

    Source: EVA-02, Sec. 3.1.
    """

    def __init__(self, width: int, hidden: int, norm_eps: float | None = None):
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.fc1 = nn.Linear(width, hidden)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(hidden, eps=norm_eps)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run on `(…, width)`."""
        return self.fc2(self.norm(nn.functional.silu(self.gate(hidden_states)) * self.fc1(hidden_states)))


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
        # One draw for each row of the first axis: (rows, 1, …).
        kept = branch.new_empty(len(branch), *[1] * (branch.ndim - 1))
        if torch.compiler.is_compiling():
            # `bernoulli_` fixes its rate in the compiled code, and each layer has a rate of its own: twelve layers
            # would be compiled one by one, until torch gives up.
            kept = (kept.uniform_() < keep).to(branch.dtype)
        else:
            kept.bernoulli_(keep)
        return branch * kept.div_(keep)


class TokenGrids(Geometry):
    """Cells of four grids in space, each shifted from the previous one by a quarter of a cell along every axis.

    Cells of Any2Point are of the lines and planes on which its text and image encoders have their positions; ACT's
    tokens have positions in space, so cells are cubes. A single grid separates some neighbors. Of the four, at most
    one has a wall within an eighth of an edge of a token along any one axis, so at most three along all axes, and in
    the remaining one everything within that distance shares the token's cell. The grids are the adapter's views.

    Made by `around`.
    """

    @classmethod
    def around(cls, centers: torch.Tensor, cell_size: float, special_tokens: int) -> "TokenGrids":
        """Make the grids of `centers (batch, tokens, 3)` in any unit; `cell_size` is in radii of the cloud."""
        given = centers.detach().float()
        # In radii, so that one cell size fits clouds of any unit.
        centers = normalize_centers(given)
        views = centers.unsqueeze(1).expand(-1, GRIDS, -1, -1)  # (batch, grids, tokens, 3)
        # Grids in space do not end as lines and images do, so there is no extent.
        return cls(centers, views, (), cell_size, special_tokens, given_centers=given)

    def view_cells(self, cell_size: float | None = None) -> Membership:
        """Return the tokens' cells of edge `cell_size`, in radii of the cloud, in each grid."""
        edge = cell_size or self.cell_size
        key = ("view", edge)
        if key not in self._derived:
            grids = [voxel_cells(self.centers, edge, shift=number / GRIDS) for number in range(GRIDS)]
            cell = torch.stack(grids, dim=1)  # (batch, grids, tokens)
            # A label is the number of a token, so there are never more cells than tokens.
            self._derived[key] = membership(cell, cell.shape[-1])
        return self._derived[key]


class TokenPropagation(nn.Module):
    """Propagate token features to points: interpolation, point coordinates, two layers (PointNet++, Sec. 3.4).

    The released programs interpolate, concatenate the coordinates and apply a linear layer; here the layer is applied
    to the tokens before interpolation, which is equivalent and cheaper. `point_width` is that of the points' features.
    """

    def __init__(self, token_width: int, widths: Sequence[int], point_width: int = 3):
        super().__init__()
        mixed, out = widths
        self.from_points = nn.Linear(point_width, mixed)
        # Interpolation weights sum to 1, so a layer before interpolation equals one after it. `from_points` has the
        # bias.
        self.from_tokens = nn.Linear(token_width, mixed, bias=False)
        self.mixed_norm = HeadNorm(mixed)
        self.out = nn.Linear(mixed, out)
        self.out_norm = HeadNorm(out)

    def forward(
        self, xyz: torch.Tensor, centers: torch.Tensor, tokens: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute features of every point `(batch, points, 3)`: `(batch, points, widths[1])`.

        Tokens `(batch, groups, token_width)` are at `centers (batch, groups, 3)`. `features (batch, points,
        point_width)` of the points are by default their coordinates.
        """
        tokens = self.from_tokens(in_precision_of(self, tokens))
        near = three_nearest_interpolate(xyz, centers, tokens)  # (batch, points, mixed)
        mixed = near + self.from_points((xyz if features is None else features).to(near.dtype))
        rows = torch.relu(self.mixed_norm(mixed.flatten(0, 1)))  # (batch * points, mixed)
        return torch.relu(self.out_norm(self.out(rows))).unflatten(0, xyz.shape[:2])


class PointHead(nn.Module):
    """Head for each point that also reads features of the full cloud."""

    def __init__(self, point_width: int, cloud_width: int, config: PreTrainedConfig):
        super().__init__()
        first, *others = config.segmentation_head_widths
        rate, *rates = config.segmentation_head_dropout
        self.from_points = nn.Linear(point_width, first)
        # One linear layer of point and cloud, in two parts: that of the cloud runs once instead of once for each
        # point.
        self.from_cloud = nn.Linear(cloud_width, first, bias=False)
        self.norm = HeadNorm(first)
        self.dropout = nn.Dropout(rate)
        self.head = ClassificationHead(first, config.num_labels, others, dropout=rates)

    def forward(self, points: torch.Tensor, clouds: torch.Tensor) -> torch.Tensor:
        """Compute logits `(batch, points, labels)` from `(batch, points, point_width)` and `(batch, cloud_width)`."""
        points = in_precision_of(self, points)
        clouds = in_precision_of(self, clouds)
        mixed = self.from_points(points) + self.from_cloud(clouds).unsqueeze(1)  # (batch, points, width)
        rows = self.dropout(torch.relu(self.norm(mixed.flatten(0, 1))))
        return self.head(rows).unflatten(0, points.shape[:2])
