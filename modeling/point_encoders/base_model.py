"""Base classes of a model that is trained from scratch on point clouds; docs/extending.md adds one with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.layers.forward_contract import NoAttentionMixin, PointFeaturesOutput, strict_forward
from hf_any3d.modeling.point_encoders.base_configuration import PointCloudConfig
from hf_any3d.modeling.point_ops import in_full_precision
from hf_any3d.modeling.point_ops.grouping import check_channels
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin


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
