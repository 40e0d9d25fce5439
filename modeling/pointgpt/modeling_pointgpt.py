"""PointGPT (arXiv 2305.11487): its causal point transformer, generator and heads.

points (B, N, 3)
    │  sample centers, group their neighbors, order the patches as a chain of near ones
    ▼
patches (B, G, M, 3) ─► patch encoder ─► tokens (B, G, H), start and class token first, + sines of centers
    │  transformer in which a token sees those before it
    ▼
features (B, 1 + G, H) ──────────┬─► class token and maximum ─► class scores
                                 ├─► propagation to the points ─► scores of each point
                                 └─► generator, told the direction to the next patch ─► points of each patch, compared
                                     with those that it has: pretraining, and a second loss of classification

Shapes: B clouds, N points of each, G tokens, M points of a patch, H width of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from hf_any3d.modeling.act.modeling_act import (
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForSemanticSegmentation,
    ActModel,
    ActOutput,
    ActPreTrainedModel,
)
from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.layers.heads import ClassToken
from hf_any3d.modeling.layers.losses import classification_loss
from hf_any3d.modeling.layers.unknown_score import PointCloudClassifierOutput
from hf_any3d.modeling.point_encoders.patches import Patches
from hf_any3d.modeling.point_encoders.point_transformer import PointBlock, PointBlocks
from hf_any3d.modeling.point_encoders.pretrained_base import Encoded
from hf_any3d.modeling.point_ops import chamfer_distance
from hf_any3d.modeling.pointgpt.configuration_pointgpt import PointGPTConfig


@dataclass
class PointGPTOutput(ActOutput):
    """Token features of point clouds; hidden states and attentions also have the start token, which comes first.

    Args:
        generation_loss: On request, the Chamfer distance of the generated patches to the cloud's.
    """

    generation_loss: torch.Tensor | None = None


@dataclass
class PointGPTClassifierOutput(PointCloudClassifierOutput):
    """Output of a classifier that also generates patches.

    Args:
        auxiliary_loss: With labels or in training, the weighted loss of generated patches, which is part of the loss.
    """

    auxiliary_loss: torch.Tensor | None = None


@dataclass
class PointGPTForPreTrainingOutput(ModelOutput):
    """Generated patches.

    Args:
        loss: Their Chamfer distance to the cloud's, the sum of "l1" and "l2"; None if not requested.
        predictions: `(batch, groups, group_size, 3)`, points of each patch relative to its center.
        centers: `(batch, groups, 3)`, in the order of the patches, in the units of the input.
        hidden_columns: `(batch, groups)`, True for the positions that no other one sees.
        hidden_states: On request, the input of the first block and the output of each block, `(batch, groups,
            hidden)`, before any norm; the first is that of the start token, and the last patch enters nowhere.
        attentions: On request, the attention weights of the blocks.
    """

    loss: torch.Tensor | None = None
    predictions: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    hidden_columns: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def chain_of(centers: torch.Tensor) -> torch.Tensor:
    """Order centers `(batch, groups, 3)` as a chain: `(batch, groups)` of their numbers.

    It starts with the first one, and goes on to the nearest of those that are left, of equally near ones the first.
    """
    # Not by products, whose rounding would decide between near ones.
    distances = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")  # (B, G, G)
    rows = torch.arange(len(centers), device=centers.device)
    current = torch.zeros_like(rows)
    chain = [current]
    taken = distances.new_zeros(distances.shape[:2])
    for _ in range(centers.shape[1] - 1):
        taken = taken.scatter(1, current.unsqueeze(1), math.inf)
        current = (distances[rows, current] + taken).argmin(dim=1)
        chain.append(current)
    return torch.stack(chain, dim=1)


class SinePositions(nn.Module):
    """Sines and cosines of points `(…, 3)`: `(…, width)`, axis by axis, filled up with zeros.

    With a temperature of 1 all pairs of an axis are equal, as released.
    """

    def __init__(self, width: int, temperature: float):
        super().__init__()
        self.width = width
        self.temperature = temperature

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Compute them in the precision of the points."""
        pairs = self.width // 6
        exponents = torch.arange(pairs, device=points.device, dtype=points.dtype) / pairs
        angles = points.unsqueeze(-1) * (2 * math.pi / self.temperature**exponents)  # (…, 3, pairs)
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)  # (…, 6 * pairs)
        return nn.functional.pad(waves, (0, self.width - waves.shape[-1]))


