"""3DETR, an end-to-end transformer that detects objects in point clouds (arXiv 2109.08141).

points (B, N, channels)
    │  sample centers, group the points around them, a small PointNet
    ▼
tokens (B, G, width) ─► encoder: attention between all tokens, or between those nearby
    │  a layer to the decoder's width
    ▼
memory (B, G, H) ─► decoder: queries at sampled places attend to each other and to the memory
    │
    ▼
queries (B, queries, H) ─► heads: class, center, size and heading of a box each

Shapes: B clouds, N points of each, G tokens, H width of a token.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward
from transformers.utils import ModelOutput

from hf_any3d.modeling.config_checks import check_fields
from hf_any3d.modeling.detr3d.configuration_detr3d import Detr3DConfig
from hf_any3d.modeling.detr3d.losses import BoxPredictions, BoxTargets, detection_loss
from hf_any3d.modeling.encoders import LayerStack, open_pretrained_part, restore_part
from hf_any3d.modeling.layers.boxes import wrap_heading
from hf_any3d.modeling.layers.forward_contract import PointTokensMixin, requested_outputs, strict_forward
from hf_any3d.modeling.layers.heads import ClassificationHead, in_precision_of
from hf_any3d.modeling.point_encoders.set_abstraction import SetAbstraction, sample_centers, shared_layers
from hf_any3d.modeling.point_ops import gather_points, in_full_precision
from hf_any3d.modeling.point_ops.grouping import check_channels
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart, absolute_name
from hf_any3d.modeling.pretrained_parts.tensors import own_modules

_ACTIVATIONS = {"relu": nn.ReLU(), "gelu": nn.GELU(), "leaky_relu": nn.LeakyReLU(0.1)}


@dataclass
class Detr3DModelOutput(ModelOutput):
    """Features of queries and tokens.

    Args:
        last_hidden_state: `(batch, queries, hidden)`, the queries after the last layer and the norm.
        pooler_output: `(batch, hidden)`, the maximum of the decoder's memory over a cloud's tokens.
        centers: `(batch, queries, 3)`, positions of the queries in the units of the input.
        intermediate_hidden_states: `(layers, batch, queries, hidden)`, the queries after each layer of the decoder and
            the norm.
        encoder_last_hidden_state: `(batch, tokens, encoder_hidden)`.
        encoder_centers: `(batch, tokens, 3)`, positions of the tokens.
        encoder_index: `(batch, tokens)`, indices of these positions among the points.
        encoder_mask: `(batch, tokens)`, False for tokens that a cloud has too few points for; None if all have enough.
        hidden_states: On request, the encoder's input and the output of each of its layers, then the output of each
            layer of the decoder, before its norm: `num_hidden_layers + 1` tensors.
        attentions: On request, the weights of the self-attention of each layer, `(batch, heads, tokens, tokens)` in
            the encoder and `(batch, heads, queries, queries)` in the decoder.
        cross_attentions: On request, the weights of each layer of the decoder, `(batch, heads, queries, tokens)`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    intermediate_hidden_states: torch.Tensor | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_centers: torch.Tensor | None = None
    encoder_index: torch.Tensor | None = None
    encoder_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class Detr3DObjectDetectionOutput(ModelOutput):
    """Boxes of a batch of clouds.

    Args:
        loss: With labels, the weighted sum of all terms over all layers of the decoder.
        loss_dict: With labels, the weighted terms by name; those of layer k of the decoder but the last end in `_k`.
            `loss_cardinality`, the mean difference between the numbers of boxes and objects, is not part of the sum.
        logits: `(batch, queries, labels + 1)`, the last one for "no object".
        pred_boxes: `(batch, queries, 7)`: center and size in the units of the input, and heading in radians,
            counterclockwise about z.
        heading_logits: `(batch, queries, bins)`.
        heading_residuals: `(batch, queries, bins)`, the rest of the heading for each bin, in halves of a bin.
        auxiliary_outputs: With labels, the same four of each layer of the decoder but the last.

    The others are those of `Detr3DModelOutput`.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    heading_logits: torch.Tensor | None = None
    heading_residuals: torch.Tensor | None = None
    auxiliary_outputs: list[dict[str, torch.Tensor]] | None = None
    last_hidden_state: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_centers: torch.Tensor | None = None
    encoder_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class Detr3DPreTrainedModel(LibraryModelMixin, PointTokensMixin, PreTrainedModel):
    """Base class of 3DETR models."""

    config_class = Detr3DConfig
    config: Detr3DConfig
    base_model_prefix = "detr3d"
    _supports_flash_attn = False  # which has no masks of pairs
    # Half precision would move random frequencies, see `FourierPositions`.
    _keep_in_fp32_modules_strict = ["frequencies"]
    _no_split_modules = ["Detr3DEncoderLayer", "Detr3DDecoderLayer"]
    _adapted_part = "point_encoder"
    _part_paths = {"point_encoder": "point_encoder.model"}
    _settings_without_effect_on_adapters = ("parts", "point_encoder_config", "freeze_point_encoder")
    _has_single_dtype = True
    holds_statistics_below_adapters = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False: transformers has rules for weights only of modules with parameters in custom code."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FourierPositions):
            init.normal_(module.frequencies)
        elif isinstance(module, SetAbstraction):
            for layer in module.layers:
                # As in the released program: Kaiming's rule for set abstraction, Xavier's for attention and MLPs.
                init.kaiming_normal_(layer.linear.weight)
        elif isinstance(module, Detr3DAttention):
            for layer in (module.q_proj, module.k_proj, module.v_proj):
                # Xavier's for the three as one matrix.
                init.xavier_uniform_(layer.weight, gain=1 / math.sqrt(2))
                init.zeros_(layer.bias)
            init.xavier_uniform_(module.out_proj.weight)
            init.zeros_(module.out_proj.bias)
        elif isinstance(module, FeedForward):
            for layer in (module.fc1, module.fc2):
                init.xavier_uniform_(layer.weight)
                init.uniform_(layer.bias, -(layer.in_features**-0.5), layer.in_features**-0.5)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)

    @classmethod
    def from_point_encoder_pretrained(
        cls,
        name: str | os.PathLike | None = None,
        *,
        config: Detr3DConfig | None = None,
        revision: str | None = None,
        freeze: bool = True,
        encoder_config: PreTrainedConfig | None = None,
        **config_kwargs: Any,
    ) -> Any:
        """Build an untrained decoder, and heads, on a pretrained point encoder.

        Args:
            name: Directory or hub name of a point encoder, such as a PointTransformerV3Model; heads are left out.
            config: A complete config instead, such as that of a saved adapter: the encoder that it names is loaded
                and checked. This makes the base for `PeftModel.from_pretrained(base, saved)`.
            revision: Branch, tag or commit of the encoder's repository; the commit is recorded.
            freeze: Whether the encoder is not trained.
            encoder_config: Config of the encoder, such as its own with more tokens; None for its own.
            **config_kwargs: Further fields of the config.

        Returns:
            A model of this class. Its directory names the encoder, and holds its weights only if they have changed.

        Raises:
            ValueError: The directory has no model, or one with an adapter.
            OSError: There is no such directory or repository, or the hub cannot be reached.
        """
        if (name is None) == (config is None):
            given = "is missing" if name is None else "is given beside config, which names one"
            raise ValueError(f"name {given}; expected a point encoder, by its name or by a config")
        check_fields(cls.config_class, config_kwargs, f"{cls.__name__}.from_point_encoder_pretrained")
        if config is not None:
            return cls(config, cls.open_part(config, {})).eval()
        # The record has the commit and the checksum, so that a saved model finds the same weights again.
        encoder, record = open_pretrained_part(PretrainedPart(absolute_name(name), revision), encoder_config)
        config_kwargs = {"in_channels": encoder.config.in_channels} | config_kwargs
        config = Detr3DConfig(
            point_encoder_config=encoder.config,
            freeze_point_encoder=freeze,
            parts={"point_encoder": record.to_dict()},
            **config_kwargs,
        )
        return cls(config, encoder).eval()

    # Loading and saving; see `LibraryModelMixin`.

    @classmethod
    def has_adapted_part(cls, config: PreTrainedConfig) -> bool:
        """Return whether a model of this config has another point encoder than its own."""
        return config.point_encoder_config is not None

    @property
    def adapted_part(self) -> PreTrainedModel:
        """The other point encoder."""
        return self.base_model.point_encoder.model

    @classmethod
    def open_part(cls, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any) -> PreTrainedModel:
        """Load the point encoder that a config names, in full precision; the model's revision is not the encoder's."""
        part = config.part("point_encoder")
        # Token and cache are of use for the encoder too; revision and subfolder are those of the model's repository.
        own = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
        return open_pretrained_part(part, _config_of_part(config, loading), own)[0]

    @classmethod
    def open_stored_part(
        cls, name: str, config: PreTrainedConfig, hub: dict[str, Any], **loading: Any
    ) -> PreTrainedModel:
        """Load the point encoder that is stored next to an adapter."""
        return open_pretrained_part(PretrainedPart(name), _config_of_part(config, loading), hub)[0]

    @classmethod
    def build_around(cls, part: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
        """Build the model around a point encoder."""
        return cls(config, part)

    def find_source(self) -> PretrainedPart:
        """Return the record of the point encoder, after marking one that was changed as stored."""
        self.base_model.store_changed_parts()
        return self.config.part("point_encoder")

    def save_part(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Save the point encoder as a checkpoint of its own."""
        encoder = AutoModel.from_config(self.config.point_encoder_config)
        encoder.load_state_dict(state)
        encoder.save_pretrained(folder)

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        if self.has_adapted_part(self.config):
            restore_part(self.adapted_part, self.config.part("point_encoder"))
        super()._initialize_missing_keys(is_quantized)


