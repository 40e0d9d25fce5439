"""Point transformers whose feature of a cloud lies in the space of a text and image model, such as CLIP.

OpenShape and Uni3D have this form, and PatchAlign3D, which aligns each patch. Each has a configuration, and a model
that turns clouds into tokens; the rest is here.

points (batch, N, channels)
    │  sample centers, group points around them, encode the groups
    ▼
tokens (batch, 1 + G, hidden), class token first
    │  point transformer
    ▼
features (batch, 1 + G, hidden) ─┬─► projection of the class token ─► feature in the space of texts ─► class scores
                                 └─► propagation to the points ─► scores of each point
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from hf_any3d.modeling.config_checks import check_layers
from hf_any3d.modeling.layers.forward_contract import PointTokensMixin, strict_forward
from hf_any3d.modeling.layers.heads import ClassificationHead
from hf_any3d.modeling.layers.losses import classification_loss, point_loss
from hf_any3d.modeling.layers.tasks import refuse_problem_type
from hf_any3d.modeling.point_encoders.aligned_encoders.configuration_aligned_encoders import (
    TEXT_TOWER,
    AlignedEncoderConfig,
)
from hf_any3d.modeling.point_encoders.patches import Patches
from hf_any3d.modeling.point_encoders.point_transformer import PointBlocks, PointHead, TokenPropagation
from hf_any3d.modeling.point_encoders.pretrained_base import (
    PointTransformerMixin,
    PointTransformerOutput,
    PretrainedBaseMixin,
)
from hf_any3d.modeling.point_encoders.text_towers import TextTower, open_text_tower, store_text_tower
from hf_any3d.modeling.point_encoders.zero_shot import CloudsAndTextsMixin, TextFeaturesMixin


@dataclass
class AlignedEncoderOutput(PointTransformerOutput):
    """Features of point clouds; the pooled one lies in the space of texts and images and is not normalized.

    Args:
        patch_index: `(batch, groups, group_size)`, indices of the points of each patch, the nearest to its center
            first; None for encoders that do not return them.
    """

    patch_index: torch.Tensor | None = None


class Tokens(NamedTuple):
    """Input of the first block: `tokens (batch, 1 + groups, hidden)`, the class token first.

    Centers `(batch, groups, 3)` are in the units and axes of the input. `positions`, of the shape of the tokens, are
    added before every block; None if they have been added. `patch_index` is `(batch, groups, group_size)`, if the
    encoder returns it.
    """

    tokens: torch.Tensor
    centers: torch.Tensor
    center_index: torch.Tensor
    positions: torch.Tensor | None = None
    patch_index: torch.Tensor | None = None


class AlignedPreTrainedModel(PretrainedBaseMixin, PointTokensMixin, PreTrainedModel):
    """Base class of the aligned encoders and the models around them: initialization and model card."""

    _no_split_modules = ["PointBlock"]
    # Only the model that compares clouds with texts has it.
    _keys_to_ignore_on_load_unexpected = [r"^alignment\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Use truncated normal weights and zero biases."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.trunc_normal_(module.weight, std=std)
        if isinstance(module, TextAlignment):
            init.constant_(module.logit_scale, math.log(1 / self.config.temperature))
        # Learned vectors have no module class of their own that could be tested for.
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("token", "position", "class_token"):
                init.trunc_normal_(parameter, std=std)


class AlignedEncoder(PointTransformerMixin, AlignedPreTrainedModel):
    """Base class of the encoders. A subclass builds what turns clouds into tokens, and calls `post_init`."""

    def __init__(self, config: AlignedEncoderConfig, final_norm: bool):
        super().__init__(config)
        width = config.hidden_size
        # All tokens pass this module before the first block; `get_input_embeddings` returns it.
        self.input_tokens = nn.Identity()
        self.blocks = PointBlocks(config)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if final_norm else nn.Identity()
        # Without a projection the class token is the feature.
        self.projection = nn.Identity() if config.projection_dim is None else nn.Linear(width, config.projection_dim)

    def cut(self, points: torch.Tensor) -> Patches:
        """Group clouds `(batch, points, in_channels)` into the patches that the config describes."""
        raise NotImplementedError

    def embed(self, patches: Patches) -> Tokens:
        """Turn patches, all or some of each cloud, into the input of the first block."""
        raise NotImplementedError

    def pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Turn normed tokens `(batch, 1 + groups, hidden)` into features of clouds `(batch, feature_size)`."""
        return self.projection(hidden_states[:, 0])

    def get_point_features(self, points: torch.Tensor) -> torch.Tensor:
        """Return features of clouds `(batch, points, in_channels)` as unit vectors `(batch, feature_size)`.

        Their cosine similarity with features of texts or images of the model that this one is aligned with, is their
        product.
        """
        return nn.functional.normalize(self(points, return_dict=True).pooler_output.float(), dim=-1)

    @strict_forward
    def forward(
        self,
        points: torch.Tensor | None = None,
        output_layers: Sequence[int] = (),
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        patches: Patches | None = None,
    ) -> AlignedEncoderOutput:
        """Encode point clouds, or `patches` of `cut`, some of each cloud for masked pretraining."""
        if (points is None) == (patches is None):
            raise ValueError("points and patches are both given or both None; pass one of them")
        tokens, centers, center_index, positions, patch_index = self.embed(
            self.cut(points) if patches is None else patches
        )
        encoded = self.run_blocks(tokens, positions, centers, output_layers, output_hidden_states, output_attentions)
        return AlignedEncoderOutput(
            encoded.last_hidden_state,
            self.pool(encoded.last_hidden_state),
            centers,
            center_index,
            encoded.layer_outputs if output_layers else None,
            encoded.hidden_states,
            encoded.attentions,
            patch_index,
        )


