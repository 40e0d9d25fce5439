"""Labels of points by numbers of their surroundings, which need no training, and a small network on them.

points (batch, N, 3 + features), from LocalFeaturesProcessor
    │  without places ─► standardized, clipped
    ▼
features (batch, N, features) ─► members of hidden layers ─► last_hidden_state (batch, N, hidden)
    │                                                            └─► mean of the members' logits (batch, N, labels)
    └─► projected ─► distance to the nearest learned point ─► unknown (batch, N)
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_any3d.modeling.layers.forward_contract import NoAttentionMixin, strict_forward
from hf_any3d.modeling.layers.losses import point_loss
from hf_any3d.modeling.layers.tasks import refuse_problem_type
from hf_any3d.modeling.point_encoders.base_model import PointCloudModel
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d_survey.local_features.configuration_local_features import LocalFeaturesConfig
from hf_any3d_survey.local_features.network import FeatureLayers, LocalFeaturesOutput, PointLabels, is_graph


class LocalFeaturesPreTrainedModel(LibraryModelMixin, NoAttentionMixin, PreTrainedModel):
    """Base class of these models."""

    config_class = LocalFeaturesConfig
    config: LocalFeaturesConfig
    base_model_prefix = "local_features"
    _no_split_modules = ["LocalFeaturesModel"]  # accelerate would find no device for the numbers beside its layers
    # Rounded to half precision, they would move features of little spread by tenths of it.
    _keep_in_fp32_modules_strict = [r"(?:^|local_features\.)(?:mean|scale)$"]


class LocalFeaturesModel(FeatureLayers, PointCloudModel, LocalFeaturesPreTrainedModel):
    """Standardized features of points, and hidden layers."""

    def __init__(self, config: LocalFeaturesConfig):
        super().__init__(config)
        self.build_layers(config)
        self.post_init()

    def encode(self, points: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the standardized features, the outputs of the layers `(batch, points, width)`, and the places."""
        standard = self.input_tokens(self.standardize(points[..., 3:]).to(self.dtype))
        return [standard, *self.hidden_layers(standard)], points[..., :3]


class LocalFeaturesForPointCloudSegmentation(PointLabels, LocalFeaturesPreTrainedModel):
    """Local features with a label for each point.

    Example:
        ```python
        import torch
        from hf_any3d import LocalFeaturesConfig, LocalFeaturesForPointCloudSegmentation

        model = LocalFeaturesForPointCloudSegmentation(LocalFeaturesConfig(in_channels=8, num_labels=3))
        points = torch.rand(2, 100, 8)  # xyz and features, as LocalFeaturesProcessor makes them
        model(points=points).logits.shape  # (2, 100, 3)
        ```
    """

    def __init__(self, config: LocalFeaturesConfig):
        super().__init__(config)
        refuse_problem_type(config)
        self.local_features = LocalFeaturesModel(config)
        self.build_head(config)
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> LocalFeaturesOutput:
        """Label points; returns `logits (batch, points, labels)` and perhaps `unknown (batch, points)`."""
        with_states = self.returns_states(output_hidden_states, output_attentions)
        core = self.local_features
        # Hooks, as of accelerate, are those of a call.
        has_hooks = bool("forward" in vars(core) or core._forward_hooks or core._forward_pre_hooks)
        if with_states or has_hooks or torch.is_grad_enabled() or is_graph() or points.is_cuda:
            output = core(points, output_hidden_states=True, return_dict=True)
            logits, unknown = self.label(output.hidden_states[0], output.last_hidden_state)
            states = output.hidden_states if with_states else None
            return LocalFeaturesOutput(point_loss(logits, labels), logits, states, unknown=unknown)
        # A graph has no loop over pieces, and states are of all points.
        output = self.label_in_pieces(points)
        output.loss = point_loss(output.logits, labels)
        return output
