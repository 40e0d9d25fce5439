"""Any2Point: point clouds as input of a frozen pretrained transformer of any modality, with heads for each task.

points (B, N, 3 + C)
    │  PointTokenizer: sample centers, group their neighbors, pool
    ▼
tokens (B, G, H), centers (B, G, 3) ──► virtual projection: places and cells in six views
    │  + the encoder's own positions at these places, mean over the views
    ▼
frozen layer: attention ─► feed-forward ─► guided adapter, within the cells of the views ─► + residual
    │  × layers
    ▼
output norm ─► pooling (B, width) ─────┬─► class scores
                                       ├─► propagation to the points ─► scores of each point
                                       └─► alignment with texts ─► similarity to class names

Shapes: B clouds, N points of each, G tokens, H width of a token.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import ModelOutput

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig
from hf_any3d.modeling.any2point.point_index import PointIndexer, check_point_index
from hf_any3d.modeling.any2point.point_tokenizer import TOKENIZERS, PointTokens
from hf_any3d.modeling.any2point.small_data_defaults import LIGHT, LIGHT_SEGMENTATION, fill_in
from hf_any3d.modeling.any2point.virtual_projection import Projection, project
from hf_any3d.modeling.encoders import (
    FrozenEncoderMixin,
    LayerPass,
    TokenPlaces,
    convolve_on_line,
    full_precision_attention,
    hidden_of,
    unfreeze,
)
from hf_any3d.modeling.layers.adapted_layers import asks_of, enter_layer, may_run_again
from hf_any3d.modeling.layers.compilation import compilable, is_compiled
from hf_any3d.modeling.layers.forward_contract import PointTokensMixin, requested_outputs, strict_forward
from hf_any3d.modeling.layers.heads import (
    SEQUENCE_POOLING,
    ClassificationHead,
    ClassToken,
    HeadNorm,
    pool,
    precision_of,
)
from hf_any3d.modeling.layers.losses import classification_loss, point_loss
from hf_any3d.modeling.layers.tasks import check_categories, checked_category, refuse_problem_type, restrict_to_parts
from hf_any3d.modeling.layers.unknown_score import PointCloudClassifierOutput, UnknownScore, UnknownScoreMixin
from hf_any3d.modeling.point_ops import Geometry, in_full_precision, normalize_centers, three_nearest_interpolate


class _Embedded(NamedTuple):
    """Tokens of point clouds, the places of their centers, and the input of the layers with positions to add to it."""

    tokens: PointTokens
    centers: torch.Tensor
    projection: Projection
    hidden_states: torch.Tensor
    positions: torch.Tensor


@dataclass
class Any2PointOutput(ModelOutput):
    """Token features of point clouds.

    Args:
        last_hidden_state: `(batch, 1 + tokens, hidden)`, after the final norm; the class token is first.
        pooler_output: `(batch, len(config.pooling) * hidden)`, input of the heads.
        centers: `(batch, tokens, 3)`, positions of the tokens in the units of the input.
        center_index: `(batch, tokens)`, indices of the centers among the input points.
        levels: On request, features of the tokenizer's stages: pairs of features `(batch, places, width)` and
            positions `(batch, places, 3)`, or None for the positions of the input points.
        hidden_states: On request, the input of the encoder's first layer and the output of each layer with its
            adapters, before the final norm and in the encoder's precision: layers + 1 times
            `(batch, 1 + tokens, hidden)`. Positions that are added before every layer are not included.
        attentions: On request, the attention weights of each layer, `(batch, heads, 1 + tokens, keys)`; prompts of an
            adapter are among the tokens. With `attention_axis="batch"`, `(1 + tokens, heads, batch, batch)`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    center_index: torch.Tensor | None = None
    levels: tuple[tuple[torch.Tensor, torch.Tensor | None], ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class Any2PointPreTrainedModel(FrozenEncoderMixin, PointTokensMixin, PreTrainedModel):
    """Base class of the Any2Point models."""

    config_class = Any2PointConfig
    config: Any2PointConfig
    base_model_prefix = "any2point"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"small_data": LIGHT}

    @property
    def point_indexer(self) -> PointIndexer:
        """Function that computes the `point_index` of the forward pass where batches are made."""
        return PointIndexer(self.config)

    @classmethod
    def from_encoder_pretrained(
        cls,
        encoder_name_or_path: str | os.PathLike | None = None,
        *,
        preset: str | None = "small_data",
        **kwargs: Any,
    ) -> Self:
        """Build an untrained model around a frozen encoder; see `FrozenEncoderMixin.from_encoder_pretrained`.

        Args:
            encoder_name_or_path: Hub name or local directory of a transformers checkpoint.
            preset: "small_data" for settings that suit some hundred clouds, as measured around a text encoder
                (`small_data_defaults.py`); None for the paper's, the defaults of `Any2PointConfig`. Fields that are
                given win over those of a preset; with a complete `config` it has no effect.
            **kwargs: Settings of loading, and any field of `Any2PointConfig`.

        Raises:
            ValueError: Neither an encoder nor a config is given, or both.
            UnsupportedEncoder: The layers of this encoder cannot read point tokens; says why, and names some that can.
            EncoderUnavailableError: The weights are neither in a directory of this name, nor can the hub be reached or
                has the cache or a package them.
            OSError: The hub has no such repository.
            TypeError: An argument is no field of the config.
        """
        return super().from_encoder_pretrained(encoder_name_or_path, preset=preset, **kwargs)

    @classmethod
    def complete_settings(
        cls, encoder_config: PreTrainedConfig, given: Mapping[str, Any], preset: str | None
    ) -> dict[str, Any]:
        """Return the given settings of a new model, and those of a preset for all others; None for no preset."""
        if preset is None:
            return dict(given)
        if preset not in cls.presets:
            raise ValueError(f"preset={preset!r}; expected None or one of {', '.join(map(repr, cls.presets))}")
        return fill_in(cls.presets[preset], encoder_config, given)

    def unfreeze_encoder(self) -> list[str]:
        """Train the encoder too (full fine-tuning), and store it with the model from now on.

        Trains the parameters that process point tokens, layers, norms and positions, and returns their names. A
        reloaded model has a frozen encoder with the stored weights; call this again to continue training it.
        """
        # What a small cloud depends on is what every cloud depends on.
        core = getattr(self, self.base_model_prefix, self)
        config = self.config
        # A separate generator, so that the random numbers of a training run do not change.
        points = torch.rand(2, config.min_points, config.in_channels, generator=torch.Generator().manual_seed(0))
        device = next(core.point_tokenizer.parameters()).device
        return unfreeze(self, lambda: core(points.to(device)).last_hidden_state)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ClassToken):
            init.normal_(module.token, std=self.config.initializer_range)
            init.normal_(module.position, std=self.config.initializer_range)


