"""PointNet (arXiv 1612.00593) and PointNet++ (arXiv 1706.02413), baselines without pretrained weights.

PointNet: points (B, N, channels) ─► layers for each point (B, N, H) ─► maximum ─► class scores
PointNet++: points ─► levels: centers, the points in a ball around each, layers, maximum ─► a PointNet on the centers

Shapes: B clouds, N points of each, H width of a token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.layers.heads import ClassificationHead
from hf_any3d.modeling.layers.losses import classification_loss
from hf_any3d.modeling.point_encoders.base_configuration import PointCloudConfig
from hf_any3d.modeling.point_encoders.base_model import PointCloudModel, PointCloudPreTrainedModel
from hf_any3d.modeling.point_encoders.set_abstraction import SetAbstraction, shared_layers
from hf_any3d.modeling.pointnet.configuration_pointnet import PointNet2Config, PointNetConfig


class PointNetPreTrainedModel(PointCloudPreTrainedModel):
    """Base class of PointNet models."""

    config_class = PointNetConfig
    config: PointNetConfig
    base_model_prefix = "pointnet"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # Torch's default: that of transformers, a normal distribution of one width, is too narrow for these small
            # layers without residuals.
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)


class PointNetModel(PointCloudModel, PointNetPreTrainedModel):
    """PointNet: the same layers for each point, and the maximum of their features over a cloud.

    The published networks that turn clouds and features into a common pose are left out.

    Source: PointNet, Sec. 4.2.
    """

    def __init__(self, config: PointNetConfig):
        super().__init__(config)
        self.layers = shared_layers((config.in_channels, *config.hidden_sizes), config.bias)
        self.post_init()

    def encode(self, points: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the points `(batch, points, in_channels)` with the output of each layer, and their positions."""
        states = [self.input_tokens(points.to(self.dtype))]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states, points[..., :3]


class PointNetForPointCloudClassification(PointNetPreTrainedModel):
    """`PointNetModel` with a classification head.

    Example:
        ```python
        import torch
        from hf_any3d import PointNetConfig, PointNetForPointCloudClassification

        model = PointNetForPointCloudClassification(PointNetConfig(num_labels=3))
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).logits.shape  # (2, 3)
        ```
    """

    model_class: type[PointCloudModel] = PointNetModel

    def __init__(self, config: PointCloudConfig):
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.model_class(config))
        self.classifier = ClassificationHead(
            config.hidden_size,
            config.num_labels,
            config.head_widths,
            bias=getattr(config, "bias", False),
            dropout=config.head_dropout,
        )
        self.post_init()

    @strict_forward
    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Classify point clouds; returns `logits (batch, labels)`."""
        output = self.base_model(points, **kwargs, return_dict=True)
        logits = self.classifier(output.pooler_output)  # (B, labels)
        loss = classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, output.hidden_states, output.attentions)


class PointNet2PreTrainedModel(PointNetPreTrainedModel):
    """Base class of PointNet++ models."""

    config_class = PointNet2Config
    config: PointNet2Config
    base_model_prefix = "pointnet2"


class PointNet2Model(PointCloudModel, PointNet2PreTrainedModel):
    """PointNet++ with one ball per center: levels of grouped points, and a PointNet on the last centers.

    It differs from the published network for classification in these points: one scale of grouping instead of several
    and no dropout of input points (Sec. 3.3); farthest point sampling starts at the first point of a cloud, so that
    features do not vary; all channels after xyz are features; the default sizes are smaller.

    Source: PointNet++, Sec. 3.2.
    """

    def __init__(self, config: PointNet2Config):
        super().__init__(config)
        # A level reads what the one before has found, the first one the channels after xyz.
        inputs = [config.in_channels - 3, *(widths[-1] for widths in config.level_widths)]
        levels = zip(config.num_centers, config.radii, config.num_neighbors, config.level_widths, strict=True)
        self.levels = nn.ModuleList(SetAbstraction(inputs[number], *level) for number, level in enumerate(levels))
        # The last level reads all centers as one group.
        self.layers = shared_layers((3 + inputs[-1], *config.hidden_sizes))
        self.post_init()

    def encode(self, points: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the points `(batch, points, in_channels)` with the output of each level, and the last centers."""
        points = self.input_tokens(points)
        states = [points.to(self.dtype)]
        # Coordinates stay in full precision, as levels measure distances.
        xyz = points[..., :3].contiguous()
        features = states[0][..., 3:]
        for level in self.levels:
            xyz, features, _, _ = level(xyz, features)
            states.append(features)
        hidden_states = torch.cat([xyz.to(features.dtype), features], dim=-1)  # (B, centers, 3 + width)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return [*states, hidden_states], xyz


class PointNet2ForPointCloudClassification(PointNet2PreTrainedModel, PointNetForPointCloudClassification):
    """`PointNet2Model` with a classification head.

    Example:
        ```python
        import torch
        from hf_any3d import PointNet2Config, PointNet2ForPointCloudClassification

        model = PointNet2ForPointCloudClassification(PointNet2Config(num_labels=3))
        points = torch.rand(2, 1024, 3)  # xyz
        model(points=points).logits.shape  # (2, 3)
        ```
    """

    model_class = PointNet2Model