def causal_mask(length: int, like: torch.Tensor, hidden_columns: torch.Tensor | None = None) -> torch.Tensor:
    """Return what is added to scores of attention, `(length, length)`: a position sees itself and those before it.

    Those of `hidden_columns (batch, length)` are seen by themselves alone; it is then `(batch, 1, length, length)`.
    """
    numbers = torch.arange(length, device=like.device)
    later = numbers.unsqueeze(0) > numbers.unsqueeze(1)
    if hidden_columns is not None:
        later = later | (hidden_columns[:, None, None] & (numbers.unsqueeze(0) != numbers.unsqueeze(1)))
    return torch.zeros(later.shape, device=like.device).masked_fill(later, torch.finfo(torch.float32).min)


class PointGPTBlock(PointBlock):
    """Block whose attention is added to the normed tokens, not to those before the norm."""

    def attend(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Run the first half of the block."""
        normed = self.norm1(hidden_states)
        return normed + self.drop_path(self.attention(normed, attention_mask)[0])


class PatchGenerator(nn.Module):
    """Generates the points of each patch from the features of the patches before it."""

    def __init__(self, config: PointGPTConfig):
        super().__init__()
        self.position_embed = SinePositions(config.hidden_size, config.position_temperature)
        self.decoder = PointBlocks(config, config.decoder_num_hidden_layers, block=PointGPTBlock)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.out = nn.Linear(config.hidden_size, 3 * config.group_size)

    def forward(self, states: torch.Tensor, centers: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Generate `(batch, groups, group_size, 3)`; state i of `(batch, groups, hidden)` is of patches before i."""
        steps = centers.diff(dim=1)
        # Centers may be equal where a cloud has few points: then there is no direction.
        length = steps.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(steps.dtype).tiny)
        places = torch.cat([centers[:, :1], steps / length], dim=1)
        positions = self.position_embed(places).to(states.dtype)
        hidden_states, _ = self.decoder(states, positions, attention_mask=mask)
        return self.out(self.norm(hidden_states)).unflatten(-1, (-1, 3))


