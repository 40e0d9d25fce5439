"""Base classes of a model that is trained from scratch on point clouds; docs/extending.md adds one with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin
from hf_any3d.modeling.layers.forward_contract import NoAttentionMixin, PointFeaturesOutput, strict_forward
from hf_any3d.modeling.point_ops import in_full_precision
from hf_any3d.modeling.point_ops.grouping import check_channels
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin


class PointCloudConfig(LibrarySettingsMixin, PreTrainedConfig):
    """Fields that the configurations of these models have in common.

    Args:
        in_channels: Channels of a point: 3 for xyz, 6 with colors or normals.
        hidden_sizes: Channels of the layers that each point goes through.
        head_widths: Widths of the head's hidden layers; empty for a linear head.
        head_dropout: Dropout after each hidden layer of the head.
    """

    min_points: ClassVar[int] = 1

    in_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256)
    head_widths: list[int] | tuple[int, ...] = (128,)
    head_dropout: float = 0.3

    def __post_init__(self, **kwargs: Any):
        check_settings(self)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Channels of the last layer, the size of a cloud's feature."""
        return self.hidden_sizes[-1]

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers that each point goes through."""
        return len(self.hidden_sizes)


class PointCloudPreTrainedModel(LibraryModelMixin, NoAttentionMixin, PreTrainedModel):
    """Base class of these models: opened, saved, described and called like all others of the library."""

    config_class = PointCloudConfig
    config: PointCloudConfig

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights; float32 where quantization has left none, as of a model of linear layers alone."""
        return next((weight.dtype for weight in self.parameters() if weight.is_floating_point()), torch.float32)


class PointCloudModel(nn.Module):
    """For the model without a head, before its base class; it builds its layers, calls `post_init`, has `encode`."""

    config: PointCloudConfig
    dtype: torch.dtype
    returns_states: Callable[[bool | None, bool | None], bool]

    def __init__(self, config: PointCloudConfig):
        super().__init__(config)
        # What embeddings are to a language model: the module whose output enters the first layer.
        self.input_tokens = nn.Identity()

    def encode(self, points: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Encode points `(batch, points, in_channels)`.

        Returns:
            The input of the first layer, which is `input_tokens` of the points in the precision of the model, with the
            output of each layer, `(batch, points, width)`; and the positions `(batch, points, 3)` of the last output.
        """
        raise NotImplementedError

    @strict_forward
    def forward(
        self, points: torch.Tensor, output_hidden_states: bool | None = None, output_attentions: bool | None = None
    ) -> PointFeaturesOutput:
        """Encode point clouds.

        Returns:
            `last_hidden_state (batch, points, hidden)`, a feature of each point, or of each center if the model
            groups them, `pooler_output (batch, hidden)`, their maximum, and `centers (batch, points, 3)`, their
            positions.
        """
        # Models that group points need as many as the config says; others need one.
        check_channels(points, self.config.in_channels, getattr(self.config, "min_points", 1))
        with_states = self.returns_states(output_hidden_states, output_attentions)
        states, centers = self.encode(in_full_precision(points, self.dtype))
        # The maximum does not depend on the order of the points.
        pooled = states[-1].amax(dim=1)  # (batch, hidden)
        return PointFeaturesOutput(states[-1], pooled, centers, tuple(states) if with_states else None)
