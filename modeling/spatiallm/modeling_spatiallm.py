"""SpatialLM 1.1 (arXiv 2506.07491): a language model that writes the layout of a scanned room.

points (voxels, 6) and their cells ─► Point Transformer V3 ─► last stage (tokens, width) ─┐
                                                  │ cells of the last stage               ├─► linear layer
                                                  └─► Fourier features (tokens, 63) ──────┘        │  projector
                                                                                                   ▼
input_ids with placeholders ─► word embeddings ─► placeholders filled with the tokens of clouds (tokens, hidden)
                                                                                                   │
                                                                   language model ◄────────────────┘ ─► next token
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel, initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from hf_any3d.modeling.layers.cloud_prompts import CloudGenerationMixin, EncodedClouds, Features, fill_placeholders
from hf_any3d.modeling.layers.forward_contract import (
    CACHE,
    check_keywords,
    forward_keywords,
    keep_unpacked,
    requested_outputs,
    strict_forward,
)
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.library import LibraryModelMixin
from hf_any3d.modeling.pretrained_parts import PretrainedPartsMixin
from hf_any3d.modeling.pretrained_parts.loading import keep_in_full
from hf_any3d.modeling.spatiallm.configuration_spatiallm import SpatialLMConfig

Clouds = torch.Tensor | list[torch.Tensor]
_FREQUENCIES, _HIGHEST = 10, 30.0
# What quantization leaves in full precision.
_IN_FULL = (r"(?:.*\.)?(?:point_encoder|input_projection|projector)", r"(?:.*\.)?language_model\.(?:.*\.)?lm_head")


@dataclass
class SpatialLMModelOutput(BaseModelOutputWithPast):
    """Output of SpatialLM without scores of tokens: that of its language model.

    Args:
        point_features: `(tokens, text hidden)` of each cloud.
    """

    point_features: tuple[torch.Tensor, ...] | None = None


@dataclass
class SpatialLMOutput(CausalLMOutputWithPast):
    """Output of SpatialLM: that of its language model.

    Args:
        point_features: `(tokens, text hidden)` of each cloud.
    """

    point_features: tuple[torch.Tensor, ...] | None = None


class FourierPositions(nn.Module):
    """Positions of cells as numbers between -1 and 1: themselves, then sines and cosines of rising frequencies.

    Args:
        resolution: Cells along each axis.
    """

    channels = 3 + 6 * _FREQUENCIES

    def __init__(self, resolution: int):
        super().__init__()
        self.resolution = resolution

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Return `(cells, 63)` float32 of `(cells, 3)` integers."""
        place = cells.float() / (self.resolution - 1)
        frequencies = math.pi * torch.linspace(1, _HIGHEST, _FREQUENCIES, device=cells.device)
        angles = place[:, None] * frequencies[:, None]  # (cells, frequencies, axes)
        waves = torch.cat([angles.sin(), angles.cos()], dim=2)  # all axes' sines, then all axes' cosines
        return torch.cat([place, waves.flatten(1)], dim=1)


