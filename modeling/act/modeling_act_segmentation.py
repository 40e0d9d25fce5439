"""Segmentation with ACT's point transformer: parts of an object, or objects of a scene."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.act.modeling_act import ActModel, ActOutput, ActPreTrainedModel
from hf_any3d.modeling.card_info import CardInfo
from hf_any3d.modeling.layers.heads import ClassificationHead, HeadNorm, in_precision_of
from hf_any3d.modeling.layers.tasks import (
    PartSegmentationMixin,
    SemanticSegmentationMixin,
    check_category_parts,
    refuse_problem_type,
)
from hf_any3d.modeling.point_ops import three_nearest_interpolate


class TokenPropagation(nn.Module):
    """Propagate token features to points: interpolation, point coordinates, two layers (PointNet++, Sec. 3.4).

    The released programs interpolate, concatenate the coordinates and apply a linear layer; here the layer is applied
    to the tokens before interpolation, which is equivalent and cheaper.

    Args:
        token_width: Channels of a token.
        widths: Channels of the two layers.
    """

    def __init__(self, token_width: int, widths: tuple[int, int]):
        super().__init__()
        mixed, out = widths
        self.from_points = nn.Linear(3, mixed)
        self.from_tokens = nn.Linear(token_width, mixed, bias=False)
        self.mixed_norm = HeadNorm(mixed)
        self.out = nn.Linear(mixed, out)
        self.out_norm = HeadNorm(out)

    def forward(self, xyz: torch.Tensor, centers: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Compute features of every point.

        Args:
            xyz: `(batch, points, 3)`.
            centers: `(batch, groups, 3)`, positions of the tokens.
            tokens: `(batch, groups, token_width)`.

        Returns:
            `(batch, points, widths[1])`.
        """
        tokens = self.from_tokens(in_precision_of(self.from_tokens, tokens))
        near = three_nearest_interpolate(xyz, centers, tokens)  # (batch, points, mixed)
        mixed = near + self.from_points(xyz.to(near.dtype))
        rows = torch.relu(self.mixed_norm(mixed.flatten(0, 1)))  # (batch * points, mixed)
        return torch.relu(self.out_norm(self.out(rows))).unflatten(0, xyz.shape[:2])


class PointHead(nn.Module):
    """Head for each point that also reads features of the full cloud.

    Args:
        point_width: Channels of a point.
        cloud_width: Channels of a cloud.
        config: Defines the widths, the dropout and the labels.
    """

    def __init__(self, point_width: int, cloud_width: int, config: ActConfig):
        super().__init__()
        first, *others = config.segmentation_head_widths
        rate, *rates = config.segmentation_head_dropout
        self.from_points = nn.Linear(point_width, first)
        self.from_cloud = nn.Linear(cloud_width, first, bias=False)
        self.norm = HeadNorm(first)
        self.dropout = nn.Dropout(rate)
        self.head = ClassificationHead(first, config.num_labels, others, dropout=rates)

    def forward(self, points: torch.Tensor, clouds: torch.Tensor) -> torch.Tensor:
        """Compute logits `(batch, points, labels)` from `(batch, points, point_width)` and `(batch, cloud_width)`."""
        points, clouds = in_precision_of(self, points), in_precision_of(self, clouds)
        mixed = self.from_points(points) + self.from_cloud(clouds).unsqueeze(1)  # (batch, points, width)
        rows = self.dropout(torch.relu(self.norm(mixed.flatten(0, 1))))
        return self.head(rows).unflatten(0, points.shape[:2])


class ActSegmenter(ActPreTrainedModel):
    """Base class of the segmentation models: the model without class token, propagation, and a head for each point.

    Args:
        config: The configuration.
        condition_width: Channels of a subclass's additional features of a cloud.

    Raises:
        ValueError: If `segmentation_layers` names an unknown block, or the head has no hidden layer.
    """

    def __init__(self, config: ActConfig, condition_width: int = 0):
        # Do not change the caller's config, which may be a classifier's or a pretrained model's.
        config = copy.deepcopy(config)
        config.use_class_token = False
        super().__init__(config)
        refuse_problem_type(config)
        layers = config.segmentation_layers
        if not layers or not all(0 <= number < config.num_hidden_layers for number in layers):
            raise ValueError(
                f"segmentation_layers={layers}; expected numbers from 0 to {config.num_hidden_layers - 1}, as "
                f"num_hidden_layers is {config.num_hidden_layers}"
            )
        if not config.segmentation_head_widths:
            raise ValueError(f"segmentation_head_widths={config.segmentation_head_widths}; expected one or more")
        token_width = len(layers) * config.hidden_size
        self.act = ActModel(config)
        self.propagation = TokenPropagation(token_width, config.propagation_widths)
        self.segmenter = PointHead(config.propagation_widths[-1], 2 * token_width + condition_width, config)

    def point_logits(
        self,
        points: torch.Tensor,
        condition: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> tuple[torch.Tensor, ActOutput]:
        """Compute logits `(batch, points, labels)`, and return the base model's output too; see `forward`.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            condition: `(batch, condition_width)`, additional features of each cloud.
            output_hidden_states: As in `forward`.
            output_attentions: As in `forward`.
        """
        output = self.act(
            points,
            output_layers=self.config.segmentation_layers,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        # All layers share the final norm.
        tokens = torch.cat([self.act.norm(layer) for layer in output.layer_outputs], dim=-1)
        xyz = points[..., :3].to(output.centers.dtype)
        features = self.propagation(xyz, output.centers, tokens)  # (batch, points, width)
        cloud_features = [tokens.amax(dim=1), tokens.mean(dim=1)]
        if condition is not None:
            cloud_features.append(condition)
        return self.segmenter(features, torch.cat(cloud_features, dim=-1)), output


class ActForSemanticSegmentation(SemanticSegmentationMixin, ActSegmenter):
    """ACT model that predicts an object class for every point of a scene or of a block of it."""

    card_info = CardInfo("semantic_segmentation")

    def __init__(self, config: ActConfig):
        super().__init__(config)
        self.post_init()


class ActForPartSegmentation(PartSegmentationMixin, ActSegmenter):
    """ACT model that predicts a part for every point of an object, given the object's category.

    Args:
        config: The configuration, with `id2label` (the parts of all categories) and `category_parts`.

    Raises:
        ValueError: If `category_parts` is missing or names a part that is not among the labels.
    """

    card_info = CardInfo("part_segmentation")

    def __init__(self, config: ActConfig):
        super().__init__(config, condition_width=config.category_width)
        check_category_parts(config.category_parts, config.num_labels)
        self.category_embedding = nn.Embedding(config.num_categories, config.category_width)
        self.category_norm = HeadNorm(config.category_width)
        self.post_init()

    def category_features(self, category: torch.Tensor) -> torch.Tensor:
        """Embed categories `(batch,)` for the head: `(batch, category_width)`."""
        return nn.functional.leaky_relu(self.category_norm(self.category_embedding(category)), 0.2)
