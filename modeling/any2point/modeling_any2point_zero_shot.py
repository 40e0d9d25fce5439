"""Any2Point beside the text tower of its encoder's checkpoint: classes are named, and not trained.

points ──► Any2PointModel ──► pooled (B, width) ──► projection ──► unit vectors (B, text_width) ─────────┐
                                                                                                         ├─► cosines
texts  ──► text tower of the encoder's checkpoint ────────────────────► unit vectors (texts, text_width) ┘

Shapes: B clouds, H width of a token.
"""

from __future__ import annotations

import math
import os
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization as init

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig
from hf_any3d.modeling.any2point.modeling_any2point import Any2PointModel, Any2PointPreTrainedModel
from hf_any3d.modeling.config_checks import check_built
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_encoders.aligned_encoders.modeling_aligned_encoders import TextAlignment
from hf_any3d.modeling.point_encoders.text_towers import (
    TextTower,
    open_text_tower,
    own_projection,
    store_text_tower,
    text_tower_settings,
)
from hf_any3d.modeling.point_encoders.zero_shot import LARGEST_SCALE, CloudsAndTextsMixin


class PointTextAlignment(TextAlignment):
    """Project the features of clouds into the space of the texts; has the learned temperature."""

    def __init__(self, config: Any2PointConfig):
        # As CLIP limits it: a larger scale makes training unstable.
        super().__init__(config.temperature, LARGEST_SCALE)
        self.projection = nn.Linear(len(config.pooling) * config.encoder_config.hidden_size, config.text_width)

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unit vectors `(clouds, text_width)` of pooled features, and the scale of the cosines."""
        # Clouds enter the space of texts here; the frozen encoder's own space is another one in general.
        return super().forward(self.projection(in_precision_of(self.projection, pooled)))


class Any2PointForZeroShotPointCloudClassification(CloudsAndTextsMixin, Any2PointPreTrainedModel):
    """`Any2PointModel` that compares clouds with texts, as `CLIPModel` compares images with texts.

    The texts are encoded by the frozen text tower of the encoder's checkpoint. It is loaded when first needed, by the
    recorded name, revision and checksum, and is not part of the model: it is neither stored nor adapted, and its
    parameters do not count. Train the model on pairs of clouds and texts before use.

    Example:
        ```python
        import torch
        from transformers import BertConfig
        from hf_any3d import Any2PointConfig, Any2PointForZeroShotPointCloudClassification

        encoder = BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
        config = Any2PointConfig(encoder_config=encoder, num_tokens=32, text_width=48)
        model = Any2PointForZeroShotPointCloudClassification(config)
        points = torch.rand(2, 256, 3)  # xyz
        model(points=points, text_embeds=torch.rand(5, 48)).logits_per_point_cloud.shape  # (2, 5)
        ```
    """

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        check_built(config, "text_width", "from_encoder_pretrained(name_or_path)")
        self.any2point = Any2PointModel(config, encoder)
        self.alignment = PointTextAlignment(config)
        self.post_init()

    @classmethod
    def from_encoder_pretrained(
        cls,
        encoder_name_or_path: str | os.PathLike | None = None,
        *,
        config: Any2PointConfig | None = None,
        revision: str | None = None,
        text_pooling: str | None = None,
        **kwargs: Any,
    ) -> Any2PointForZeroShotPointCloudClassification:
        """Build a model on an encoder with an aligned text tower; see `Any2PointModel.from_encoder_pretrained`.

        The projection is initialized from the checkpoint's linear projection if there is one (CLIP, the texts of
        SigLIP), as the identity for sentence encoders, else at random. `text_pooling` is "mean", "cls" or "max" for a
        sentence encoder whose files do not define it.

        Raises:
            UnsupportedEncoder: If the encoder is not supported or has no aligned text tower.
        """
        weights = kwargs.get("encoder_weights", "pretrained")
        if weights != "pretrained":
            raise ValueError(f"encoder_weights={weights!r}; expected 'pretrained', as texts are compared in its space")
        if encoder_name_or_path is not None and config is None:
            # Before the encoder is loaded, as one without a text tower is refused.
            kwargs |= text_tower_settings(encoder_name_or_path, revision, text_pooling)
        model = super().from_encoder_pretrained(encoder_name_or_path, config=config, revision=revision, **kwargs)
        if config is None and (weight := own_projection(model.config)) is not None:
            # The map `(text_width, H)` of the mean of all poolings.
            projection = model.alignment.projection
            pools = len(model.config.pooling)
            with torch.no_grad():
                projection.weight.copy_(weight.repeat(1, pools) / pools)
                projection.bias.zero_()
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PointTextAlignment):
            init.constant_(module.logit_scale, math.log(1 / self.config.temperature))

    @cached_property
    def text_tower(self) -> TextTower:
        """The frozen text encoder and its tokenizer, loaded at first use."""
        return open_text_tower(self.config)

    def save_beside(self, directory: str | os.PathLike) -> None:
        """Store a text tower that came from a directory."""
        store_text_tower(self.config, directory)