class SpatialLMPreTrainedModel(LibraryModelMixin, PretrainedPartsMixin, PreTrainedModel):
    """Base class of SpatialLM's models."""

    config_class = SpatialLMConfig
    config: SpatialLMConfig
    # Not "model": transformers renames `model.language_model.model` in any checkpoint, as older models of it had it.
    base_model_prefix = "spatiallm"
    input_modalities = ("point_cloud", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = [CACHE]
    # As in the released program, whatever the precision of the language model is.
    _keep_in_fp32_modules_strict = ["point_encoder", "input_projection"]

    @classmethod
    def _from_full_repository(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        """Load a model; `quantization_config` applies to the layers of the language model but for the last one."""
        return super()._from_full_repository(name, *args, **keep_in_full(kwargs, *_IN_FULL))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the language model, in which the model is stored and opened again."""
        return self.base_model.language_model.dtype

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        super()._initialize_missing_keys(is_quantized)
        if is_quantized:
            keep_unpacked(self)

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's input embeddings."""
        return self.base_model.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's input embeddings."""
        self.base_model.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's output embeddings."""
        return self.base_model.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's output embeddings."""
        self.base_model.language_model.set_output_embeddings(value)


class SpatialLMModel(SpatialLMPreTrainedModel):
    """Point encoder, projector and language model, without scores of tokens.

    As in BLIP-2, the language model keeps its head, which is applied by `SpatialLMForConditionalGeneration`: some
    language models scale or cap the scores.

    `input_ids` contain `point_token_id` as many times as a cloud has tokens, one for each occupied cell of the point
    encoder's last stage; `SpatialLMProcessor` counts them. Clouds are matched to these placeholders in order, sample
    by sample, and a sample may have none or several.

    Args:
        config: The configuration.
        point_encoder: A model of `config.point_config`; by default a randomly initialized one.
        language_model: The same for `config.text_config`.
    """

    def __init__(
        self,
        config: SpatialLMConfig,
        point_encoder: PreTrainedModel | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        width, hidden = config.point_config.hidden_size, config.text_config.hidden_size
        self.point_encoder = AutoModel.from_config(config.point_config) if point_encoder is None else point_encoder
        self.positions = FourierPositions(config.fourier_resolution)
        self.input_projection = nn.Linear(width + FourierPositions.channels, width)
        layers = [nn.Linear(width, width), nn.GELU()] if config.projector == "mlp" else []
        self.projector = nn.Sequential(*layers, nn.Linear(width, hidden))
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.language_model = language_model
        self.post_init()

    def encode(
        self, points: Clouds, grid_coord: Clouds | None = None, point_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Encode clouds to tokens with their positions, `(tokens, point width)` of each cloud.

        Args:
            points: `(clouds, voxels, 6)`, xyz in meters from the corner of the cloud's box and colors in [-1, 1], or a
                list of `(voxels, 6)`.
            grid_coord: Cells of the points, `(clouds, voxels, 3)` or a list, as `SpatialLMProcessor` makes them.
            point_mask: `(clouds, voxels)` bool, False where a cloud is filled up.
        """
        if not isinstance(points, torch.Tensor) and not points:
            raise ValueError("points is an empty list; expected at least one cloud, or None for text only")
        if grid_coord is None:
            raise ValueError("grid_coord is None; expected the cells of the points, as SpatialLMProcessor makes them")
        largest = max([0, *(int(cells.max()) for cells in grid_coord if len(cells))])
        if largest >= self.config.num_bins:
            raise ValueError(
                f"grid_coord has a cell {largest}; expected 0 to num_bins - 1 = {self.config.num_bins - 1}"
            )
        encoded = self.point_encoder(points, point_mask=point_mask, grid_coord=grid_coord, return_dict=True)
        positions = self.positions(encoded.grid_coord)
        joined = torch.cat([encoded.last_hidden_state, positions.to(encoded.last_hidden_state.dtype)], dim=1)
        context = self.input_projection(in_precision_of(self.input_projection, joined))
        return context.tensor_split(encoded.offsets[:-1].cpu())

    def get_point_features(
        self, points: Clouds, grid_coord: Clouds | None = None, point_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Compute the language model's tokens for clouds, `(tokens, text hidden)` of each cloud.

        They depend on the cloud only, so they can be reused: `forward` and `generate` take them as `point_features` in
        place of `points`. Arguments are those of `encode`.
        """
        context = self.encode(points, grid_coord, point_mask)
        counts = [len(cloud) for cloud in context]
        return self.projector(in_precision_of(self.projector, torch.cat(context))).split(counts)

    def embed(
        self,
        input_ids: torch.LongTensor | None = None,
        points: Clouds | None = None,
        grid_coord: Clouds | None = None,
        point_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        point_features: Features | None = None,
        mm_encoder_outputs: dict[str, EncodedClouds] | None = None,
    ) -> tuple[torch.Tensor, Features | None]:
        """Embed tokens, with those of clouds at their placeholders; arguments are those of `forward`.

        Returns:
            `(batch, tokens, text hidden)`, and the features of the clouds among them.
        """
        given = [points, point_features, (mm_encoder_outputs or {}).get("point"), inputs_embeds]
        names = ("points", "point_features", "mm_encoder_outputs['point']", "inputs_embeds")
        if len(found := [name for name, value in zip(names, given, strict=True) if value is not None]) > 1:
            raise ValueError(f"{found[0]} with {found[1]}; expected one of them")
        if inputs_embeds is not None:
            return inputs_embeds, None
        if input_ids is None:
            raise ValueError("input_ids and inputs_embeds are both None; expected one of them")
        if points is not None:
            point_features = self.get_point_features(points, grid_coord, point_mask)
        elif given[2] is not None:
            point_features = given[2].pooler_output
        embed, place = self.get_input_embeddings(), self.config.point_token_id
        return fill_placeholders(input_ids, point_features, embed, place), point_features

    @strict_forward
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        points: Clouds | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        grid_coord: Clouds | None = None,
        point_mask: torch.Tensor | None = None,
        point_features: Features | None = None,
        mm_encoder_outputs: dict[str, EncodedClouds] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SpatialLMModelOutput:
        """Compute features of tokens; arguments are those of `SpatialLMForConditionalGeneration.forward`."""
        text = self.language_model.base_model
        if kwargs:
            kwargs = check_keywords(type(self).__name__, kwargs, forward_keywords(type(text)))
        return_hidden, return_attentions = requested_outputs(
            self.config, output_hidden_states, output_attentions, text.config._attn_implementation
        )
        embedded, features = self.embed(
            input_ids, points, grid_coord, point_mask, inputs_embeds, point_features, mm_encoder_outputs
        )
        output = text(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            output_hidden_states=return_hidden,
            output_attentions=return_attentions,
            return_dict=True,
            **kwargs,
        )
        return SpatialLMModelOutput(
            last_hidden_state=output.last_hidden_state,
            **{CACHE: getattr(output, CACHE)},
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            point_features=None if features is None else tuple(features),
        )


class SpatialLMForConditionalGeneration(CloudGenerationMixin, SpatialLMPreTrainedModel, GenerationMixin):
    """`SpatialLMModel` with the scores of the next tokens: writes the layout of a scanned room.

    Args:
        config: The configuration.
        point_encoder: A model of `config.point_config`; by default a randomly initialized one.
        language_model: The same for `config.text_config`.
    """

    cloud_inputs = ("points", "grid_coord", "point_mask")

    def __init__(
        self,
        config: SpatialLMConfig,
        point_encoder: PreTrainedModel | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.spatiallm = SpatialLMModel(config, point_encoder, language_model)
        self.post_init()

    @property
    def point_encoder(self) -> PreTrainedModel:
        """The model that reads clouds."""
        return self.spatiallm.point_encoder

    @property
    def language_model(self) -> PreTrainedModel:
        """The language model, with its head."""
        return self.spatiallm.language_model

    def get_point_features(
        self, points: Clouds, grid_coord: Clouds | None = None, point_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Compute the language model's tokens for clouds, see `SpatialLMModel.get_point_features`."""
        return self.spatiallm.get_point_features(points, grid_coord, point_mask)

    @strict_forward
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        points: Clouds | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        grid_coord: Clouds | None = None,
        point_mask: torch.Tensor | None = None,
        point_features: Features | None = None,
        mm_encoder_outputs: dict[str, EncodedClouds] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SpatialLMOutput:
        """Predict the next tokens."""
        if kwargs:
            kwargs = check_keywords(type(self).__name__, kwargs, forward_keywords(type(self.language_model)))
        return_hidden, return_attentions = requested_outputs(
            self.config, output_hidden_states, output_attentions, self.language_model.config._attn_implementation
        )
        embedded, features = self.spatiallm.embed(
            input_ids, points, grid_coord, point_mask, inputs_embeds, point_features, mm_encoder_outputs
        )
        if kwargs.get("shift_labels") is not None:
            labels = kwargs["shift_labels"]  # the loss reads them in place of labels, and without labels there is none
        output = self.language_model(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            output_hidden_states=return_hidden,
            output_attentions=return_attentions,
            return_dict=True,
            **kwargs,
        )
        return SpatialLMOutput(
            loss=output.loss,
            logits=output.logits,
            **{CACHE: getattr(output, CACHE)},
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            point_features=None if features is None else tuple(features),
        )