def generation_loss(generated: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Chamfer distance between patches `(batch, groups, points, 3)`, the sum of "l1" and "l2", mean over patches."""
    pair = generated.flatten(0, 1).float(), points.flatten(0, 1).float()
    with autocast_disabled(points.device):
        return chamfer_distance(*pair, "l1") + chamfer_distance(*pair, "l2")


class PointGPTPreTrainedModel(ActPreTrainedModel):
    """Base class of all PointGPT models.

    The transformer holds all that was published with it, so that one checkpoint starts every head. What the class of
    a model does not read is frozen.
    """

    config_class = PointGPTConfig
    config: PointGPTConfig
    base_model_prefix = "pointgpt"
    _trained_with_head = ("class_token", "class_norm")
    _no_split_modules = ["PointGPTBlock"]
    # Those of segmentation models lack both.
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)(generator|class_norm)\."]
    # It cannot take a mask.
    _supports_flash_attn = False

    @classmethod
    def base_class(cls) -> type[PointGPTModel]:
        """Return the transformer's class."""
        return PointGPTModel

    def unread_modules(self) -> tuple[str, ...]:
        """Return the names of the transformer's modules that this model does not read."""
        return ("generator", "token_norm") if self.config.use_class_token else ("norm",)

    def freeze_untrained(self) -> None:
        """Freeze what this model does not read, as optimizers and processes wait for gradients of all else."""
        for name in self.unread_modules():
            module = getattr(self.base_model, name, None)
            if module is not None:
                module.requires_grad_(False)

    def post_init(self) -> None:
        """Initialize weights, and freeze what is not read."""
        super().post_init()
        # A head reads what the transformer alone does not.
        self.base_model.requires_grad_(True)
        self.freeze_untrained()

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        super()._initialize_missing_keys(is_quantized)
        # Loading replaces parameters with new ones, which would be trained.
        self.freeze_untrained()


class PointGPTModel(PointGPTPreTrainedModel, ActModel):
    """PointGPT's transformer: ordered patches, mini-PointNet, causal blocks, norms; with its generator of patches."""

    _block = PointGPTBlock
    is_causal = True

    def __init__(self, config: PointGPTConfig):
        super().__init__(config)
        width = config.hidden_size
        self.position_embed = SinePositions(width, config.position_temperature)
        # Both are there in any case; see `PointGPTConfig.use_class_token`.
        self.class_token = ClassToken(width)
        self.start_token = ClassToken(width)
        # Of tokens for heads for points
        self.token_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.class_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.use_class_token else None
        self.generator = PatchGenerator(config) if config.use_class_token else None
        self.post_init()

    @property
    def final_norm(self) -> str:
        """Name of the norm after the last block."""
        return "norm" if self.config.use_class_token else "token_norm"

    def normed(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the norms that a head reads tokens after."""
        hidden_states = super().normed(hidden_states)
        return hidden_states if self.class_norm is None else self.class_norm(hidden_states)

    def cut(self, points: torch.Tensor) -> Patches:
        """Group clouds `(batch, points, in_channels)` into patches, in the order that the config describes."""
        patches = super().cut(points)
        return patches.select(chain_of(patches.centers)) if self.config.patch_order == "chain" else patches

    def encode(self, tokens: torch.Tensor, centers: torch.Tensor, *requested: Any, **kwargs: Any) -> Encoded:
        """Run the transformer on tokens `(batch, groups, hidden)` behind start and class token; see `run_blocks`."""
        positions = self.position_embed(centers).to(tokens.dtype)
        tokens, positions = self.class_token(tokens, positions)
        tokens, positions = self.start_token(tokens, positions)
        if self.config.crossed_positions:
            positions = torch.cat([positions[:, 1:2], positions[:, :1], positions[:, 2:]], dim=1)
        mask = causal_mask(tokens.shape[1], tokens)
        return self.run_blocks(tokens, positions, centers, *requested, attention_mask=mask, **kwargs)

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        output_layers: Sequence[int] = (),
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_generation_loss: bool = False,
    ) -> PointGPTOutput:
        """Encode point clouds.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            output_layers: Numbers of blocks, from 0, whose outputs are returned too.
            output_hidden_states: Whether to return the inputs and outputs of the blocks; None for the config's choice.
            output_attentions: The same for the attention weights, which only eager attention returns.
            return_generation_loss: Whether to generate the patches too, and to return their loss.
        """
        patches = self.cut(points)
        tokens = self.patch_encoder(patches.neighborhoods)  # (B, G, H)
        returned = (output_layers, output_hidden_states, output_attentions)
        embed = partial(self.embed_patches, points)
        encoded = self.encode(tokens, patches.centers, *returned, embed_patches=embed)
        states = encoded.last_hidden_state  # (B, 2 + G, H)
        # The start token is of no use behind the blocks, but for the generator.
        hidden_states = states[:, 1:] if self.class_norm is None else self.class_norm(states[:, 1:])
        loss = None
        if return_generation_loss:
            loss = self.generation_loss(states, patches)
        added = encoded.added
        return PointGPTOutput(
            hidden_states,
            self._pool(hidden_states, added.get(len(self.blocks.layers) - 1)),
            patches.centers,
            patches.center_index,
            tuple(layer[:, 1:] for layer in encoded.layer_outputs) if output_layers else None,
            encoded.hidden_states,
            encoded.attentions,
            tuple(added[number] for number in output_layers if number in added) or None,
            loss,
        )

    def generation_loss(self, states: torch.Tensor, patches: Patches) -> torch.Tensor:
        """Generate patches from normed states behind start and class token, and compare them with the cloud's."""
        if self.generator is None:
            raise ValueError("return_generation_loss=True with use_class_token=False: there is no generator")
        # Each patch from those before it: the class token knows none, and the last patch is before no other.
        states = torch.cat([states[:, :1], states[:, 2:-1]], dim=1)  # (B, G, H)
        generated = self.generator(states, patches.centers, causal_mask(states.shape[1], states))
        points = patches.points if self.config.absolute_targets else patches.neighborhoods[..., :3]
        return generation_loss(generated, points)


class PointGPTForPointCloudClassification(PointGPTPreTrainedModel, ActForPointCloudClassification):
    """`PointGPTModel` with a classification head; in training, it also learns to generate patches.

    Example:
        ```python
        import torch
        from hf_any3d import PointGPTConfig, PointGPTForPointCloudClassification

        model = PointGPTForPointCloudClassification(PointGPTConfig(num_labels=3, num_hidden_layers=2))
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).logits.shape  # (2, 3)
        ```
    """

    def unread_modules(self) -> tuple[str, ...]:
        """Return the names of the transformer's modules that this model does not read."""
        return ("token_norm",) if self.config.generation_loss_weight else ("generator", "token_norm")

    @strict_forward
    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> PointGPTClassifierOutput:
        """Return `logits (batch, labels)`, and `unknown (batch,)` if `config.unknown` has rows.

        To the loss of the labels that of generated patches is added, `generation_loss_weight` times.
        """
        weight = self.config.generation_loss_weight
        # In training also without labels, which a Trainer keeps to itself to smooth them.
        generates = weight > 0 and (labels is not None or self.training)
        output = self.base_model(points, return_generation_loss=generates, **kwargs, return_dict=True)
        logits = self.classifier(output.pooler_output)  # (B, labels)
        loss = classification_loss(logits, labels, self.config)
        added = weight * output.generation_loss if generates else None
        if loss is not None and added is not None:
            loss = loss + added
        unknown = self.score_unknown(output.pooler_output, logits)
        states = output.hidden_states, output.attentions
        return PointGPTClassifierOutput(loss, logits, *states, unknown, auxiliary_loss=added)


class PointGPTForSemanticSegmentation(PointGPTPreTrainedModel, ActForSemanticSegmentation):
    """PointGPT that predicts an object class for every point of a scene or of a block of it.

    Example:
        ```python
        import torch
        from hf_any3d import PointGPTConfig, PointGPTForSemanticSegmentation

        config = PointGPTConfig(num_labels=3, num_hidden_layers=2, segmentation_layers=[0, 1])
        model = PointGPTForSemanticSegmentation(config)
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).logits.shape  # (2, 1024, 3)
        ```
    """


class PointGPTForPartSegmentation(PointGPTPreTrainedModel, ActForPartSegmentation):
    """PointGPT that predicts a part for every point of an object, given the object's category.

    Example:
        ```python
        import torch
        from hf_any3d import PointGPTConfig, PointGPTForPartSegmentation

        parts = {"category_parts": [[0, 1], [2]], "num_labels": 3}
        config = PointGPTConfig(num_hidden_layers=2, segmentation_layers=[0, 1], **parts)
        model = PointGPTForPartSegmentation(config)
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points, category=torch.tensor([0, 1])).logits.shape  # (2, 1024, 3)
        ```
    """


class PointGPTForPreTraining(PointGPTPreTrainedModel):
    """Generative pretraining: each patch of a cloud is predicted from those before it.

    Source: PointGPT (arXiv 2305.11487), Sec. 3.2.

    Example:
        ```python
        import torch
        from hf_any3d import PointGPTConfig, PointGPTForPreTraining

        model = PointGPTForPreTraining(PointGPTConfig(num_hidden_layers=2))
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).predictions.shape  # (2, 64, 32, 3)
        ```
    """

    # Adapters that mix the tokens of a cloud would show it the patches that it predicts.
    predicts_later_tokens = True

    def __init__(self, config: PointGPTConfig):
        super().__init__(config)
        if not config.use_class_token:
            raise ValueError("use_class_token=False: a segmentation model has no generator; expected True")
        self.pointgpt = PointGPTModel(config)
        self.post_init()

    def unread_modules(self) -> tuple[str, ...]:
        """Return the names of the transformer's modules that this model does not read."""
        return "class_token", "class_norm", "token_norm"

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        hidden_columns: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> PointGPTForPreTrainingOutput:
        """Generate each patch from those before it.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            hidden_columns: `(batch, groups)` booleans, True for the positions that no other one sees; by default the
                same are drawn for all clouds, as released.
            return_loss: Whether to compute the loss.
            output_hidden_states: Whether to return the hidden states; None for the config's choice.
            output_attentions: The same for the attention weights, which only eager attention returns.
        """
        base = self.pointgpt
        patches = base.cut(points)
        centers = patches.centers
        if hidden_columns is None:
            hidden_columns = self.draw_hidden_columns(centers.shape[1], centers.device).expand(len(centers), -1)
        # All patches are encoded, and count in the statistics of its norms; the last is before no other.
        tokens = base.patch_encoder(patches.neighborhoods)[:, :-1]
        seen = centers[:, :-1]
        tokens, positions = base.start_token(tokens, base.position_embed(seen).to(tokens.dtype))
        mask = causal_mask(tokens.shape[1], tokens, hidden_columns)
        requested = ((), output_hidden_states, output_attentions)
        encoded = base.run_blocks(tokens, positions, seen, *requested, attention_mask=mask)
        generated = base.generator(encoded.last_hidden_state, centers, mask)
        loss = generation_loss(generated, patches.neighborhoods[..., :3]) if return_loss else None
        return PointGPTForPreTrainingOutput(
            loss, generated, centers, hidden_columns, encoded.hidden_states, encoded.attentions
        )

    def draw_hidden_columns(self, groups: int, device: torch.device) -> torch.Tensor:
        """Draw the positions `(groups,)` that no other one sees."""
        first = min(self.config.num_seen_columns, groups)
        count = int(self.config.mask_ratio * (groups - first))
        order = torch.rand(groups - first, device=device).argsort().argsort()
        return nn.functional.pad(order < count, (first, 0))

    @torch.no_grad()
    def probe_features(self, points: torch.Tensor) -> torch.Tensor:
        """Compute features of clouds `(batch, features)` for a linear probe during pretraining."""
        return self.pointgpt(points, return_dict=True).pooler_output
