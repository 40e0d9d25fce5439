"""Any2Point models that name every point of a cloud: parts of an object, or objects of a scene."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig
from hf_any3d.modeling.any2point.modeling_any2point import Any2PointOutput, Any2PointWithHead
from hf_any3d.modeling.card_info import CardInfo
from hf_any3d.modeling.layers.heads import ClassificationHead, HeadNorm
from hf_any3d.modeling.layers.tasks import (
    PartSegmentationMixin,
    SemanticSegmentationMixin,
    check_category_parts,
    refuse_problem_type,
)
from hf_any3d.modeling.point_ops import three_nearest_interpolate


class PointPropagation(nn.Module):
    """Carries what tokens and the whole cloud say to every point.

    A point gets the features of the three nearest tokens, those of the whole cloud, and what is its own: its channels
    and its place among those tokens, without which neighbours across an edge would look alike; and what the tokenizer
    made of it and of places near it on the way to tokens (after PointNet++, Sec. 3.4).

    Args:
        config: The model's configuration.
        level_widths: Channels of the tokenizer's levels; none leaves them out.
    """

    def __init__(self, config: Any2PointConfig, level_widths: Sequence[int] = ()):
        super().__init__()
        hidden_size, width = config.encoder_config.hidden_size, config.propagation_width
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
        """Features of every point.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            features: What the model made of them.
            condition: `(batch, width)`, added for every point of a cloud; None for nothing.

        Returns:
            `(batch, points, width)`.
        """
        dtype = self.from_tokens.weight.dtype
        # Places stay in full precision in a half precision model.
        points = points.to(torch.promote_types(dtype, torch.float32))
        tokens = self.from_tokens(features.last_hidden_state[:, 1:].to(dtype))  # (batch, tokens, width)
        centers = features.centers.to(points.dtype)
        near = three_nearest_interpolate(points, centers, torch.cat([tokens.to(points.dtype), centers], dim=-1))
        offsets = points[..., :3] - near[..., -3:]
        own = self.from_point(torch.cat([points, offsets], dim=-1).to(dtype))
        whole = self.from_cloud(features.pooler_output.to(dtype))  # (batch, width)
        if condition is not None:
            whole = whole + condition
        mixed = near[..., :-3].to(dtype) + own + whole.unsqueeze(1)  # (batch, points, width)
        if self.from_levels and features.levels is None:
            raise ValueError("features.levels is missing; call the model with output_levels=True")
        # The finest levels come first; a head that was made without any hears none.
        for linear, (level, places) in zip(self.from_levels, features.levels or (), strict=False):
            said = linear(level.to(dtype))  # (batch, places, width)
            if places is not None:
                said = three_nearest_interpolate(points, places.to(points.dtype), said)
            mixed = mixed + said
        return torch.relu(self.norm(mixed.flatten(0, 1))).view_as(mixed)


class Any2PointSegmenter(Any2PointWithHead):
    """What both kinds of segmentation share: the model, propagation to every point, and a head for each point."""

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
        self,
        points: torch.Tensor,
        condition: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> tuple[torch.Tensor, Any2PointOutput]:
        """Logits `(batch, points, labels)` of every point, and what lies below; see `forward`.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            condition: `(batch, propagation_width)`, added for every point of a cloud; None for nothing.
            output_hidden_states: As in `forward`.
            output_attentions: As in `forward`.
        """
        features = self.any2point(
            points,
            output_levels=self.config.propagate_levels,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        spread = self.propagation(points, features, condition)
        return self.segmenter(spread.flatten(0, 1)).unflatten(0, points.shape[:2]), features


class Any2PointForSemanticSegmentation(SemanticSegmentationMixin, Any2PointSegmenter):
    """Names the object that every point of a scene, or of a block of one, belongs to."""

    card_info = CardInfo("semantic_segmentation")

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config, encoder)
        self.post_init()


class Any2PointForPartSegmentation(PartSegmentationMixin, Any2PointSegmenter):
    """Names the part that every point of an object belongs to, given the object's category.

    Args:
        config: The configuration, with `id2label` (the parts of all categories) and `category_parts`.
        encoder: A loaded encoder to use.

    Raises:
        ValueError: If `category_parts` is missing or names a part that is no label.
    """

    card_info = CardInfo("part_segmentation")

    def __init__(self, config: Any2PointConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config, encoder)
        check_category_parts(config.category_parts, config.num_labels)
        self.category_embedding = nn.Embedding(config.num_categories, config.propagation_width)
        self.post_init()

    def category_features(self, category: torch.Tensor) -> torch.Tensor:
        """What every point of objects of these categories `(batch,)` is told: `(batch, propagation_width)`."""
        return self.category_embedding(category)
