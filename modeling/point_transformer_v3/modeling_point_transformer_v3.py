"""Point Transformer V3 (arXiv 2312.10035) as Sonata, Concerto and Utonia use it, in plain PyTorch.

points of some clouds
    │  one point for each cell of a grid
    ▼
voxels (voxels, hidden_sizes[0]), flat: those of all clouds in one tensor
    │  stages of blocks; from one to the next, voxels are pooled to larger cells
    ▼
voxels of the last stage (voxels, hidden_sizes[-1]) ─┬─► mean over a cloud ─► classification
                                                     └─► features of all stages, carried up to the points

Shapes: B clouds; points and voxels are those of all clouds, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward
from transformers.utils import ModelOutput

from hf_any3d.modeling.encoders import LayerStack
from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.adapted_layers import asks_of, enter_layer
from hf_any3d.modeling.layers.forward_contract import (
    AttentionRecorder,
    PointTokensMixin,
    requested_outputs,
    strict_forward,
)
from hf_any3d.modeling.layers.heads import ClassificationHead, precision_of
from hf_any3d.modeling.layers.losses import classification_loss, point_loss
from hf_any3d.modeling.layers.tasks import refuse_problem_type
from hf_any3d.modeling.point_encoders.part_texts import PartTextsMixin, text_targets
from hf_any3d.modeling.point_encoders.point_transformer import DropPath, PointMlp
from hf_any3d.modeling.point_encoders.pretrained_base import AdaptedBaseMixin, PretrainedBaseMixin
from hf_any3d.modeling.point_encoders.zero_shot import unit_texts
from hf_any3d.modeling.point_ops import PatchGroups, grid_sample, has_duplicates, in_full_precision, scatter_mean
from hf_any3d.modeling.point_ops.geometry import GRIDS
from hf_any3d.modeling.point_ops.grouping import check_channels
from hf_any3d.modeling.point_transformer_v3.configuration_point_transformer_v3 import PointTransformerV3Config
from hf_any3d.modeling.point_transformer_v3.point_texts import PointTextHead, mask_means, mask_text_loss, products
from hf_any3d.modeling.point_transformer_v3.voxel_layers import (
    ClassTextHead,
    ConditionHeads,
    PointTransformerV3Embeddings,
    PointTransformerV3Pooling,
    PointTransformerV3Unpooling,
    SubmanifoldConvolution,
    block_norm,
    normed,
)
from hf_any3d.modeling.point_transformer_v3.voxel_stages import Batch, Clouds, Voxels, follow, rotate, rotation_of


@dataclass
class PointTransformerV3Output(ModelOutput):
    """Features of a batch of clouds. Those of voxels are flat: one cloud after the other.

    Args:
        last_hidden_state: `(voxels, hidden_size)`, the last stage's; with a decoder, the finest one's.
        pooler_output: `(batch, hidden_size)`, their mean over each cloud.
        coord: `(voxels, 3)`, mean positions of these voxels' points in the units of the input.
        grid_coord: `(voxels, 3)`, their cells.
        offsets: `(batch,)`, the number of voxels up to the end of each cloud.
        point_features: On request, features of every point, `(batch, points, channels)`, zero where a cloud is filled
            up: of the encoder, those of all stages or of the deepest ones, the finest first; of the decoder, its last.
        hidden_states: On request, the input of the first block and the output of each block, `(voxels, channels)`.
        attentions: On request, the weights of each block, `(patches, heads, voxels, voxels)`; patches shorter than the
            longest are filled up. Prompts that an adapter adds are the last keys.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    coord: torch.Tensor | None = None
    grid_coord: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    point_features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class PointTextOutput(ModelOutput):
    """Similarity of points with texts.

    Args:
        loss: With labels, the contrastive loss of the points that a text names.
        logits: `(batch, points, texts)`, products of vectors of voxels and texts times the learned scale, of all
            points; with `none_label` there is a last column of zeros, for none of the texts.
        voxel_embeds: `(voxels, text_embedding_size)`, of any length, those of one cloud after the other.
        text_embeds: `(texts, text_embedding_size)` or `(batch, texts, text_embedding_size)`, unit vectors.
        hidden_states: On request, as of the encoder.
        attentions: On request, as of the encoder.
        offsets: `(batch,)`, the number of voxels up to the end of each cloud.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    voxel_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    offsets: torch.Tensor | None = None


class ConditionalPositions(nn.Module):
    """Positions from the neighborhood: convolution, linear layer, norm."""

    def __init__(self, config: PointTransformerV3Config, width: int):
        super().__init__()
        self.convolution = SubmanifoldConvolution(width, width)
        self.linear = nn.Linear(width, width)
        self.norm = block_norm(config, width)

    def forward(self, hidden_states: torch.Tensor, voxels: Voxels) -> torch.Tensor:
        """Return what is added to voxels, from `(voxels, channels)`."""
        return normed(self.norm, self.linear(self.convolution(hidden_states, voxels.neighbors)), voxels)


class RelativePositionBias(nn.Module):
    """Learned biases of attention between voxels, by the clamped difference of grid coordinates along each axis."""

    def __init__(self, patch_size: int, num_heads: int):
        super().__init__()
        # As released: twice the edge of a cube that the voxels of four patches would fill.
        self.largest = int((4 * patch_size) ** (1 / 3) * 2)
        # `(3 * (2 * largest + 1), heads)`, x first.
        self.table = nn.Parameter(torch.zeros(3 * (2 * self.largest + 1), num_heads))

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Return biases `(patches, heads, queries, keys)` for cells `(patches, queries or keys, 3)`."""
        # In cells: of far pairs, all differences beyond the largest share a bias.
        difference = queries[:, :, None] - keys[:, None]  # (patches, queries, keys, 3)
        place = difference.clamp(-self.largest, self.largest) + self.largest
        # Each axis has its own third of the table.
        place = place + torch.arange(3, device=place.device) * (2 * self.largest + 1)
        # The bias of a pair is the sum of those of the three axes.
        return self.table[place].sum(dim=3).permute(0, 3, 1, 2)