def _config_of_part(config: PreTrainedConfig, loading: dict[str, Any]) -> PreTrainedConfig:
    """Return the config of the point encoder, as it is to be opened."""
    if loading.get("quantization_config") is not None:
        raise ValueError(
            "quantization_config with a detector's adapter; expected full weights: the encoder is a part of the model"
        )
    own = config.point_encoder_config
    if loading.get("attn_implementation") is not None:
        own._attn_implementation = loading["attn_implementation"]
    return own


class Detr3DAttention(nn.Module):
    """Multi-head attention of queries to keys, which may be the queries themselves."""

    def __init__(self, config: Detr3DConfig, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.dropout = dropout
        self.scaling = (width // num_heads) ** -0.5
        self.is_causal = False
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend: `(batch, queries, width)`, and the weights `(batch, heads, queries, keys)`, None unless eager.

        The mask `(batch, 1, queries or 1, keys)` is added to the products of queries and keys.
        """
        query, key, value = (
            layer(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, ·, width / heads)
            for layer, states in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        # transformers chooses by the config at each call, so that `set_attn_implementation` works on a built model.
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        mixed, weights = attend(self, query, key, value, mask, scaling=self.scaling, dropout=dropout, is_causal=False)
        return self.out_proj(mixed.flatten(2)), weights


class FeedForward(nn.Module):
    """Two linear layers with an activation and dropout between them."""

    def __init__(self, width: int, hidden: int, activation: str, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = _ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run on `(…, width)`."""
        return self.fc2(self.dropout(self.activation(self.fc1(hidden_states))))


class Detr3DEncoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, each with a norm before and a residual connection; tokens carry no positions."""

    def __init__(self, config: Detr3DConfig):
        super().__init__()
        width = config.encoder_hidden_size
        dropout = config.encoder_dropout
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = Detr3DAttention(config, width, config.encoder_attention_heads, dropout)
        self.final_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = FeedForward(width, config.encoder_ffn_dim, config.encoder_activation, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run on `(batch, tokens, width)`; the attention weights are the second output."""
        normed = self.self_attn_layer_norm(hidden_states)
        mixed, weights = self.self_attn(normed, normed, normed, mask)
        hidden_states = hidden_states + self.dropout(mixed)
        hidden_states = hidden_states + self.dropout(self.mlp(self.final_layer_norm(hidden_states)))
        return hidden_states, weights


class Encoded(NamedTuple):
    """Tokens `(batch, tokens, width)` after the encoder, with the input, output and attention weights of each layer.

    Their `centers (batch, tokens, 3)` have the `index (batch, tokens)` among the points; the mask of that shape is
    None if all tokens count.
    """

    tokens: torch.Tensor
    centers: torch.Tensor
    index: torch.Tensor
    mask: torch.Tensor | None
    hidden_states: tuple[torch.Tensor, ...]
    attentions: tuple[torch.Tensor | None, ...]


class Detr3DEncoder(nn.Module):
    """Layers of attention between all tokens of a cloud, or between those nearby.

    With `config.attention_radii`, tokens attend to those within a distance that grows from layer to layer, and after
    the first layer half of them go on, with the maximum over groups of tokens.

    Source: 3DETR, Sec. 3.1 and 3.4.
    """

    def __init__(self, config: Detr3DConfig):
        super().__init__()
        width = config.encoder_hidden_size
        self.radii = config.attention_radii
        self.layers = nn.ModuleList(Detr3DEncoderLayer(config) for _ in range(config.encoder_layers))
        # Only the masked encoder has it.
        self.downsampling = None
        if self.radii is not None:
            self.downsampling = SetAbstraction(
                width,
                config.num_encoder_tokens,
                config.downsampling_radius,
                config.downsampling_neighbors,
                (*config.downsampling_widths, width),
                scale_offsets=True,
                neighbor_order=config.neighbor_order,
                min_squared_norm=config.sampling_min_squared_norm,
            )

    def forward(
        self, tokens: torch.Tensor, centers: torch.Tensor, index: torch.Tensor, mask: torch.Tensor | None
    ) -> Encoded:
        """Encode tokens `(batch, tokens, width)` at centers `(batch, tokens, 3)`, in full precision.

        `index` `(batch, tokens)` are the centers among the points; `mask` is None if all tokens count.
        """
        states = [tokens]
        attentions = []
        for number, layer in enumerate(self.layers):
            if number == 1 and self.downsampling is not None:
                # The first layer reads all tokens; the maximum over groups of them halves their number for
                # the others.
                groups = self.downsampling(centers, tokens, mask)
                tokens = groups.features
                centers = groups.centers
                mask = groups.mask
                # Numbers of the tokens become those of the points that they stand for.
                index = index.gather(1, groups.index)
            tokens, weights = layer(tokens, additive_mask(self.visible(number, centers, mask), tokens.dtype))
            states.append(tokens)
            attentions.append(weights)
        return Encoded(tokens, centers, index, mask, tuple(states), tuple(attentions))

    def visible(self, number: int, centers: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return which tokens a token attends to in a layer, `(batch, tokens, tokens)`; None for all."""
        if self.radii is None:
            return None if mask is None else mask.unsqueeze(1)
        # Not as a matrix product, which would round the distances of near tokens.
        distance = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
        near = distance < self.radii[number]
        if mask is None:
            return near
        # A token that does not count sees itself, so that no row is empty.
        return near & mask.unsqueeze(1) | torch.eye(near.shape[1], dtype=torch.bool, device=near.device)


def additive_mask(visible: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Return a mask that is added to products of queries and keys, `(batch, 1, queries or 1, keys)`."""
    if visible is None:
        return None
    lowest = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, lowest).unsqueeze(1)


class PointEncoderTokens(nn.Module):
    """Tokens of another point encoder, in place of groups and 3DETR's own encoder.

    Without a `model`, one with random weights is built.
    """

    def __init__(self, config: Detr3DConfig, model: PreTrainedModel | None = None):
        super().__init__()
        self.scale = config.point_encoder_scale
        self.up_axis = config.point_encoder_up_axis
        if model is None:
            model = AutoModel.from_config(config.point_encoder_config)
        if model.config._attn_implementation is None:
            # Nesting a config in another one resets the attention implementation that its model was built with.
            model.config._attn_implementation = config._attn_implementation
        # So that what is saved describes the encoder that is used.
        config.point_encoder_config = model.config
        self.model = model
        self.is_frozen = config.freeze_point_encoder
        self.train()

    def train(self, mode: bool = True) -> PointEncoderTokens:
        """Set train mode, except for a frozen encoder: its norms stay in eval mode, and its weights have no gradient.

        Loading makes new weights, and ends with eval mode.
        """
        super().train(mode)
        if self.is_frozen:
            for *_, module in own_modules(self.model):
                module.training = False
                for weight in module.parameters(recurse=False):
                    weight.requires_grad_(False)
        return self

    def forward(self, points: torch.Tensor, mask: torch.Tensor | None) -> Encoded:
        """Encode clouds `(batch, points, channels)`, in full precision."""
        middle = 0.0
        radius = 1.0
        if self.scale is not None:  # into the unit sphere
            # Padding counts neither for the mean nor for the radius.
            xyz = points[..., :3]
            weight = torch.ones_like(points[..., :1]) if mask is None else mask.unsqueeze(2)
            middle = (xyz * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)  # (B, 1, 3)
            radius = ((xyz - middle).norm(dim=2, keepdim=True) * weight).amax(dim=1, keepdim=True).clamp_min(1e-6)
            points = torch.cat([(xyz - middle) / radius, points[..., 3:]], dim=2)
        if self.up_axis == "y":
            # A quarter turn, (x, z, -y). Only exchanging y and z would mirror the cloud.
            points = torch.cat([points[..., 0:3:2], -points[..., 1:2], points[..., 3:]], dim=2)
        is_flat = getattr(self.model.config, "flat_tokens", False)
        if mask is not None and not is_flat:
            raise ValueError(
                f"points_mask with a point encoder of type {self.model.config.model_type!r}, which takes clouds of "
                "one size; expected clouds without padding"
            )
        # Encoders of voxels take clouds of any lengths, so that padding need not be encoded.
        clouds = points if mask is None else [cloud[own] for cloud, own in zip(points, mask, strict=True)]
        output = self.model(clouds, return_dict=True)
        if is_flat:
            # Their tokens are flat, those of one cloud after the other; the decoder needs an axis of clouds.
            counts = output.offsets.diff(prepend=output.offsets.new_zeros(1))  # voxels of each cloud
            tokens, centers = (
                nn.utils.rnn.pad_sequence(values.split(counts.tolist()), batch_first=True)
                for values in (output.last_hidden_state, output.coord)
            )  # (B, G, width) and (B, G, 3)
            valid = torch.arange(tokens.shape[1], device=counts.device) < counts.unsqueeze(1)
            valid = None if valid.all() else valid
        else:
            # Without leading tokens that have no position, such as a class token.
            tokens = output.last_hidden_state
            centers = output.centers
            valid = None
            tokens = tokens[:, tokens.shape[1] - centers.shape[1] :]
        if self.up_axis == "y":
            # The inverse of the turn above.
            centers = torch.stack([centers[..., 0], -centers[..., 2], centers[..., 1]], dim=-1)
        # Boxes are predicted around the queries' centers, in the units of the input.
        centers = centers.to(points) * radius + middle
        # Such tokens are at means of points, at none of them.
        index = torch.zeros(centers.shape[:2], dtype=torch.long, device=centers.device)
        return Encoded(tokens, centers, index, valid, (tokens,), ())


class FourierPositions(nn.Module):
    """Sines and cosines of positions in random directions, which are drawn once and stored with the weights.

    Queries carry them through two further layers, `projection`.

    Source: 3DETR, Sec. 3.2; Fourier features (arXiv 2006.10739).
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(3, width // 2))
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> FourierPositions:
        frequencies = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype in (torch.float16, torch.bfloat16):
            # Rounded frequencies would move the far end of a room by a good part of a wave.
            self.frequencies = frequencies.to(self.frequencies.device)
        return self

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Embed positions `(batch, places, 3)` from 0 to 1: `(batch, places, width)`."""
        # No matrix product: autocast and TF32 would round coordinates.
        angles = (2 * math.pi * positions.unsqueeze(-1) * self.frequencies.to(positions)).sum(dim=-2)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Detr3DDecoderLayer(GradientCheckpointingLayer):
    """Attention between queries, attention to the memory and an MLP, each with a norm before and a residual."""

    def __init__(self, config: Detr3DConfig):
        super().__init__()
        width = config.hidden_size
        heads = config.decoder_attention_heads
        dropout = config.dropout
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = Detr3DAttention(config, width, heads, dropout)
        self.encoder_attn_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.encoder_attn = Detr3DAttention(config, width, heads, dropout)
        self.final_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = FeedForward(width, config.decoder_ffn_dim, "relu", dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_positions: torch.Tensor,
        memory: torch.Tensor,
        memory_positions: torch.Tensor,
        memory_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Run queries `(batch, queries, hidden)`, which read the memory `(batch, tokens, hidden)`, through a layer.

        Returns queries, and the weights of both attentions. Positions are added to queries and keys, not to values.
        """
        normed = self.self_attn_layer_norm(hidden_states)
        # Positions steer where a query looks; what it reads there carries none.
        placed = normed + query_positions
        mixed, weights = self.self_attn(placed, placed, normed)
        hidden_states = hidden_states + self.dropout(mixed)
        normed = self.encoder_attn_layer_norm(hidden_states)
        read, cross_weights = self.encoder_attn(
            normed + query_positions, memory + memory_positions, memory, memory_mask
        )
        hidden_states = hidden_states + self.dropout(read)
        hidden_states = hidden_states + self.dropout(self.mlp(self.final_layer_norm(hidden_states)))
        return hidden_states, weights, cross_weights


class Detr3DModel(Detr3DPreTrainedModel):
    """3DETR without heads: tokens of groups of points, encoder, and queries that read them.

    Args:
        config: The configuration.
        point_encoder: A loaded encoder for a config that has another point encoder; None builds one with random
            weights, which `from_pretrained` replaces.

    Source: 3DETR, Sec. 3.
    """

    def __init__(self, config: Detr3DConfig, point_encoder: PreTrainedModel | None = None):
        super().__init__(config)
        width = config.encoder_hidden_size
        hidden = config.hidden_size
        self.input_tokens = nn.Identity()
        if config.point_encoder_config is not None:
            self.point_encoder = PointEncoderTokens(config, point_encoder)
            # The decoder reads tokens of any width through `memory_projection`.
            width = token_width(config.point_encoder_config)
        else:
            self.group_encoder = SetAbstraction(
                config.in_channels - 3,
                config.num_tokens,
                config.group_radius,
                config.num_neighbors,
                (*config.group_widths, width),
                scale_offsets=True,
                neighbor_order=config.neighbor_order,
                min_squared_norm=config.sampling_min_squared_norm,
            )
            self.encoder = Detr3DEncoder(config)
        # As released: three layers after an encoder of full attention, two after the one with radii.
        is_vanilla = config.point_encoder_config is None and config.attention_radii is None
        between = [width, width] if is_vanilla else [width]
        self.memory_projection = shared_layers((width, *between, hidden))
        self.positions = FourierPositions(hidden)
        self.layers = nn.ModuleList(Detr3DDecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.post_init()
        self.expect_parts_elsewhere()

    @property
    def layer_stack(self) -> LayerStack | None:
        """The layers of another point encoder, which adapters are put into; None for 3DETR's own encoder."""
        if "point_encoder" not in self._modules:
            return None
        stack = self.point_encoder.model.layer_stack
        norm = stack.final_norm
        decoder = []
        for name, part in self.named_children():
            if name != "point_encoder" and part.state_dict():
                # PEFT copies no lists of modules, but what is in them. It compares the ends of names, so that short
                # ones would be those of modules in the encoder too.
                is_list = isinstance(part, nn.ModuleList)
                names = [f"{name}.{number}" for number in range(len(part))] if is_list else [name]
                decoder += [f"{self.base_model_prefix}.{one}" for one in names]
        return replace(
            stack,
            path=f"point_encoder.model.{stack.path}",
            final_norm=None if norm is None else f"point_encoder.model.{norm}",
            pretrained=("point_encoder",),
            trained=tuple(decoder),
        )

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        points_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Detr3DModelOutput:
        """Encode point clouds, in meters with z up, and read them with queries.

        Clouds with fewer than `config.num_tokens` points have fewer tokens.
        """
        config = self.config
        check_channels(points, config.in_channels)
        points_mask = _checked_mask(points, points_mask)
        with_states, with_weights = requested_outputs(
            config, output_hidden_states, output_attentions, config._attn_implementation
        )
        if points_mask is not None:  # padding may hold anything
            points = torch.where(points_mask.unsqueeze(2), points, 0.0)
        points = in_full_precision(points, self.dtype)
        xyz = points[..., :3].contiguous()
        low, extent = cloud_extent(points, points_mask, config.min_extent)

        if config.point_encoder_config is not None:
            encoded = self.point_encoder(points, points_mask)
            encoded = encoded._replace(tokens=self.input_tokens(encoded.tokens))
        else:
            groups = self.group_encoder(xyz, points[..., 3:], points_mask)
            tokens = self.input_tokens(groups.features)
            encoded = self.encoder(tokens, groups.centers, groups.index, groups.mask)

        memory = encoded.tokens
        for layer in self.memory_projection:
            memory = layer(in_precision_of(layer, memory))
        pooled = memory
        if encoded.mask is not None:
            # The maximum over a cloud must not see tokens that do not count.
            pooled = memory.masked_fill(~encoded.mask.unsqueeze(2), torch.finfo(memory.dtype).min)
        # Sec. 3.2: queries are sampled from the tokens instead of learned, so that their number can change after the
        # training.
        query_index, _ = sample_centers(
            encoded.centers, config.num_queries, encoded.mask, config.sampling_min_squared_norm
        )
        centers = gather_points(encoded.centers, query_index)  # (B, queries, 3)
        # Relative to the cloud's bounds: the random frequencies are for positions from 0 to 1.
        memory_positions, query_positions = (
            self.positions((places - low) / extent).to(memory.dtype) for places in (encoded.centers, centers)
        )
        projection = self.positions.projection
        query_positions = projection(in_precision_of(projection, query_positions))
        visible = None if encoded.mask is None else encoded.mask.unsqueeze(1)  # (B, 1, G)
        memory_mask = additive_mask(visible, memory.dtype)

        # Queries begin without content and differ by their positions alone, as in DETR (arXiv 2005.12872).
        hidden_states = torch.zeros_like(query_positions)
        states = []
        normed = []
        attentions = []
        cross_attentions = []
        for layer in self.layers:
            hidden_states, weights, cross_weights = layer(
                hidden_states, query_positions, memory, memory_positions, memory_mask
            )
            states.append(hidden_states)
            # The heads, which all layers share in training, read every layer after this norm; the next layer gets what
            # is before it.
            normed.append(self.layer_norm(hidden_states))
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        return Detr3DModelOutput(
            last_hidden_state=normed[-1],
            pooler_output=pooled.amax(dim=1),
            centers=centers,
            intermediate_hidden_states=torch.stack(normed),
            encoder_last_hidden_state=encoded.tokens,
            encoder_centers=encoded.centers,
            encoder_index=encoded.index,
            encoder_mask=encoded.mask,
            hidden_states=(*encoded.hidden_states, *states) if with_states else None,
            attentions=(*encoded.attentions, *attentions) if with_weights else None,
            cross_attentions=tuple(cross_attentions) if with_weights else None,
        )


def token_width(config: PreTrainedConfig) -> int:
    """Return the channels of a point encoder's tokens, those of the inner encoder where it has one."""
    return (getattr(config, "encoder_config", None) or config).hidden_size


def cloud_extent(
    points: torch.Tensor, mask: torch.Tensor | None, min_extent: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest coordinates of each cloud and its lengths along the axes, `(batch, 1, 3)` each.

    Points `(batch, points, channels)` where the mask is False are padding; no length is below `min_extent`.
    """
    xyz = points[..., :3].to(torch.promote_types(points.dtype, torch.float32))
    low = high = xyz
    if mask is not None:
        padding = ~mask.bool().unsqueeze(2)
        # What padding is filled with can be neither the smallest nor the largest.
        low = xyz.masked_fill(padding, math.inf)
        high = xyz.masked_fill(padding, -math.inf)
    low = low.amin(dim=1, keepdim=True)
    high = high.amax(dim=1, keepdim=True)
    return low, (high - low).clamp_min(min_extent)


def _checked_mask(points: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return the mask, None if no cloud is filled up."""
    if mask is None:
        return None
    mask = mask.bool()
    compiles = torch.compiler.is_compiling()
    if mask.shape != points.shape[:2] or not (compiles or mask.any(dim=1).all()):
        raise ValueError(
            f"points_mask has shape {tuple(mask.shape)}; expected {tuple(points.shape[:2])}, and a point in each cloud"
        )
    return None if not compiles and mask.all() else mask


class Detr3DForPointCloudObjectDetection(Detr3DPreTrainedModel):
    """3DETR with its heads: the class, center, size and heading of a box for each query.

    A box's center is at most `config.max_center_offset` from its query along each axis, and its lengths are at most
    those of the cloud.

    Source: 3DETR, Sec. 3.2 and 3.3.

    Example:
        ```python
        import torch
        from hf_any3d import Detr3DConfig, Detr3DForPointCloudObjectDetection

        config = Detr3DConfig(num_labels=3, num_tokens=256, num_queries=32, decoder_layers=2)
        model = Detr3DForPointCloudObjectDetection(config)
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).logits.shape  # (2, 32, 4)
        ```
    """

    def __init__(self, config: Detr3DConfig, point_encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.detr3d = Detr3DModel(config, point_encoder)
        width = config.hidden_size
        bins = config.num_heading_bins
        # As released: two hidden layers without a bias, which their norms would cancel.
        head = partial(ClassificationHead, width, widths=(width, width), bias=False, dropout=config.head_dropout)
        # The last class is "no object", as most queries find none.
        self.class_head = head(config.num_labels + 1)
        self.center_head = head(3)
        self.size_head = head(3)
        self.heading_class_head = head(bins)
        self.heading_residual_head = head(bins)
        self.post_init()
        self.expect_parts_elsewhere()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        points_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> Detr3DObjectDetectionOutput:
        """Detect objects in clouds in meters with z up.

        `labels` are the objects of each cloud: `class_labels (objects,)`, and `boxes (objects, 7)`, center and size in
        the units of the points and heading in radians, counterclockwise about z.
        """
        targets = None if labels is None else BoxTargets.checked(labels, len(points), self.config)
        output = self.detr3d(points, points_mask=points_mask, **kwargs, return_dict=True)
        # Of all points, as given: sizes are relative to them.
        low, extent = cloud_extent(points, points_mask, self.config.min_extent)
        # In training the norms of the heads measure the queries of all layers.
        of_all_layers = self.training or targets is not None
        states = output.intermediate_hidden_states if of_all_layers else output.last_hidden_state.unsqueeze(0)
        predictions = self.predict(states, output.centers, low, extent)
        loss = terms = auxiliary = None
        if targets is not None:
            loss, terms = detection_loss(predictions, targets, low, extent, self.config)
            auxiliary = [predictions.outputs_of(number) for number in range(len(states) - 1)]
        # What both outputs have by the same name, and the model has returned.
        kept = {field.name for field in fields(Detr3DObjectDetectionOutput)} & output.keys()
        return Detr3DObjectDetectionOutput(
            loss=loss,
            loss_dict=terms,
            **predictions.outputs_of(-1),
            auxiliary_outputs=auxiliary,
            **{name: output[name] for name in kept},
        )

    def predict(
        self, hidden_states: torch.Tensor, centers: torch.Tensor, low: torch.Tensor, extent: torch.Tensor
    ) -> BoxPredictions:
        """Compute boxes from the states of queries `(layers, batch, queries, hidden)`.

        `centers (batch, queries, 3)` are their positions, `low` and `extent` those of `cloud_extent`.
        """
        # The queries of all layers at once: in training, the norms' statistics are over all of them, as released.
        rows = hidden_states.flatten(0, 2)
        shape = hidden_states.shape[:3]
        logits, offset, size, heading_logits, residuals = (
            head(rows).unflatten(0, shape)
            for head in (
                *(self.class_head, self.center_head, self.size_head),
                *(self.heading_class_head, self.heading_residual_head),
            )
        )
        # In full precision: half precision would round places in a room to centimeters.
        offset = (2 * offset.to(centers).sigmoid() - 1) * self.config.max_center_offset
        # In extents of the cloud: no box is longer than it.
        sizes = size.to(centers).sigmoid()
        bins = self.config.num_heading_bins
        best = heading_logits.argmax(dim=-1, keepdim=True)  # (layers, B, queries, 1)
        # The middle of the likeliest bin, and the rest that is predicted for it.
        chosen = best.squeeze(-1) * (2 * math.pi / bins)
        heading = wrap_heading(chosen + residuals.to(centers).gather(-1, best).squeeze(-1) * (math.pi / bins))
        if bins == 1:  # along the axes
            heading = heading * 0 + 0.0  # not -0
        placed = centers + offset
        boxes = torch.cat([placed, sizes * extent, heading.unsqueeze(-1)], dim=-1)
        return BoxPredictions(logits, (placed - low) / extent, sizes, heading_logits, residuals, boxes)