class AlignedClassifier(AlignedPreTrainedModel):
    """Base class of classifiers: a head on the feature in the space of texts."""

    def __init__(self, config: AlignedEncoderConfig):
        super().__init__(config)
        # Under the name of the base model, so that checkpoints of the encoder alone open with this class.
        setattr(self, self.base_model_prefix, self.base_class()(config))
        self.classifier = ClassificationHead(
            config.feature_size, config.num_labels, config.head_widths, dropout=config.head_dropout
        )
        self.post_init()

    @strict_forward
    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Classify point clouds; returns `logits (batch, labels)`."""
        output = self.base_model(points, **kwargs, return_dict=True)
        logits = self.classifier(output.pooler_output)  # (batch, labels)
        loss = classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, output.hidden_states, output.attentions)


class AlignedSegmenter(AlignedPreTrainedModel):
    """Base class of segmentation models: propagation of some blocks' tokens to the points, and a head per point."""

    def __init__(self, config: AlignedEncoderConfig):
        super().__init__(config)
        refuse_problem_type(config)
        layers = config.segmentation_layers
        check_layers("segmentation_layers", layers, config.num_hidden_layers)
        token_width = len(layers) * config.hidden_size
        setattr(self, self.base_model_prefix, self.base_class()(config))
        # Tokens of all chosen blocks side by side
        self.propagation = TokenPropagation(token_width, config.propagation_widths)
        self.segmenter = PointHead(config.propagation_widths[-1], 2 * token_width + config.feature_size, config)
        self.post_init()

    @strict_forward
    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> TokenClassifierOutput:
        """Segment scenes; returns `logits (batch, points, labels)`."""
        output = self.base_model(points, output_layers=self.config.segmentation_layers, **kwargs, return_dict=True)
        # All layers share the final norm. The class token has no position to propagate from.
        tokens = torch.cat([self.base_model.norm(layer)[:, 1:] for layer in output.layer_outputs], dim=-1)
        # Centers are in full precision, whatever the model's is.
        xyz = points[..., :3].to(output.centers.dtype)
        features = self.propagation(xyz, output.centers, tokens)  # (batch, points, width)
        # (batch, 2 * token width + feature_size): maximum and mean of the tokens, and the feature of the cloud
        clouds = torch.cat([tokens.amax(dim=1), tokens.mean(dim=1), output.pooler_output], dim=-1)
        logits = self.segmenter(features, clouds)  # (batch, points, labels)
        return TokenClassifierOutput(point_loss(logits, labels), logits, output.hidden_states, output.attentions)


class TextAlignment(nn.Module):
    """Turns the encoder's features into unit vectors; has the learned scale of cosines."""

    def __init__(self, temperature: float, largest_scale: float | None = None):
        super().__init__()
        # Its logarithm is learned, so that the scale stays above 0 (CLIP).
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.largest_scale = largest_scale

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unit vectors `(clouds, feature_size)` of features of that shape, and the scale."""
        # In float32: exp turns a rounding error of the logarithm in half precision into one of percents of the scale.
        scale = self.logit_scale.float().exp().clamp(max=self.largest_scale or math.inf)
        return nn.functional.normalize(pooled.float(), dim=-1), scale


class AlignedTextsMixin(TextFeaturesMixin):
    """For models whose config names a text tower, which is loaded when first needed.

    It is not part of the model: it is not trained, and its parameters do not count. Its files are stored beside those
    of the model only if they came from a directory.
    """

    @cached_property
    def text_tower(self) -> TextTower:
        """The frozen text encoder and its tokenizer, loaded at first use."""
        # Without a name, it is stored with the model.
        if TEXT_TOWER not in (self.config.parts or {}):
            tower = self.config.aligned_with or "a text tower that its config does not name"
            raise ValueError(
                f"the encoder is aligned with {tower}, which cannot be opened here; give text_embeds, features of "
                "texts that were computed with it"
            )
        return open_text_tower(self.config, TEXT_TOWER)

    def save_beside(self, directory: str | os.PathLike) -> None:
        """Store a text tower that came from a directory."""
        store_text_tower(self.config, directory, TEXT_TOWER)


class AlignedZeroShotClassifier(AlignedTextsMixin, CloudsAndTextsMixin, AlignedPreTrainedModel):
    """Base class of models that compare clouds with texts, as `CLIPModel` compares images with texts."""

    # Largest scale of cosines; None for any.
    _largest_scale: float | None = None

    def __init__(self, config: AlignedEncoderConfig):
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.base_class()(config))
        self.alignment = TextAlignment(config.temperature, self._largest_scale)
        self.post_init()