class AttentionHeads(NamedTuple):
    """Query, key and value of voxels `(voxels, heads, channels)`, and keys and values of prompts, if there are any."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    prompts: list[torch.Tensor]


class PointTransformerV3Attention(nn.Module):
    """Attention within patches of voxels that follow each other along a curve.

    As in transformers, the weights `(patches, heads, voxels, voxels)` are the second output, None without
    `attn_implementation="eager"`.
    """

    def __init__(self, config: PointTransformerV3Config, stage: int, width: int, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.scaling = self.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.is_causal = False
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.relative_bias = (
            RelativePositionBias(config.patch_sizes[stage], num_heads) if config.relative_position_bias else None
        )

    def forward(
        self, hidden_states: torch.Tensor, voxels: Voxels, block: int, prompts: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend between voxels `(voxels, channels)` and to prompts `(prompts, channels)`, which have no place.

        The number of the block within its stage chooses the curve.
        """
        kind = self.config._attn_implementation or "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
        # Flash attention takes patches of any lengths in one call; the others get them in groups of equal shape.
        groups = None if "flash" in kind else voxels.groups(as_one=kind == "eager")
        # Voxels are processed in the order of their patches; `places` restores their own.
        rows, places = voxels.arrange(block, groups)
        # (voxels, heads, channels) each, in the order of the patches
        query, key, value = self.qkv(hidden_states[rows]).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=1)
        dtype = query.dtype
        if self.config.rope_theta is not None:
            # Rotated before any cast to half precision, by the positions of voxels in float32.
            cosines, sines = self._rotation(voxels)
            cosines = cosines[rows]
            sines = sines[rows]
            query = rotate(query, cosines, sines).to(dtype)
            key = rotate(key, cosines, sines).to(dtype)
        prompt_heads: list[torch.Tensor] = []
        if prompts is not None:
            # Prompts have no place in space, so their keys are not rotated; nothing asks with their queries.
            of_prompts = self.qkv(prompts).unflatten(-1, (3, self.num_heads, -1))  # (prompts, 3, heads, channels)
            prompt_heads = list(of_prompts[:, 1:].unbind(1))
        if self.config.upcast_attention:
            query = query.float()
            key = key.float()
            value = value.float()
            prompt_heads = [heads.float() for heads in prompt_heads]
        heads = AttentionHeads(query, key, value, prompt_heads)
        if groups is None:
            mixed = self._attend_by_lengths(attend, heads, voxels)
            weights = None
        else:
            # In the order of the groups, as the queries and keys are.
            cells = None if self.relative_bias is None else voxels.grid_coord[rows]
            mixed, weights = self._attend_in_groups(attend, heads, groups, cells)
        mixed = mixed.flatten(1)[places].to(dtype)  # (voxels, channels), in their own order again
        return self.dropout(self.proj(mixed)), weights

    def _settings(self) -> dict[str, Any]:
        """Return the arguments that all attention functions take."""
        dropout = self.config.attention_dropout if self.training else 0.0
        return {"scaling": self.scaling, "dropout": dropout, "is_causal": False}

    def _attend_by_lengths(self, attend: Callable[..., Any], heads: AttentionHeads, voxels: Voxels) -> torch.Tensor:
        """Attend within patches of any lengths: `(voxels, heads, channels)`, for flash attention."""
        query, key, value, prompts = heads
        # `pad` repeats the keys and values of borrowed voxels, and of the prompts, for every patch that reads them.
        lengths = dict(voxels.varlen(len(prompts[0]) if prompts else 0))
        pad = lengths.pop("pad")
        if prompts:
            key = torch.cat([key, prompts[0]])
            value = torch.cat([value, prompts[1]])
        # One sequence that holds all patches: (1, heads, voxels or places, channels)
        query = query.transpose(0, 1)[None]
        key = key[pad].transpose(0, 1)[None]
        value = value[pad].transpose(0, 1)[None]
        return attend(self, query, key, value, None, **self._settings(), **lengths)[0][0]

    def _attend_in_groups(
        self, attend: Callable[..., Any], heads: AttentionHeads, groups: PatchGroups, cells: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend within groups of patches of equal shape: `(voxels, heads, channels)`, and the last weights."""
        parts = []
        weights = None
        for group in groups.groups:
            # (patches, heads, places, channels) each
            queries = group.gather(heads.query).transpose(1, 2)
            keys = group.gather(heads.key, of_keys=True).transpose(1, 2)
            values = group.gather(heads.value, of_keys=True).transpose(1, 2)
            # What is added to the logits, (patches, 1 or heads, queries, keys)
            mask = None
            dtype = heads.query.dtype
            if group.mask is not None:
                # (patches, keys), False for the places that fill up a short patch
                mask = torch.zeros(group.mask.shape, dtype=dtype, device=group.mask.device)
                mask = mask.masked_fill(~group.mask, torch.finfo(dtype).min)[:, None, None]
                mask = mask.expand(-1, 1, group.queries.shape[1], -1)
            if cells is not None and self.relative_bias is not None:
                bias = self.relative_bias(group.gather(cells), group.gather(cells, of_keys=True)).to(dtype)
                mask = bias if mask is None else bias + mask
            if heads.prompts:
                keys = _followed_by(keys, heads.prompts[0])
                values = _followed_by(values, heads.prompts[1])
                # Every patch may read all prompts, and no bias depends on a place that they do not have.
                if mask is not None:
                    mask = nn.functional.pad(mask, (0, len(heads.prompts[0])))
            part, weights = attend(self, queries, keys, values, mask, **self._settings())
            part = part.flatten(0, 1)  # (patches * queries, heads, channels)
            # Without the queries that only fill up short patches.
            parts.append(part if group.own is None else part[group.own])
        return torch.cat(parts) if len(parts) > 1 else parts[0], weights

    def _rotation(self, voxels: Voxels) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        frequencies = self.head_dim // 6
        coord = voxels.coord
        theta = config.rope_theta
        assert theta is not None
        if not self.training or not (config.rope_shift or config.rope_jitter or config.rope_rescale):
            return voxels.rotation(frequencies, theta)

        def draw(count: int, largest: float) -> torch.Tensor:
            return coord.new_empty(count).uniform_(-largest, largest)

        # Utonia's augmentation, drawn for each block: positions of attention alone, not those of voxels.
        if config.rope_shift:
            coord = coord + draw(3, config.rope_shift)
        if config.rope_jitter:
            # Uniform in the logarithm, so that shrinking is as likely as growing.
            coord = coord * draw(3, math.log(config.rope_jitter)).exp()
        if config.rope_rescale:
            coord = coord * draw(1, math.log(config.rope_rescale)).exp()
        return rotation_of(coord, frequencies, theta)


def _followed_by(heads: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Add prompts `(prompts, heads, channels)` after the places of each patch `(patches, heads, places, channels)`."""
    return torch.cat([heads, prompts.transpose(0, 1).expand(len(heads), -1, -1, -1)], dim=2)


class LayerScale(nn.Module):
    """Learned factor of each channel."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Scale `(…, channels)`."""
        return hidden_states * self.gamma


class PointTransformerV3Block(GradientCheckpointingLayer):
    """Positions from a convolution, attention within patches, and MLP, each with a residual connection."""

    def __init__(
        self,
        config: PointTransformerV3Config,
        stage: int,
        number: int,
        width: int,
        num_heads: int,
        drop_path_rate: float,
        in_decoder: bool = False,
    ):
        super().__init__()
        self.number = number
        self.in_decoder = in_decoder
        self.pre_norm = config.pre_norm
        # After the sums, the branch alone is nowhere left.
        self.leaves_branch = config.block_rule == "branch" and config.pre_norm
        scale = config.layer_scale_init_value
        self.positions = ConditionalPositions(config, width)
        self.norm1 = block_norm(config, width)
        self.attention = PointTransformerV3Attention(config, stage, width, num_heads)
        self.scale1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.norm2 = block_norm(config, width)
        self.mlp = PointMlp(width, int(width * config.mlp_ratio))
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.scale2 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, voxels: Voxels, prompts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run on `(voxels, channels)`, with attention to `prompts (prompts, channels)`, too."""
        # With the rule "branch", a block's convolution reads what the MLP of the block before has added, as the
        # weights of the original layout were trained.
        source = voxels.source_of(self.in_decoder, self.number)
        hidden_states = hidden_states + self.positions(hidden_states if source is None else source, voxels)
        # Prompts take the place of voxels before this norm, so they pass it too.
        entry = normed(self.norm1, hidden_states, voxels) if self.pre_norm else hidden_states
        if prompts is not None and self.pre_norm:
            prompts = normed(self.norm1, prompts, voxels)
        branch = self.scale1(self.attention(entry, voxels, self.number, prompts)[0])
        hidden_states = hidden_states + self.drop_path(branch)
        # Norms after the sums, as in the first transformers.
        if not self.pre_norm:
            hidden_states = normed(self.norm1, hidden_states, voxels)
        entry = normed(self.norm2, hidden_states, voxels) if self.pre_norm else hidden_states
        branch = self.drop_path(self.scale2(self.dropout(self.mlp(entry))))
        if self.leaves_branch:
            # Without the residual sum; the gradient flows through it.
            voxels.sources[self.in_decoder, self.number + 1] = branch
        hidden_states = hidden_states + branch
        return hidden_states if self.pre_norm else normed(self.norm2, hidden_states, voxels)


class PointTransformerV3PreTrainedModel(PretrainedBaseMixin, PointTokensMixin, PreTrainedModel):
    """Base class of all Point Transformer V3 models."""

    config_class = PointTransformerV3Config
    config: PointTransformerV3Config
    base_model_prefix = "point_transformer_v3"
    _no_split_modules = ["PointTransformerV3Block"]

    @property
    def reads_stages(self) -> bool:
        """True if outputs depend on the features of all stages, not only through the last one."""
        return True

    @classmethod
    def base_class(cls) -> type[PointTransformerV3Model]:
        """Class of the encoder."""
        return PointTransformerV3Model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, SubmanifoldConvolution)):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RelativePositionBias):
            init.trunc_normal_(module.table, std=std)
        elif isinstance(module, ClassTextHead):
            init.zeros_(module.logit_scale)
            init.zeros_(module.class_embeddings)
        elif isinstance(module, PointTextHead):
            init.constant_(module.logit_scale, module.initial_scale)
        elif isinstance(module, LayerScale):
            init.constant_(module.gamma, module.value)
        elif isinstance(module, PointTransformerV3Embeddings) and module.mask_token is not None:
            init.zeros_(module.mask_token)


@dataclass
class _Encoded:
    """Result of a forward pass before it is put into an output."""

    stages: list[Voxels]  # of the encoder, the finest first
    features: list[torch.Tensor]  # of their voxels
    decoded: torch.Tensor | None  # output of the decoder, at the first stage
    batch: Batch
    inverse: torch.Tensor  # (points,), the voxel of the first stage of each point
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None

    @property
    def last(self) -> tuple[torch.Tensor, Voxels]:
        """Features of the last stage, and its voxels."""
        return (self.features[-1], self.stages[-1]) if self.decoded is None else (self.decoded, self.stages[0])

    def pooled(self) -> torch.Tensor:
        """Mean of the last stage's features over each cloud, `(clouds, channels)`."""
        features, voxels = self.last
        # One list of clouds: `scatter_mean` has an axis in front for batches.
        return scatter_mean(features[None], voxels.cloud[None], len(voxels.counts))[0]

    def voxel_features(self) -> torch.Tensor:
        """Features of the first stage's voxels, those of all stages, the finest first, or of the decoder."""
        if self.decoded is not None:
            return self.decoded
        values = self.features[-1]
        # From the stage above the deepest one to the first.
        for stage in range(len(self.stages) - 2, -1, -1):
            # (voxels of the stage, channels of it and of all deeper ones)
            values = torch.cat([self.features[stage], values[self.stages[stage + 1].inverse]], dim=1)
        return values

    def point_features(self, points: torch.Tensor, levels: int | None = None) -> torch.Tensor:
        """Features of some points of the batch, `(points, channels)`: of `levels` deepest stages, None for all.

        Numbers of points `(points,)` count through the clouds, one after the other.
        """
        # Each point is followed from stage to stage, so that no stage is carried up for all voxels.
        place = self.inverse[points]
        parts = []
        if self.decoded is not None:
            return self.decoded[place]
        first = 0 if levels is None else max(len(self.stages) - levels, 0)
        for stage, (features, voxels) in enumerate(zip(self.features, self.stages, strict=True)):
            # The first stage is not pooled from another one.
            place = place if voxels.inverse is None else voxels.inverse[place]
            if stage >= first:
                parts.append(features[place])
        return torch.cat(parts, dim=1)

    def carry_up(self, values: torch.Tensor) -> torch.Tensor:
        """Carry values `(voxels of the first stage, channels)` to all points, `(clouds, points, channels)`."""
        return self.batch.unflatten(values[self.inverse])


class PointTransformerV3Model(AdaptedBaseMixin, PointTransformerV3PreTrainedModel):
    """Point Transformer V3: voxels ordered along curves, attention within patches, pooling from stage to stage.

    Features of a cloud do not depend on the other clouds of a batch, unless `depth_of_batch` or `equal_patches` ask
    for what the released programs do.

    Source: Point Transformer V3, Sec. 4; Sonata, Sec. 3 (the encoder alone).
    """

    def __init__(self, config: PointTransformerV3Config):
        super().__init__(config)
        widths = config.hidden_sizes
        self.embeddings = PointTransformerV3Embeddings(config)
        # All voxels pass this module before the first block; `get_input_embeddings` returns it.
        self.input_tokens = nn.Identity()
        self.poolings = nn.ModuleList(
            PointTransformerV3Pooling(config, widths[stage], widths[stage + 1]) for stage in range(len(widths) - 1)
        )
        # On the CPU, since models are built on the device meta while they are loaded, which has no numbers.
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        places = [(stage, number) for stage, depth in enumerate(config.depths) for number in range(depth)]
        self.blocks = nn.ModuleList(
            PointTransformerV3Block(config, stage, number, widths[stage], config.num_attention_heads[stage], rate)
            for (stage, number), rate in zip(places, rates, strict=True)
        )
        self.unpoolings = nn.ModuleList()
        self.decoder_blocks = nn.ModuleList()
        if config.use_decoder:  # in the order in which its stages run: the coarsest first
            widths, below = config.decoder_hidden_sizes, widths[-1]
            rates = torch.linspace(0, config.drop_path_rate, sum(config.decoder_depths), device="cpu").tolist()
            for stage in range(len(widths) - 1, -1, -1):
                skipped = config.hidden_sizes[stage]
                self.unpoolings.append(PointTransformerV3Unpooling(config, below, skipped, widths[stage]))
                first = sum(config.decoder_depths[:stage])
                # As in the original, the rates fall from block to block within a stage.
                falling = rates[first : first + config.decoder_depths[stage]][::-1]
                heads = config.decoder_num_attention_heads[stage]
                self.decoder_blocks.extend(
                    PointTransformerV3Block(config, stage, number, widths[stage], heads, rate, in_decoder=True)
                    for number, rate in enumerate(falling)
                )
                below = widths[stage]
        if config.condition_size is not None:
            # Heads and norms may list data sets in different orders; the table's rows are numbered like the heads.
            names = config.condition_classes or config.norm_conditions or ()
            # Released weights of several data sets have it even where nothing reads it.
            self.conditions = nn.Embedding(len(names), config.condition_size)
        self.post_init()

    @property
    def layer_stack(self) -> LayerStack:
        """The blocks and their properties for adapters; all of this model is pretrained."""
        return LayerStack(
            layers=self.blocks,
            path="blocks",
            branch="mlp",
            hidden_size=self.config.hidden_sizes[-1],
            views=GRIDS,
            pretrained=tuple(self._modules),
            attention_axis="patches",
            stages=tuple(zip(self.config.depths, self.config.hidden_sizes, strict=True)),
        )

    @strict_forward
    def forward(
        self,
        points: Clouds,
        point_mask: torch.Tensor | None = None,
        grid_coord: Clouds | None = None,
        inverse: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        output_point_features: bool | int = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> PointTransformerV3Output:
        """Encode point clouds.

        Args:
            points: `(batch, points, in_channels)`, xyz first, or a list of `(points, in_channels)`.
            point_mask: `(batch, points)` bool, False where a cloud is filled up to the length of the longest.
            grid_coord: Cells of the points, integers from 0 in each cloud, `(batch, points, 3)` or a list, no cell
                twice in a cloud, as `PointTransformerV3Processor` makes them. Without, the points are sampled on a
                grid of the config's `grid_size`, and features go back to all of them.
            inverse: `(batch, original points)`, the point of `points` that stands for each original one, -1 where a
                cloud is filled up; then `point_features` are those of the original points.
            bool_masked_pos: `(batch, points)` bool, voxels that are replaced by the mask token; needs `grid_coord`.
            output_point_features: Whether to return features of every point; a number for those of that many of the
                deepest stages.
            output_hidden_states: Whether to return the inputs and outputs of the blocks; None for the config's choice.
            output_attentions: The same for the attention weights, which only eager attention returns.
        """
        encoded = self.encode(
            points, point_mask, grid_coord, inverse, bool_masked_pos, output_hidden_states, output_attentions
        )
        # Of the decoder if there is one, else of the deepest stage
        features, voxels = encoded.last
        of_points = None
        if output_point_features:
            levels = None if output_point_features is True else output_point_features
            points_of_all = torch.arange(len(encoded.inverse), device=features.device)
            of_points = encoded.batch.unflatten(encoded.point_features(points_of_all, levels))
        return PointTransformerV3Output(
            features,
            encoded.pooled(),
            voxels.coord,
            voxels.grid_coord,
            # Where each cloud ends.
            torch.tensor(voxels.counts, device=features.device).cumsum(0),
            of_points,
            encoded.hidden_states,
            encoded.attentions,
        )

    def encode(
        self,
        points: Clouds,
        point_mask: torch.Tensor | None = None,
        grid_coord: Clouds | None = None,
        inverse: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> _Encoded:
        """Run all stages, for heads that need the features of several; see `forward`."""
        config = self.config
        return_hidden, return_attentions = requested_outputs(
            config, output_hidden_states, output_attentions, config._attn_implementation
        )
        self._check_attention()
        values, voxels, batch, of_point, is_masked = self._voxelize(points, point_mask, grid_coord, bool_masked_pos)
        if inverse is not None:
            batch, of_point = follow(inverse, batch, of_point)
        if config.adaptive_norms:
            # The heads number the data sets, where there are some.
            names = list(self.config.condition_classes or self.config.norm_conditions or ())
            voxels.context = self.conditions.weight[names.index(self.config.condition or "")][None]
        # Places of all stages first: they depend on coordinates alone, and each draws its turns of the curves.
        stages = [voxels]
        for _ in config.pooling_strides:
            stages.append(stages[-1].pool(self._turns()))
        kept = [] if return_hidden else None
        recorder = None
        if return_attentions:
            blocks = [*self.blocks, *self.decoder_blocks]
            recorder = AttentionRecorder(blocks, {PointTransformerV3Attention: 1}, config.model_type)
        with recorder or nullcontext():
            # Not by `requires_grad`, which loading weights resets.
            with torch.no_grad() if config.freeze_encoder else nullcontext():
                hidden_states = self.embeddings(values, voxels, is_masked)
                # NEFTune expects an axis of clouds.
                hidden_states = self.input_tokens(hidden_states[None])[0]
                features = self._run_stages(hidden_states, stages, kept)
            decoded = self._decode(features, stages, kept) if config.use_decoder else None
            attentions = None if recorder is None else recorder.weights
        states = None if kept is None else tuple(kept)
        return _Encoded(stages, features, decoded, batch, of_point, states, attentions)

    def _check_attention(self) -> None:
        """Refuse attention and checkpointing that would leave out what the config asks for."""
        config = self.config
        # Others take no mask that has a value for each pair.
        if config.relative_position_bias and config._attn_implementation not in ("eager", "sdpa", None):
            raise ValueError(f"attn_implementation={config._attn_implementation!r} with relative_position_bias=True")
        leaves = config.block_rule == "branch" or (config.use_decoder and config.decoder_convolution == "skip")
        if not leaves or not self.training or not getattr(self.blocks[0], "gradient_checkpointing", False):
            return
        function = getattr(self.blocks[0], "_gradient_checkpointing_func", None)
        if getattr(function, "keywords", {}).get("use_reentrant", False):
            # They would get no gradient of what they leave for the next block.
            raise ValueError("use_reentrant=True with blocks that read what others left for them; expected False")

    def _run_stages(
        self, hidden_states: torch.Tensor, stages: list[Voxels], kept: list[torch.Tensor] | None
    ) -> list[torch.Tensor]:
        """Run the encoder's stages on `(voxels, hidden_sizes[0])`; returns the features of each stage's voxels."""
        features = []
        remaining = iter(self.blocks)
        if kept is not None:
            kept.append(hidden_states)
        for number, (depth, voxels) in enumerate(zip(self.config.depths, stages, strict=True)):
            if number:
                hidden_states = self.poolings[number - 1](hidden_states, voxels)
            for _ in range(depth):
                block = next(remaining)
                # Adapters around a block may need the places of voxels, which take time to compute.
                geometry = voxels.geometry if asks_of(block).takes_geometry else None
                hidden_states, asked = enter_layer(block, hidden_states, geometry)
                hidden_states = block(hidden_states, voxels, **asked)
                if kept is not None:
                    kept.append(hidden_states)
            # A network beside the blocks adds to what heads read of a stage, after its last block.
            features.append(asks_of(block).stage_output(hidden_states))
        return features

    def _decode(
        self, features: list[torch.Tensor], stages: list[Voxels], kept: list[torch.Tensor] | None
    ) -> torch.Tensor:
        """Carry features from the last stage to the first: `(voxels of the first stage, decoder_hidden_sizes[0])`."""
        hidden_states = features[-1]
        remaining = iter(self.decoder_blocks)
        # The coarsest stage first; the settings of the decoder name the finest first.
        for stage, unpooling in zip(range(len(stages) - 2, -1, -1), self.unpoolings, strict=True):
            # Each voxel gets the features of the larger cell that it was pooled to, besides its own.
            hidden_states = unpooling(hidden_states, features[stage], stages[stage + 1], stages[stage])
            for _ in range(self.config.decoder_depths[stage]):
                # Adapters are in the encoder's blocks alone, so these need no places.
                hidden_states = next(remaining)(hidden_states, stages[stage])
                if kept is not None:
                    kept.append(hidden_states)
        return hidden_states

    def _turns(self) -> list[int]:
        """Draw the order of the curves for a stage, or return that of the config."""
        count = len(self.config.curves)
        when = self.config.shuffle_curves
        # The released programs draw anew at each stage, on the CPU, in evaluation too.
        is_shuffled = when == "always" or (when == "training" and self.training)
        return torch.randperm(count, device="cpu").tolist() if is_shuffled else list(range(count))

    def _voxelize(
        self,
        points: Clouds,
        point_mask: torch.Tensor | None,
        grid_coord: Clouds | None,
        bool_masked_pos: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Voxels, Batch, torch.Tensor, torch.Tensor | None]:
        """Return the channels of voxels, their places, the clouds, the voxel of each point, and masked voxels."""
        config = self.config
        dtype = precision_of(self.embeddings)
        if isinstance(points, torch.Tensor):
            check_channels(points, config.in_channels)
            if point_mask is not None:
                # Rows that fill up a cloud may hold anything, and the check below reads all numbers.
                points = points.masked_fill(~point_mask.to(points.device).bool()[..., None], 0)
            points = in_full_precision(points, dtype)
        else:
            for cloud in points:
                check_channels(cloud[None], config.in_channels)
            points = [in_full_precision(cloud[None], dtype)[0] for cloud in points]
        batch = Batch(points, point_mask)
        values = batch.flatten(points, "points")
        count = len(batch.counts)
        is_masked = None
        if grid_coord is None:
            if bool_masked_pos is not None:
                raise ValueError("bool_masked_pos: expected grid_coord too, so that points are voxels")
            sample = grid_sample(values[:, :3], config.grid_size, batch.cloud, count)
            # One point stands for all of its cell; the others get its features by `of_point`.
            values = values[sample.kept]
            cells = sample.grid_coord
            of_point = sample.inverse
            cloud = batch.cloud[sample.kept]
        else:
            cells = batch.flatten(grid_coord, "grid_coord").long()
            cloud = batch.cloud
            if has_duplicates(cells, cloud, count):
                raise ValueError("grid_coord: a cell occurs twice in a cloud; expected one point for each")
            of_point = torch.arange(len(cells), device=cells.device)
            if bool_masked_pos is not None:
                is_masked = batch.flatten(bool_masked_pos, "bool_masked_pos").bool()
        # On the host, as the patches of all stages are cut there.
        counts = tuple(torch.bincount(cloud, minlength=count).tolist())
        voxels = Voxels(config, 0, values[:, :3], cells, cloud, counts, self._turns())
        return values, voxels, batch, of_point, is_masked


class PointTransformerV3ForPointCloudClassification(PointTransformerV3PreTrainedModel):
    """`PointTransformerV3Model` with a classification head on the mean of its last features over a cloud.

    Example:
        ```python
        import torch
        from hf_any3d import PointTransformerV3Config, PointTransformerV3ForPointCloudClassification
        from hf_any3d.modeling.point_transformer_v3 import PRESETS

        config = PointTransformerV3Config(num_labels=3, **PRESETS["concerto_small"])
        model = PointTransformerV3ForPointCloudClassification(config)
        points = torch.rand(2, 256, 9)  # xyz, colors and normals
        model(points=points).logits.shape  # (2, 3)
        ```
    """

    def __init__(self, config: PointTransformerV3Config):
        super().__init__(config)
        self.point_transformer_v3 = PointTransformerV3Model(config)
        self.classifier = ClassificationHead(
            config.hidden_size, config.num_labels, config.head_widths, dropout=config.head_dropout
        )
        self.post_init()

    @property
    def reads_stages(self) -> bool:
        """True if outputs depend on the features of all stages, not only through the last one: with a decoder."""
        return self.config.use_decoder

    @strict_forward
    def forward(
        self,
        points: Clouds,
        labels: torch.Tensor | None = None,
        point_mask: torch.Tensor | None = None,
        grid_coord: Clouds | None = None,
        inverse: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify point clouds; returns `logits (batch, labels)`."""
        encoded = self.point_transformer_v3.encode(points, point_mask, grid_coord, **kwargs)
        logits = self.classifier(encoded.pooled())  # (B, labels)
        loss = classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)


class PointTransformerV3ForPointCloudSegmentation(PointTransformerV3PreTrainedModel):
    """`PointTransformerV3Model` with a head that predicts a class for every point of a scene or an object.

    The head reads the features of all stages, or those of the decoder. Without hidden layers it is the linear probe of
    Sonata, Concerto and Utonia.

    Example:
        ```python
        import torch
        from hf_any3d import PointTransformerV3Config, PointTransformerV3ForPointCloudSegmentation
        from hf_any3d.modeling.point_transformer_v3 import PRESETS

        config = PointTransformerV3Config(num_labels=3, **PRESETS["supervised"])
        model = PointTransformerV3ForPointCloudSegmentation(config)
        points = torch.rand(2, 256, 9)  # xyz, colors and normals
        model(points=points).logits.shape  # (2, 256, 3)
        ```
    """

    def __init__(self, config: PointTransformerV3Config):
        super().__init__(config)
        refuse_problem_type(config)
        self.point_transformer_v3 = PointTransformerV3Model(config)
        if config.segmentation_head == "layers":
            self.segmenter: nn.Module = ClassificationHead(
                config.point_feature_size,
                config.num_labels,
                config.segmentation_head_widths,
                dropout=config.segmentation_head_dropout,
            )
        else:
            self.segmenter = (ClassTextHead if config.segmentation_head == "texts" else ConditionHeads)(config)
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: Clouds,
        labels: torch.Tensor | None = None,
        point_mask: torch.Tensor | None = None,
        grid_coord: Clouds | None = None,
        inverse: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Segment scenes; returns `logits (batch, points, labels)`, of the original points with `inverse`."""
        encoded = self.point_transformer_v3.encode(points, point_mask, grid_coord, inverse, **kwargs)
        # The head runs once for a voxel, not for each of its points.
        logits = encoded.carry_up(self.segmenter(encoded.voxel_features()))
        loss = point_loss(logits, labels, self.config.lovasz_weight)
        return TokenClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)


class PointTransformerV3ForZeroShotPointCloudSegmentation(PartTextsMixin, PointTransformerV3PreTrainedModel):
    """`PointTransformerV3Model` that compares points with texts, which name parts: Find3D opens as this class.

    Source: Find3D (arXiv 2411.13550), Sec. 4.

    Example:
        ```python
        import torch
        from hf_any3d import PointTransformerV3Config, PointTransformerV3ForZeroShotPointCloudSegmentation
        from hf_any3d.modeling.point_transformer_v3 import PRESETS

        model = PointTransformerV3ForZeroShotPointCloudSegmentation(PointTransformerV3Config(**PRESETS["find3d"]))
        points = torch.rand(1, 256, 9)  # xyz, colors and normals
        texts = torch.rand(5, 768)  # or model.encode_labels([…]) of a published model
        model(points=points, text_embeds=texts, with_none=False).logits.shape  # (1, 256, 5)
        ```
    """

    input_modalities = ("point_cloud", "text")

    def __init__(self, config: PointTransformerV3Config):
        super().__init__(config)
        self.point_transformer_v3 = PointTransformerV3Model(config)
        self.text_head = PointTextHead(config)
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: Clouds,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        with_none: bool | None = None,
        point_mask: torch.Tensor | None = None,
        grid_coord: Clouds | None = None,
        inverse: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> PointTextOutput:
        """Compare the points of clouds with texts; `with_none` replaces the config's `none_label`.

        `text_embeds` may have an axis of clouds first, for texts of their own. `labels` number the texts, or are
        `(batch, texts, points)`, True for the points that a text names, if these overlap.
        """
        text_embeds = self.embed_texts(input_ids, attention_mask, text_embeds, labels is not None)
        encoded = self.point_transformer_v3.encode(points, point_mask, grid_coord, inverse, **kwargs)
        voxel_embeds, scale = self.text_head(encoded.voxel_features())
        counts = encoded.stages[0].counts
        loss = None
        more = {
            "hidden_states": encoded.hidden_states,
            "attentions": encoded.attentions,
            "offsets": torch.tensor(counts, device=voxel_embeds.device).cumsum(dim=0),
        }
        if text_embeds is None:
            return PointTextOutput(voxel_embeds=voxel_embeds, **more)
        clouds = encoded.batch.shape[0]
        width = voxel_embeds.shape[-1]
        if text_embeds.shape[:-2] not in ((), (clouds,)) or text_embeds.shape[-1] != width:
            raise ValueError(
                f"text_embeds has shape {tuple(text_embeds.shape)}; expected (texts, {width}) or ({clouds}, texts, "
                f"{width}), features of the text tower that the model is aligned with"
            )
        # Given features may come from another program, which does not normalize them.
        text_embeds = unit_texts(text_embeds, voxel_embeds)
        with autocast_disabled(voxel_embeds.device):
            scores = scale * products(voxel_embeds, text_embeds, counts)  # (voxels, texts)
            if self.config.none_label if with_none is None else with_none:
                scores = nn.functional.pad(scores, (0, 1))
            if labels is not None:
                masks, counted = text_targets(labels, text_mask, encoded.batch.shape, text_embeds.shape[-2])
                named = encoded.batch.flatten(masks.transpose(1, 2), "labels")  # (points, texts)
                means, numbers = mask_means(voxel_embeds, named, encoded.inverse, counts)
                counted = numbers > 0 if counted is None else counted
                loss = mask_text_loss(means, numbers, text_embeds, counted, scale)
        logits = encoded.carry_up(scores)
        return PointTextOutput(loss, logits, voxel_embeds, text_embeds, **more)
