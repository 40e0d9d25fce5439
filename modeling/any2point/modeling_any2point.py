"""Any2Point: a frozen pretrained transformer of any modality reads point clouds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import ModelOutput

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig
from hf_any3d.modeling.any2point.point_tokenizer import PatchTokenizer, PointTokenizer
from hf_any3d.modeling.any2point.virtual_projection import Geometry, Projection, normalize_centers, project
from hf_any3d.modeling.card_info import (
    BUILD_FROM_ADAPTER,
    STORED_HERE,
    CardDescription,
    CardInfo,
    CardMixin,
    CardSubject,
)
from hf_any3d.modeling.encoders import (
    FrozenEncoderMixin,
    LayerPass,
    TokenPlaces,
    bidirectional_inputs,
    convolve_on_line,
    find_family,
    hidden_of,
    unfreeze,
)
from hf_any3d.modeling.layers.forward_contract import (
    AttentionRecorder,
    PointTokensMixin,
    attention_kinds,
    honours_contract,
    requested_outputs,
)
from hf_any3d.modeling.layers.heads import ClassificationHead, ClassToken, pool
from hf_any3d.modeling.layers.tasks import PointCloudClassificationMixin
from hf_any3d.modeling.point_ops import in_full_precision

TOKENIZERS = {"point_pn": PointTokenizer, "patch": PatchTokenizer}


@dataclass
class Any2PointOutput(ModelOutput):
    """Token features of point clouds.

    Args:
        last_hidden_state: `(batch, 1 + tokens, hidden)`, the class token first, after the final norm.
        pooler_output: `(batch, len(config.pooling) * hidden)`, what a head reads.
        centers: `(batch, tokens, 3)`, places of the tokens in the units of the input.
        center_index: `(batch, tokens)`, the input points that the centres are.
        levels: What the tokenizer made of points before they became tokens, where it was asked for: pairs of features
            `(batch, places, width)` and places `(batch, places, 3)`, or None for the input points.
        hidden_states: On request, what enters the first of the encoder's layers, and what leaves each layer with its
            adapters, before the final norm and in the encoder's precision: layers + 1 times
            `(batch, 1 + tokens, hidden)`. Positions that are added before every layer are not in them.
        attentions: On request, of each layer the weights `(batch, heads, 1 + tokens, keys)`, as the encoder's family
            gives them; prompts that an adapter adds are among the tokens. With `attention_axis="batch"` attention runs
            over clouds: `(1 + tokens, heads, batch, batch)`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    center_index: torch.Tensor | None = None
    levels: tuple[tuple[torch.Tensor, torch.Tensor | None], ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class Any2PointPreTrainedModel(CardMixin, FrozenEncoderMixin, PointTokensMixin, PreTrainedModel):
    """What all Any2Point models share: config, initialisation, and training the encoder too."""

    config_class = Any2PointConfig
    config: Any2PointConfig
    base_model_prefix = "any2point"
    main_input_name = "points"
    input_modalities = ("point_cloud",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Trainer would otherwise neither divide the loss by the accumulation steps nor average it over processes.
    accepts_loss_kwargs = False

    def unfreeze_encoder(self) -> list[str]:
        """Train the encoder too (full fine-tuning), and store it with the model from now on.

        What trains are the encoder's parameters that point tokens meet: layers, norms and positions, not the
        embeddings of words or patches. Dropout inside the encoder follows `train()`. A model that is opened again has
        a frozen encoder, as it was stored; call this once more to go on training it.

        Returns:
            Names of those parameters.

        Raises:
            ValueError: If there are adapters in the encoder; a quantized encoder.
        """
        core, config = getattr(self, self.base_model_prefix, self), self.config
        # From a generator of its own, so that the random numbers of a training run stay what they are.
        points = torch.rand(2, config.min_points, config.in_channels, generator=torch.Generator().manual_seed(0))
        device = next(core.point_tokenizer.parameters()).device
        return unfreeze(self, lambda: core(points.to(device)).last_hidden_state)

    @classmethod
    def describe_for_card(cls, subject: CardSubject) -> CardDescription:
        """Describe the encoder, where it is stored, and the adapter."""
        config, encoder = subject.config, subject.encoder
        started = config.encoder_trained_from
        if started:
            what = f"An encoder that started as {subject.show_name(started)} and was changed in training"
        else:
            kind = f"{config.encoder_config.model_type if config.encoder_config else 'transformer'} encoder"
            what = f"A frozen {subject.show_name(encoder) if encoder else kind}"
        what += " reads the points" if started else " reads the points through a trained tokenizer"
        if subject.method:
            what += f", adapted by the PEFT method {subject.show_name(subject.method)}"
        elif not started:
            what += ", without adapters"
        return CardDescription(
            what=f"{what}. Method: [Any2Point](https://arxiv.org/abs/2404.07989).",
            stored=STORED_HERE if started else f"The {subject.locate_encoder(config.encoder_name_or_path)}",
            tags=("any2point",),
            base_model=started or encoder,
            relation="finetune" if started else "adapter",
            **({} if config.encoder_name_or_path else {"base_program": BUILD_FROM_ADAPTER}),
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ClassToken):
            init.normal_(module.token, std=self.config.initializer_range)
            init.normal_(module.position, std=self.config.initializer_range)


class Any2PointModel(Any2PointPreTrainedModel):
    """Points in, token features out: tokenizer, virtual projection, frozen layers, final norm.

    Guided adapters are added by PEFT (`get_peft_model(model, GuidedAdapterConfig())`); without them this is the plain
    frozen encoder on point tokens.

    Args:
        config: The configuration; must hold an `encoder_config`.
        encoder: A loaded encoder to use; a randomly initialised one is built from the config when left out.
    """

    card_info = CardInfo("features", opens="Any2PointModel")

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        if config.encoder_config is None:
            raise ValueError("encoder_config is missing; build the model with from_encoder_pretrained(name_or_path)")
        self.family = find_family(config.encoder_config)
        if config.attention_axis == "batch" and self.family.layer_inputs is not bidirectional_inputs:
            raise ValueError(
                f"attention_axis='batch': '{config.encoder_config.model_type}' encoders attend by tokens' places; "
                "expected 'tokens'"
            )
        self.adopt_encoder(encoder)
        self.gradient_checkpointing = False
        hidden_size = config.encoder_config.hidden_size
        self.point_tokenizer = TOKENIZERS[config.tokenizer](config, hidden_size)
        self.class_token = ClassToken(hidden_size)
        # All tokens pass here on their way into the layers: where `get_input_embeddings` points.
        self.input_tokens = nn.Identity()
        final_norm = self.family.norm_of(self.encoder, self.family.final_norm)
        # Ours to train and to store, so a copy; encoders whose layers end with a norm get a fresh one. Its precision
        # is that of the other trained parts, not the encoder's: `from_pretrained(dtype=…)` sets the default.
        self.output_norm = nn.LayerNorm(hidden_size) if final_norm is None else copy.deepcopy(final_norm)
        self.output_norm.to(torch.get_default_dtype()).requires_grad_(True)
        if config.final_norm_eps is not None:
            name = "variance_epsilon" if hasattr(self.output_norm, "variance_epsilon") else "eps"
            setattr(self.output_norm, name, config.final_norm_eps)
        self.post_init()
        if encoder is not None:
            self._start_from_encoder()

    @torch.no_grad()
    def _start_from_encoder(self) -> None:
        """Take over what the encoder knows: its class token and its final norm."""
        if self.family.class_token is not None:
            self.class_token.token.copy_(self.family.class_token(self.encoder))
        final_norm = self.family.norm_of(self.encoder, self.family.final_norm)
        if final_norm is not None:
            self.output_norm.load_state_dict(final_norm.state_dict())
        if self.config.token_scale is not None:
            weight = self.family.positions(self.encoder).weight
            if weight is None:
                raise ValueError(
                    f"token_scale={self.config.token_scale}: '{self.encoder.config.model_type}' encoders learned no "
                    "positions that are added to tokens, so there is no spread to take over; expected None"
                )
            spread = weight.float().std()
            self.point_tokenizer.token_norm.weight.fill_(self.config.token_scale * spread)

    @honours_contract
    def forward(
        self,
        points: torch.Tensor,
        output_levels: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Any2PointOutput:
        """Read point clouds.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            output_levels: Give what the tokenizer made of points before they became tokens, too.
            output_hidden_states: Whether to return what enters and leaves the layers; None for the config's choice.
            output_attentions: The same for attention weights, which eager attention alone makes.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If there is no cloud, a cloud has another shape or too few points, or a number in it is NaN,
                infinite or too large; attention weights of another attention, or of an encoder whose layers do not
                give them.
        """
        config = self.config
        wants_hidden, wants_attentions = requested_outputs(
            config, output_hidden_states, output_attentions, self.encoder.config._attn_implementation
        )
        self.warn_if_encoder_is_random()
        self._warn_once_about_batches()
        points = in_full_precision(points, next(self.point_tokenizer.parameters()).dtype)
        # Tokenizers of others need not have levels.
        tokens = self.point_tokenizer(points, **({"with_levels": True} if output_levels else {}))
        centers = normalize_centers(tokens.centers) if config.normalize_centers else tokens.centers
        projection = project(centers, self.family.positions_of(self.encoder), config)
        geometry = Geometry(
            centers.detach().float(),
            projection.view_positions,
            projection.extent,
            projection.cell_size,
            batch_second=config.attention_axis == "batch",
        )
        embedding = self._positions(tokens.tokens, projection).to(tokens.tokens.dtype)
        hidden_states, positions = self.class_token(tokens.tokens, embedding)
        hidden_states = self.input_tokens(hidden_states)
        listening = None
        if wants_attentions:
            layers, kinds = self.family.layers_of(self.encoder), attention_kinds(self.encoder)
            listening = AttentionRecorder(layers, kinds, self.encoder.config.model_type)
        with listening or nullcontext():
            states = [] if wants_hidden else None
            hidden_states = self._run_layers(hidden_states, positions, geometry, projection.places, states)
            attentions = listening.weights if wants_attentions else None
        hidden_states = self.output_norm(hidden_states.to(self.output_norm.weight.dtype))
        levels = tuple((level.features, level.centers) for level in tokens.levels) if output_levels else None
        return Any2PointOutput(
            hidden_states,
            pool(hidden_states, config.pooling),
            tokens.centers,
            tokens.index,
            levels,
            tuple(states) if wants_hidden else None,
            attentions,
        )

    def _positions(self, tokens: torch.Tensor, projection: Projection) -> torch.Tensor:
        """What is added to the tokens, `(batch, tokens, hidden)`; zeros where positions act in the layers alone."""
        convolution = self.family.line_convolution
        if convolution is not None:
            own = tokens.to(self.encoder.dtype)
            return convolve_on_line(own, projection.places, partial(convolution, self.encoder)).to(tokens.dtype)
        return torch.zeros_like(tokens) if projection.embedding is None else projection.embedding

    def _run_layers(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor,
        geometry: Geometry,
        places: TokenPlaces,
        states: list[torch.Tensor] | None,
    ) -> torch.Tensor:
        """Run the layers on `(batch, 1 + tokens, hidden)`; `states` gets what enters the first and leaves each."""
        config, encoder = self.config, self.encoder
        where = config.position_injection
        if where != "every_layer":
            hidden_states = hidden_states + positions
        input_norm = self.family.norm_of(encoder, self.family.input_norm) if config.use_input_norm else None
        hidden_states = hidden_states.to(encoder.dtype)
        if input_norm is not None:
            hidden_states = input_norm(hidden_states)
        positions = positions.to(encoder.dtype)
        if geometry.batch_second:
            hidden_states, positions = hidden_states.transpose(0, 1), positions.transpose(0, 1)
        layers = self.family.layers_of(encoder)
        # Layers that read prompts beside the tokens want masks and places for them, too.
        lengths = [getattr(layer, "extra_tokens", 0) for layer in layers]
        inputs = {extra: self._layer_inputs(hidden_states, places, extra) for extra in set(lengths)}
        made = [hidden_states]
        for layer, extra in zip(layers, lengths, strict=True):
            arguments = {length: next(own) for length, own in inputs.items()}[extra]
            if where != "input":
                hidden_states = hidden_states + positions
            # A guided adapter wraps a layer and wants to know where tokens are; a bare layer does not take the word.
            guidance = {"geometry": geometry} if getattr(layer, "takes_geometry", False) else {}
            call = partial(layer, **arguments, **guidance)
            hidden_states = self._run_layer(layer, call, hidden_states)
            if states is not None:
                made.append(hidden_states)
        if states is not None:
            states += [state.transpose(0, 1) for state in made] if geometry.batch_second else made
        return hidden_states.transpose(0, 1) if geometry.batch_second else hidden_states

    def _layer_inputs(self, hidden_states: torch.Tensor, places: TokenPlaces, extra: int) -> Iterator[dict[str, Any]]:
        """What the layers are called with where `extra` tokens without a place follow the sequence."""
        encoder = self.encoder
        if extra:
            hidden_states = nn.functional.pad(hidden_states, (0, 0, 0, extra))
        mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=hidden_states, attention_mask=None)
        layers = self.family.layers_of(encoder)
        views = self.config.rotary_views
        return self.family.layer_inputs(
            LayerPass(encoder, layers, hidden_states, mask, places.followed_by(extra), views)
        )

    def _run_layer(self, layer: nn.Module, call: Callable, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run a layer, and keep no more than what enters it where it is checkpointed."""
        # Frozen layers stay in eval mode, so that their own switch, which `every_n_layers` sets, never fires.
        if self.training and self.gradient_checkpointing and getattr(layer, "gradient_checkpointing", True):
            return hidden_of(self._gradient_checkpointing_func(call, hidden_states))
        return hidden_of(call(hidden_states))

    def _warn_once_about_batches(self) -> None:
        flags = self.config.batch_dependent_flags
        if flags and not self.training and not getattr(self, "_warned_about_batches", False):
            warnings.warn(
                f"this model's predictions depend on the other clouds of a batch ({', '.join(flags)})",
                UserWarning,
                stacklevel=3,
            )
            self._warned_about_batches = True


class Any2PointWithHead(Any2PointPreTrainedModel):
    """`Any2PointModel` as `any2point`, for a subclass to put a head on.

    Args:
        config: The configuration, with `num_labels` or `id2label`.
        encoder: A loaded encoder to use.
    """

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.any2point = Any2PointModel(config, encoder)


class Any2PointForPointCloudClassification(PointCloudClassificationMixin, Any2PointWithHead):
    """`Any2PointModel` with a classification head."""

    card_info = CardInfo("classification")

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config, encoder)
        features = len(config.pooling) * config.encoder_config.hidden_size
        self.classifier = ClassificationHead(
            features, config.num_labels, config.head_widths, bias=config.head_bias, dropout=config.head_dropout
        )
        self.post_init()