class Any2PointModel(Any2PointPreTrainedModel):
    """Token features of point clouds: tokenizer, virtual projection, frozen layers, final norm.

    Guided adapters are added by PEFT (`get_peft_model(model, GuidedAdapterConfig())`); without them this is the
    frozen encoder on point tokens.
    """

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        # First, as it finds the family, whose paths the parts below need
        self.adopt_encoder(encoder)
        self.gradient_checkpointing = False
        hidden_size = config.encoder_config.hidden_size
        self.point_tokenizer = TOKENIZERS[config.tokenizer](config, hidden_size)
        self.class_token = ClassToken(hidden_size)
        # All tokens pass this module before the layers; `get_input_embeddings` returns it.
        self.input_tokens = nn.Identity()
        final_norm = self.family.norm_of(self.encoder, self.family.final_norm)
        # A copy, because it is trained and stored with the model; encoders without a final norm get a new one. Its
        # precision is that of the other trained parameters, not the encoder's: `from_pretrained(dtype=…)` sets it.
        self.output_norm = nn.LayerNorm(hidden_size) if final_norm is None else copy.deepcopy(final_norm)
        self.output_norm.to(torch.get_default_dtype()).requires_grad_(True)
        if config.released.final_norm_eps is not None:
            name = "variance_epsilon" if hasattr(self.output_norm, "variance_epsilon") else "eps"
            setattr(self.output_norm, name, config.released.final_norm_eps)
        self.post_init()
        self.point_tokenizer.start()
        if encoder is not None:
            self._start_from_encoder()

    @torch.no_grad()
    def _start_from_encoder(self) -> None:
        """Copy the class token and the final norm from the encoder."""
        # The frozen layers know this vector; without one, the token starts at random.
        if self.family.class_token is not None:
            self.class_token.token.copy_(self.family.class_token(self.encoder))
        final_norm = self.family.norm_of(self.encoder, self.family.final_norm)
        if final_norm is not None:
            self.output_norm.load_state_dict(final_norm.state_dict())
        if self.config.token_scale is not None:
            # In multiples of the spread of the positions that are added to the tokens
            weight = self.family.positions(self.encoder).weight
            self.point_tokenizer.scale_tokens(self.config.token_scale * weight.float().std())

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        output_levels: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        point_index: Mapping[str, Any] | None = None,
    ) -> Any2PointOutput:
        """Compute token features of point clouds; `output_levels` adds those of the tokenizer's stages."""
        config = self.config
        return_hidden, return_attentions = requested_outputs(
            config, output_hidden_states, output_attentions, self.encoder.config._attn_implementation
        )
        self.warn_if_encoder_is_random()
        self.warn_about_batch_dependence()
        points = in_full_precision(points, precision_of(self.point_tokenizer))
        # A custom tokenizer may have no levels.
        wanted: dict[str, Any] = {"with_levels": True} if output_levels else {}
        if point_index is not None:
            wanted["point_index"] = point_index
            if is_compiled(self):
                check_point_index(point_index, points[..., :3], config)  # compiled code leaves values unchecked
        # Methods that learn where tokens are do without the places in the views.
        layers = self.family.layers_of(self.encoder)
        is_projected = not any(asks_of(layer).replaces_positions for layer in layers)
        tokens, centers, projection, hidden_states, positions = self._embed(points, wanted, is_projected)
        geometry = Geometry(
            centers,
            projection.view_positions,
            projection.extent,
            projection.cell_size,
            batch_second=config.released.attention_axis == "batch",
            layers_run_again=self.gradient_checkpointing,
        )
        recorder = self.record_attentions() if return_attentions else None
        # Not for layers that checkpointing runs again outside of it; inference is as fast in half precision.
        precise = torch.is_grad_enabled() and not self.gradient_checkpointing
        with recorder or nullcontext(), full_precision_attention(self.encoder) if precise else nullcontext():
            states = [] if return_hidden else None
            hidden_states, added = self._run_layers(hidden_states, positions, geometry, projection.places, states)
            attentions = recorder.weights if return_attentions else None
        hidden_states, pooled = self._finish(hidden_states, added)
        levels = tuple((level.features, level.centers) for level in tokens.levels) if output_levels else None
        return Any2PointOutput(
            hidden_states,
            pooled,
            tokens.centers,
            tokens.index,
            levels,
            tuple(states) if return_hidden else None,
            attentions,
        )

    @compilable
    def _embed(self, points: torch.Tensor, wanted: dict[str, Any], is_projected: bool) -> _Embedded:
        """Compute the input of the layers and the places of its tokens.

        `wanted` are arguments of the tokenizer; if not `is_projected`, the positions of the point tokens are zeros.
        """
        config = self.config
        tokens = self.point_tokenizer(points, **wanted)
        # Projected from the same distance, clouds of any size fill the views alike.
        centers = normalize_centers(tokens.centers) if config.normalize_centers else tokens.centers
        projection = project(centers, self.family.positions_of(self.encoder), config)
        # Encoders with relative or rotary positions get them in their layers; here they add zeros.
        convolution = self.family.line_convolution
        if is_projected and convolution is not None:
            own = tokens.tokens.to(self.encoder.dtype)
            embedding = convolve_on_line(own, projection.places, partial(convolution, self.encoder))
        elif is_projected and projection.embedding is not None:
            embedding = projection.embedding
        else:
            embedding = torch.zeros_like(tokens.tokens)
        # The class token has a learned position of its own, in front.
        hidden_states, positions = self.class_token(tokens.tokens, embedding.to(tokens.tokens.dtype))
        hidden_states = self._layer_input(self.input_tokens(hidden_states), positions)
        # Cells are numbers of places, which have no gradient.
        places = centers.detach().float()
        return _Embedded(tokens, places, projection, hidden_states, positions.to(self.encoder.dtype))

    def _layer_input(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return `(batch, tokens, hidden)` as the first layer reads it, with the positions that are added once."""
        if self.config.released.position_injection != "every_layer":
            tokens = tokens + positions
        # Apply the norm between the encoder's embeddings and its first layer, of encoders such as CLIP.
        hidden_states = tokens.to(self.encoder.dtype)
        if not self.config.released.use_input_norm:
            return hidden_states
        norm = self.family.norm_of(self.encoder, self.family.input_norm)
        return hidden_states if norm is None else norm(hidden_states)

    @compilable
    def _finish(self, hidden_states: torch.Tensor, added: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the final norm to the output of the layers, and pool the tokens, with those that adapters added."""
        # Trained parts run in their own precision, whatever that of the frozen encoder.
        dtype = self.output_norm.weight.dtype
        hidden_states = self.output_norm(hidden_states.to(dtype))
        if added is not None:
            added = self.output_norm(added.to(dtype))
        return hidden_states, pool(hidden_states, self.config.pooling, prompts=added)

    def _run_layers(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor,
        geometry: Geometry,
        places: TokenPlaces,
        states: list[torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the layers on `(batch, 1 + tokens, hidden)`; appends the hidden states to `states`.

        The second output are the tokens that adapters leave behind the last layer, for pooling of complete sequences.
        """
        if geometry.batch_second:
            # The layers take their first axis for the batch: so attention is over the clouds, as in a released
            # program.
            hidden_states = hidden_states.transpose(0, 1)
            positions = positions.transpose(0, 1)
        layers = self.family.layers_of(self.encoder)
        # Layers with prompts need masks and positions for them, too.
        lengths = [asks_of(layer).extra_tokens for layer in layers]
        inputs = {extra: self._layer_inputs(hidden_states, places, extra) for extra in set(lengths)}
        # Without the tokens that adapters add, whose number differs from layer to layer
        made = [hidden_states]
        count = hidden_states.shape[1]
        for layer, extra in zip(layers, lengths, strict=True):
            # Each iterator has arguments for every layer, so all of them advance, though only one is read.
            arguments = {length: next(own) for length, own in inputs.items()}[extra]
            # Here and not in the layer, which checkpointing may run without gradients first.
            added = None if self.config.released.position_injection == "input" else positions
            hidden_states, asked = enter_layer(layer, hidden_states, geometry, added, count)
            call = partial(layer, **{**arguments, **asked})
            # Frozen layers are in eval mode, so that their own checkpointing, which `every_n_layers` sets, is off.
            if self.training and self.gradient_checkpointing and may_run_again(layer):
                call = partial(self._gradient_checkpointing_func, call)
            hidden_states = hidden_of(call(hidden_states))
            if states is not None:
                made.append(hidden_states[:, :count])
        added = None
        if SEQUENCE_POOLING.intersection(self.config.pooling) and hidden_states.shape[1] > count:
            added = hidden_states[:, count:]
        hidden_states = hidden_states[:, :count]
        if geometry.batch_second:
            hidden_states = hidden_states.transpose(0, 1)
            made = [state.transpose(0, 1) for state in made]
        if states is not None:
            states += made
        return hidden_states, added

    def _layer_inputs(self, hidden_states: torch.Tensor, places: TokenPlaces, extra: int) -> Iterator[dict[str, Any]]:
        """Return the arguments of the layers if `extra` tokens without a position follow the sequence."""
        encoder = self.encoder
        if extra:
            hidden_states = nn.functional.pad(hidden_states, (0, 0, 0, extra))
        # Encoders with causal masks attend in both directions here: tokens have no order.
        mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=hidden_states, attention_mask=None)
        layers = self.family.layers_of(encoder)
        places = places.followed_by(extra)
        return self.family.layer_inputs(
            LayerPass(encoder, layers, hidden_states, mask, places, self.config.rotary_views)
        )


class _Any2PointWithHead(Any2PointPreTrainedModel):
    """`Any2PointModel` as `any2point`; a subclass adds a head."""

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.any2point = Any2PointModel(config, encoder)


class Any2PointForPointCloudClassification(UnknownScoreMixin, _Any2PointWithHead):
    """`Any2PointModel` with a classification head.

    Example:
        ```python
        import torch
        from transformers import BertConfig
        from hf_any3d import Any2PointConfig, Any2PointForPointCloudClassification

        encoder = BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
        config = Any2PointConfig(encoder_config=encoder, num_tokens=32, num_labels=3)
        model = Any2PointForPointCloudClassification(config)
        points = torch.rand(2, 256, 3)  # xyz
        model(points=points).logits.shape  # (2, 3)
        ```
    """

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config, encoder)
        features = len(config.pooling) * config.encoder_config.hidden_size
        self.classifier = ClassificationHead(
            features,
            config.num_labels,
            config.head_widths,
            bias=config.head_bias,
            dropout=config.head_dropout,
            input_dropout=config.released.pooler_dropout,
        )
        self.unknown_score = UnknownScore.of_config(config, features)
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        labels: torch.Tensor | None = None,
        point_index: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> PointCloudClassifierOutput:
        """Return `logits (batch, labels)`, and `unknown (batch,)` if `config.unknown` has rows."""
        output = self.any2point(points, point_index=point_index, **kwargs, return_dict=True)
        logits, loss = self._classify(output.pooler_output, labels)  # (B, labels)
        unknown = self.score_unknown(output.pooler_output, logits)
        return PointCloudClassifierOutput(loss, logits, output.hidden_states, output.attentions, unknown)

    @compilable
    def _classify(self, pooled: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits `(batch, labels)` of pooled features, and their loss."""
        logits = self.classifier(pooled)
        return logits, classification_loss(logits, labels, self.config)


class PointPropagation(nn.Module):
    """Propagate the features of tokens and of the cloud to every point (after PointNet++, Sec. 3.4).

    The features of a point are a sum over the three nearest tokens, the cloud, the point's own channels with its
    position relative to those tokens (without it, neighbors across an edge would look alike), and the tokenizer's
    levels at the nearest places.
    """

    def __init__(self, config: Any2PointConfig, level_widths: Sequence[int] = ()):
        super().__init__()
        hidden_size = config.encoder_config.hidden_size
        width = config.propagation_width
        self.from_tokens = nn.Linear(hidden_size, width, bias=False)
        self.from_cloud = nn.Linear(len(config.pooling) * hidden_size, width, bias=False)
        self.from_point = nn.Sequential(
            nn.Linear(config.in_channels + 3, width), nn.ReLU(), nn.Linear(width, width, bias=False)
        )
        self.from_levels = nn.ModuleList(nn.Linear(channels, width, bias=False) for channels in level_widths)
        self.norm = HeadNorm(width)

    def forward(
        self, points: torch.Tensor, features: Any2PointOutput, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute features of every point `(batch, points, in_channels)`: `(batch, points, width)`.

        `features` are the output of `Any2PointModel`, with `output_levels=True` if levels are propagated; a condition
        `(batch, width)` is added to every point of a cloud.
        """
        dtype = precision_of(self)
        # Coordinates stay in full precision in a half precision model.
        points = points.to(torch.promote_types(dtype, torch.float32))
        # Linear layers commute with the interpolation, and there are far fewer tokens than points.
        tokens = self.from_tokens(features.last_hidden_state[:, 1:].to(dtype))  # (B, G, width)
        centers = features.centers.to(points.dtype)
        # Features and positions of the tokens in one search.
        near = three_nearest_interpolate(points, centers, torch.cat([tokens.to(points.dtype), centers], dim=-1))
        # From the mean of its three nearest tokens, weighted like their features.
        offsets = points[..., :3] - near[..., -3:]
        own = self.from_point(torch.cat([points, offsets], dim=-1).to(dtype))
        # Once for a cloud, not for each of its points.
        whole = self.from_cloud(features.pooler_output.to(dtype))  # (B, width)
        if condition is not None:
            whole = whole + condition
        mixed = near[..., :-3].to(dtype) + own + whole.unsqueeze(1)  # (B, N, width)
        # The finest levels come first.
        for linear, (level, places) in zip(self.from_levels, features.levels or (), strict=True):
            level = linear(level.to(dtype))  # (B, places, width)
            if places is not None:
                level = three_nearest_interpolate(points, places.to(points.dtype), level)
            mixed = mixed + level
        return torch.relu(self.norm(mixed.flatten(0, 1))).view_as(mixed)


class Any2PointSegmenter(_Any2PointWithHead):
    """Base class for segmentation: the model, propagation to every point, and a head for each point."""

    presets = {"small_data": LIGHT_SEGMENTATION}  # noqa: RUF012

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config, encoder)
        refuse_problem_type(config)
        levels = self.any2point.point_tokenizer.level_widths if config.propagate_levels else ()
        self.propagation = PointPropagation(config, levels)
        self.segmenter = ClassificationHead(
            config.propagation_width,
            config.num_labels,
            config.head_widths,
            bias=config.head_bias,
            dropout=config.head_dropout,
        )

    def point_logits(
        self, points: torch.Tensor, condition: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, Any2PointOutput]:
        """Return logits `(batch, points, labels)` of every point, and the output of the model.

        `condition` `(batch, propagation_width)` is added to every point of a cloud; the others are as in `forward`.
        """
        features = self.any2point(points, output_levels=self.config.propagate_levels, **kwargs, return_dict=True)
        point_features = self.propagation(points, features, condition)
        return self.segmenter(point_features.flatten(0, 1)).unflatten(0, points.shape[:2]), features


class Any2PointForSemanticSegmentation(Any2PointSegmenter):
    """Predicts the object class of every point of a scene, or of a block of it.

    Example:
        ```python
        import torch
        from transformers import BertConfig
        from hf_any3d import Any2PointConfig, Any2PointForSemanticSegmentation

        encoder = BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
        config = Any2PointConfig(encoder_config=encoder, num_tokens=32, num_labels=3)
        model = Any2PointForSemanticSegmentation(config)
        points = torch.rand(2, 256, 3)  # xyz
        model(points=points).logits.shape  # (2, 256, 3)
        ```
    """

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config, encoder)
        self.post_init()

    @strict_forward
    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> TokenClassifierOutput:
        """Segment scenes; returns `logits (batch, points, labels)`."""
        logits, output = self.point_logits(points, **kwargs)
        return TokenClassifierOutput(point_loss(logits, labels), logits, output.hidden_states, output.attentions)


class Any2PointForPartSegmentation(Any2PointSegmenter):
    """Predicts the part of every point of an object, given the object's category.

    Example:
        ```python
        import torch
        from transformers import BertConfig
        from hf_any3d import Any2PointConfig, Any2PointForPartSegmentation

        encoder = BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
        config = Any2PointConfig(encoder_config=encoder, num_tokens=32, num_labels=3, category_parts=[[0, 1], [2]])
        model = Any2PointForPartSegmentation(config)
        points = torch.rand(2, 256, 3)  # xyz
        model(points=points, category=torch.tensor([0, 1])).logits.shape  # (2, 256, 3)
        ```
    """

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config, encoder)
        check_categories(config)
        self.category_embedding = nn.Embedding(config.num_categories, config.propagation_width)
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: torch.Tensor,
        category: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Return `logits (batch, points, parts)`, over the parts of all categories.

        With `restrict_to_category_parts` those of other categories have the lowest value of their dtype.
        """
        category = checked_category(category, points, self.config.num_categories)
        condition = self.category_embedding(category)  # (B, propagation_width), added to every point
        logits, output = self.point_logits(points, condition, **kwargs)
        if self.config.restrict_to_category_parts:
            logits = restrict_to_parts(logits, self.config.category_parts, category)
        return TokenClassifierOutput(point_loss(logits, labels), logits, output.hidden_states, output.attentions)
