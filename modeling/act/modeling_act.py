"""ACT's point transformer, with and without a classification head (arXiv 2212.08320, Sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.act.pretrained_base import PretrainedBaseMixin
from hf_any3d.modeling.any2point.geometry import Geometry, Membership, membership
from hf_any3d.modeling.any2point.virtual_projection import normalize_centers
from hf_any3d.modeling.card_info import (
    BUILD_FROM_ADAPTER,
    STORED_HERE,
    CardDescription,
    CardInfo,
    CardMixin,
    CardSubject,
)
from hf_any3d.modeling.encoders import LayerStack
from hf_any3d.modeling.encoders.frozen_encoder import FROZEN
from hf_any3d.modeling.layers.forward_contract import (
    AttentionRecorder,
    PointTokensMixin,
    honours_contract,
    requested_outputs,
)
from hf_any3d.modeling.layers.heads import ClassificationHead, ClassToken, pool
from hf_any3d.modeling.layers.tasks import PointCloudClassificationMixin
from hf_any3d.modeling.point_ops import in_full_precision, voxel_cells
from hf_any3d.modeling.point_transformer import PatchEncoder, Patches, PointAttention, PointBlocks, group_patches
from hf_any3d.modeling.pretrained_parts import own_modules

GRIDS = 4


class TokenGrids(Geometry):
    """Cells of four grids in space, each shifted from the previous one by a quarter of a cell along every axis.

    Any2Point cuts lines and planes into cells because its text and image encoders have their positions there; on a
    line, tokens that are far apart in space share a cell. ACT's tokens have positions in space, so cells are cubes. A
    single grid separates some neighbours. Of the four, at most one has a wall within an eighth of an edge of a token
    along any one axis, so at most three along all axes, and in the remaining one everything within that distance
    shares the token's cell. The grids are the adapter's views: each token weights them by how well its cell agrees
    with its voxel.

    Args:
        centers: `(batch, tokens, 3)`, positions of the tokens in any unit.
        cell_size: Default edge of a cell, in radii of the cloud.
        special_tokens: Number of tokens before those of patches.
    """

    def __init__(self, centers: torch.Tensor, cell_size: float, special_tokens: int):
        centers = normalize_centers(centers.detach().float())
        views = centers.unsqueeze(1).expand(-1, GRIDS, -1, -1)  # (batch, grids, tokens, 3)
        super().__init__(centers, views, (), cell_size, special_tokens)

    def view_cells(self, cell_size: float | None = None) -> Membership:
        """Return the tokens' cells of edge `cell_size`, in radii of the cloud, in each grid."""
        edge = cell_size or self.cell_size
        key = ("view", edge)
        if key not in self._derived:
            grids = [voxel_cells(self.centers, edge, shift=number / GRIDS) for number in range(GRIDS)]
            cell = torch.stack(grids, dim=1)  # (batch, grids, tokens)
            self._derived[key] = membership(cell, cell.shape[-1])
        return self._derived[key]


