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

from hf_any3d.modeling.layers.cloud_prompts import (
    CloudGenerationMixin,
    CloudLanguageModelMixin,
    EncodedClouds,
    Features,
    fields_of,
)
from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.pretrained_parts.loading import keep_in_full
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d.modeling.spatiallm.configuration_spatiallm import SpatialLMConfig

Clouds = torch.Tensor | list[torch.Tensor]
# As released: ten frequencies from π to 30 π.
_FREQUENCIES, _HIGHEST = 10, 30.0
# What quantization leaves in full precision.
_IN_FULL = (r"(?:.*\.)?(?:point_encoder|input_projection|projector)", r"(?:.*\.)?language_model\.(?:.*\.)?lm_head")


@dataclass
class SpatialLMModelOutput(BaseModelOutputWithPast):
    """Output of SpatialLM without scores of tokens: that of its language model."""

    # `(tokens, text hidden)` of each cloud.
    point_features: tuple[torch.Tensor, ...] | None = None


@dataclass
class SpatialLMOutput(CausalLMOutputWithPast):
    """Output of SpatialLM: that of its language model, with the field that `SpatialLMModelOutput` adds."""

    point_features: tuple[torch.Tensor, ...] | None = None


class FourierPositions(nn.Module):
    """Positions of cells, `resolution` along each axis: numbers up to 1, then sines and cosines of them."""

    channels = 3 + 6 * _FREQUENCIES

    def __init__(self, resolution: int):
        super().__init__()
        self.resolution = resolution

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Return `(cells, 63)` float32 of `(cells, 3)` integers."""
        # From 0 to 1 over the whole range, not over the cloud: a wall at 3 m has the same position in each scan.
        place = cells.float() / (self.resolution - 1)
        frequencies = math.pi * torch.linspace(1, _HIGHEST, _FREQUENCIES, device=cells.device)
        angles = place[:, None] * frequencies[:, None]  # (cells, frequencies, axes)
        waves = torch.cat([angles.sin(), angles.cos()], dim=2)  # all axes' sines, then all axes' cosines
        return torch.cat([place, waves.flatten(1)], dim=1)


class SpatialLMPreTrainedModel(CloudLanguageModelMixin, LibraryModelMixin, PreTrainedModel):
    """Base class of SpatialLM's models."""

    config_class = SpatialLMConfig
    config: SpatialLMConfig
    # Not "model": transformers renames `model.language_model.model` in any checkpoint, as older models of it had it.
    base_model_prefix = "spatiallm"
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


class SpatialLMModel(SpatialLMPreTrainedModel):
    """Point encoder, projector and language model, without scores of tokens.

    As in BLIP-2, the language model keeps its head, which is applied by `SpatialLMForConditionalGeneration`: some
    language models scale or cap the scores.

    `input_ids` contain `point_token_id` as many times as a cloud has tokens, one for each occupied cell of the point
    encoder's last stage; `SpatialLMProcessor` counts them. Clouds are matched to these placeholders in order, sample
    by sample, and a sample may have none or several. Models that are not given are randomly initialized.
    """

    def __init__(
        self,
        config: SpatialLMConfig,
        point_encoder: PreTrainedModel | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        width = config.point_config.hidden_size
        hidden = config.text_config.hidden_size
        self.point_encoder = AutoModel.from_config(config.point_config) if point_encoder is None else point_encoder
        # Cells of the last stage, of which the language model gets one token each
        self.positions = FourierPositions(config.fourier_resolution)
        # Features say what is there, Fourier channels where: the language model has to write coordinates.
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

        Points `(clouds, voxels, 6)`, or a list of `(voxels, 6)`, have xyz in meters from the corner of the cloud's box
        and colors in [-1, 1]; their cells are as `SpatialLMProcessor` makes them. The mask `(clouds, voxels)` is False
        where a cloud is filled up.
        """
        # Cells beyond the range have numbers that the model has no words for; the released program clips them
        # silently.
        largest = max([0, *(int(cells.max()) for cells in grid_coord if len(cells))])
        if largest >= self.config.num_bins:
            raise ValueError(f"grid_coord has a cell {largest}; expected less than num_bins, {self.config.num_bins}")
        encoded = self.point_encoder(points, point_mask=point_mask, grid_coord=grid_coord, return_dict=True)
        # Of the cells of the last stage, one for each token.
        positions = self.positions(encoded.grid_coord)
        joined = torch.cat([encoded.last_hidden_state, positions.to(encoded.last_hidden_state.dtype)], dim=1)
        context = self.input_projection(in_precision_of(self.input_projection, joined))
        # Tokens of all clouds are flat, those of one after the other.
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
        **kwargs: Any,
    ) -> SpatialLMModelOutput:
        """Compute features of tokens."""
        text = self.language_model.base_model
        keywords = self.text_keywords(text, kwargs)
        clouds = {"points": points, "grid_coord": grid_coord, "point_mask": point_mask}
        # The clouds' tokens are among the embeddings, so the language model needs no change.
        embedded = self.embed(input_ids, inputs_embeds, point_features, mm_encoder_outputs, **clouds)
        output = text(
            inputs_embeds=embedded.inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **keywords,
        )
        features = None if embedded.point_features is None else tuple(embedded.point_features)
        return SpatialLMModelOutput(**fields_of(output, BaseModelOutputWithPast), point_features=features)


class SpatialLMForConditionalGeneration(CloudGenerationMixin, SpatialLMPreTrainedModel, GenerationMixin):
    """`SpatialLMModel` with the scores of the next tokens: writes the layout of a scanned room.

    Example:
        ```python
        import torch
        from hf_any3d import SpatialLMConfig, SpatialLMForConditionalGeneration

        text = {"model_type": "qwen2", "vocab_size": 28, "hidden_size": 32, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
        tokens = {"point_start_token_id": 25, "point_end_token_id": 26, "point_token_id": 27}
        model = SpatialLMForConditionalGeneration(SpatialLMConfig(text_config=text, **tokens))
        prompt = torch.tensor([[25, 27, 26, 2]])  # as SpatialLMProcessor makes it, with points and cells
        points, cells = torch.zeros(1, 1, 6), torch.zeros(1, 1, 3, dtype=torch.long)
        model(input_ids=prompt, points=points, grid_coord=cells).logits.shape  # (1, 4, 28)
        ```
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
        **kwargs: Any,
    ) -> SpatialLMOutput:
        """Predict the next tokens."""
        # Before the clouds are encoded, as a wrong keyword should cost nothing.
        keywords = self.text_keywords(self.language_model, kwargs)
        clouds = {"points": points, "grid_coord": grid_coord, "point_mask": point_mask}
        embedded = self.spatiallm.embed(input_ids, inputs_embeds, point_features, mm_encoder_outputs, **clouds)
        if keywords.get("shift_labels") is not None:
            labels = keywords["shift_labels"]  # the loss reads them instead, and without labels there is none
        output = self.language_model(
            inputs_embeds=embedded.inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **keywords,
        )
        features = None if embedded.point_features is None else tuple(embedded.point_features)
        return SpatialLMOutput(**fields_of(output, CausalLMOutputWithPast), point_features=features)