@dataclass
class ActOutput(ModelOutput):
    """Token features of point clouds.

    Args:
        last_hidden_state: `(batch, 1 + groups, hidden)`, the class token first where there is one, after the final
            norm.
        pooler_output: `(batch, len(config.pooling) * hidden)`, the input of a head.
        centers: `(batch, groups, 3)`, positions of the tokens in the units of the input.
        center_index: `(batch, groups)`, indices of the centres among the input points.
        layer_outputs: Output of each requested block, `(batch, 1 + groups, hidden)`, before any norm.
        hidden_states: On request, the input of the first block, without positions, and the output of each block,
            before any norm: `num_hidden_layers + 1` times `(batch, 1 + groups, hidden)`.
        attentions: On request, the weights of each block, `(batch, heads, 1 + groups, 1 + groups)`; prompts that an
            adapter adds are among the tokens.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    center_index: torch.Tensor | None = None
    layer_outputs: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class Encoded(NamedTuple):
    """Output of the transformer blocks.

    Args:
        last_hidden_state: `(batch, 1 + tokens, hidden)` after the final norm; the class token comes first where there
            is one.
        layer_outputs: Output of each requested block, before any norm.
        hidden_states: On request, the input of the first block and the output of each.
        attentions: On request, the weights of each block.
    """

    last_hidden_state: torch.Tensor
    layer_outputs: tuple[torch.Tensor, ...] = ()
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ActPreTrainedModel(CardMixin, PretrainedBaseMixin, PointTokensMixin, PreTrainedModel):
    """Base class of all models with ACT's point transformer: config and initialisation."""

    config_class = ActConfig
    config: ActConfig
    base_model_prefix = "act"
    main_input_name = "points"
    input_modalities = ("point_cloud",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PointBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # Weights of pretraining only: the other models load just the student from its checkpoints.
    _keys_to_ignore_on_load_unexpected = [
        r"^(autoencoder|decoder|decoder_norm|decoder_position_embed|prediction_head|feature_head)\.",
        r"^(mask_token|decoder_class_position)$",
    ]
    # Trainer would otherwise neither divide the loss by the accumulation steps nor average it over processes.
    accepts_loss_kwargs = False

    def train(self, mode: bool = True) -> ActPreTrainedModel:
        """Set train mode, except for modules marked as frozen: their norms and drop path stay in eval mode."""
        super().train(mode)
        for module in self.modules():
            # Not getattr: adapters forward unknown attributes to the wrapped layer.
            if FROZEN in vars(module):
                module.training = False
        return self

    @classmethod
    def describe_for_card(cls, subject: CardSubject) -> CardDescription:
        """Describe the point transformer, what it started from, its adapter and its teacher."""
        start, teacher = subject.start, subject.encoder
        what = f"A point transformer of {subject.config.num_hidden_layers} blocks reads patches of points"
        if start:
            what += f", started from {subject.show_name(start)}"
        elif subject.is_trained:
            what += ", started from random weights"
        what += f", adapted by the PEFT method {subject.show_name(subject.method)}." if subject.method else "."
        if teacher:
            what += f" It learned to predict features from an autoencoder around {subject.show_name(teacher)}."
        stored = STORED_HERE
        if subject.method:
            stored = "The frozen ones are loaded from where the config says and checked against a checksum."
        elif teacher:
            stored = f"The teacher's {subject.locate_encoder(teacher)}"
        return CardDescription(
            what=f"{what} Method: [ACT](https://arxiv.org/abs/2212.08320).",
            stored=stored,
            tags=("act",),
            base_model=start,
            relation="adapter" if subject.method else "finetune",
            base_program=BUILD_FROM_ADAPTER,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Use truncated normal weights and zero biases, as the released pretraining and segmentation do."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, ClassToken):
            init.trunc_normal_(module.token, std=std)
            init.trunc_normal_(module.position, std=std)
        elif isinstance(module, ActModel) and module.side_alpha is not None:
            init.zeros_(module.side_alpha)


class ActModel(ActPreTrainedModel):
    """Point transformer: patches, mini-PointNet, transformer blocks, final norm.

    Args:
        config: The configuration.
    """

    card_info = CardInfo("features", opens="ActModel")

    def __init__(self, config: ActConfig):
        super().__init__(config)
        width = config.hidden_size
        self.patch_encoder = PatchEncoder(
            config.in_channels, width, config.patch_widths, pooled_width=config.patch_pooled_width
        )
        self.class_token = ClassToken(width) if config.use_class_token else None
        # All tokens pass this module before the first block; `get_input_embeddings` returns it.
        self.input_tokens = nn.Identity()
        self.position_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.blocks = PointBlocks(config)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.side = PatchEncoder(config.in_channels, width, config.patch_widths) if config.side_network else None
        self.side_projection = nn.Linear(width, width, bias=False) if config.side_network else None
        self.side_alpha = nn.Parameter(torch.zeros(1)) if config.side_network else None
        self.post_init()

    @property
    def layer_stack(self) -> LayerStack:
        """The blocks and their properties for adapters; all of this model is pretrained."""
        return LayerStack(
            layers=self.blocks.layers,
            path="blocks.layers",
            branch="mlp",
            hidden_size=self.config.hidden_size,
            views=GRIDS,
            pretrained=tuple(self._modules),
        )

    def train(self, mode: bool = True) -> ActModel:
        """Set train mode; with adapters, the original modules stay in eval mode.

        An adapter is stored without the norms' running statistics, and is loaded into a model in eval mode.
        """
        super().train(mode)
        own = [module for _, module in own_modules(self)]
        if mode and len(own) < sum(1 for _ in self.modules()):
            for module in own:
                # Train mode only enables gradient checkpointing in a block, and noise (NEFTune) in the token input.
                if not isinstance(module, GradientCheckpointingLayer) and module is not self.input_tokens:
                    module.training = False
        return self

    @honours_contract
    def forward(
        self,
        points: torch.Tensor,
        output_layers: Sequence[int] = (),
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ActOutput:
        """Encode point clouds.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            output_layers: Numbers of blocks, from 0, whose outputs are returned too.
            output_hidden_states: Whether to return the inputs and outputs of the blocks; None for the config's choice.
            output_attentions: The same for the attention weights, which only eager attention returns.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If the points have other channels or are too few; if attention weights are requested without
                eager attention.
        """
        patches = self.cut(points)
        tokens = self.patch_encoder(patches.neighborhoods)  # (batch, groups, hidden)
        encoded = self.encode(tokens, patches.centers, output_layers, output_hidden_states, output_attentions)
        hidden_states = encoded.last_hidden_state
        if self.side is not None:
            hidden_states = self._mix_side_in(hidden_states, patches)
        return ActOutput(
            hidden_states,
            self._pool(hidden_states),
            patches.centers,
            patches.center_index,
            encoded.layer_outputs if output_layers else None,
            encoded.hidden_states,
            encoded.attentions,
        )

    def cut(self, points: torch.Tensor) -> Patches:
        """Group clouds `(batch, points, in_channels)` into the patches that the config describes.

        Raises:
            ValueError: If there is no cloud, the points have other channels or are too few, or a number is NaN,
                infinite or too large.
        """
        config = self.config
        if points.ndim != 3 or points.shape[-1] != config.in_channels:
            raise ValueError(
                f"points has shape {tuple(points.shape)}; expected (batch, points, {config.in_channels}): "
                "the last axis is config.in_channels"
            )
        points = in_full_precision(points, self.norm.weight.dtype)
        return group_patches(points, config.num_groups, config.group_size, config.sampling_min_squared_norm)

    def encode(
        self,
        tokens: torch.Tensor,
        centers: torch.Tensor,
        output_layers: Sequence[int] = (),
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Encoded:
        """Run the transformer on all or some tokens of a cloud.

        Args:
            tokens: `(batch, tokens, hidden)`.
            centers: `(batch, tokens, 3)`, their positions.
            output_layers: Numbers of blocks whose outputs are returned too.
            output_hidden_states: As in `forward`.
            output_attentions: As in `forward`.
        """
        config = self.config
        return_hidden, return_attentions = requested_outputs(
            config, output_hidden_states, output_attentions, config._attn_implementation
        )
        positions = self.position_embed(centers.to(self.position_embed[0].weight.dtype))
        if self.class_token is not None:
            tokens, positions = self.class_token(tokens, positions)
        tokens = self.input_tokens(tokens)
        # Cell size in radii: about six patches per cell, whatever their number.
        edge = 4 / math.sqrt(self.config.num_groups)
        geometry = TokenGrids(centers, edge, tokens.shape[1] - centers.shape[1]) if self._is_guided else None
        layers = self.blocks.layers
        recorder = AttentionRecorder(layers, {PointAttention: 1}, config.model_type) if return_attentions else None
        requested = (*output_layers, *range(len(layers))) if return_hidden else output_layers
        with recorder or nullcontext():
            hidden_states, outputs = self.blocks(tokens, positions, requested, geometry)
            attentions = recorder.weights if return_attentions else None
        count = len(output_layers)
        states = (tokens, *outputs[count:]) if return_hidden else None
        return Encoded(self.norm(hidden_states), outputs[:count], states, attentions)

    @property
    def _is_guided(self) -> bool:
        return any(getattr(layer, "takes_geometry", False) for layer in self.blocks.layers)

    def _mix_side_in(self, hidden_states: torch.Tensor, patches: Patches) -> torch.Tensor:
        leading = hidden_states.shape[1] - patches.centers.shape[1]
        side = self.side_projection(self.side(patches.neighborhoods))  # (batch, groups, hidden)
        weight = self.side_alpha.sigmoid()
        mixed = weight * hidden_states[:, leading:] + (1 - weight) * side
        return torch.cat([hidden_states[:, :leading], mixed], dim=1)

    def _pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.class_token is not None:
            return pool(hidden_states, self.config.pooling)
        how = [name for name in self.config.pooling if name != "cls"]
        return pool(hidden_states, how or ["max"], class_tokens=0)


class ActForPointCloudClassification(PointCloudClassificationMixin, ActPreTrainedModel):
    """`ActModel` with a classification head."""

    card_info = CardInfo("classification")

    def __init__(self, config: ActConfig):
        super().__init__(config)
        self.act = ActModel(config)
        self.classifier = ClassificationHead(
            len(config.pooling) * config.hidden_size,
            config.num_labels,
            config.head_widths,
            bias=config.head_bias,
            dropout=config.head_dropout,
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # The released programs keep torch's default initialisation of this head.
        if isinstance(module, nn.Linear) and any(module is own for own in self.classifier.modules()):
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
