"""Labels of points by numbers of their surroundings, which need no training, and a small network on them.

points (batch, N, 3 + features), from LocalFeaturesProcessor
    │  without places ─► standardized, clipped
    ▼
features (batch, N, features) ─► members of hidden layers ─► last_hidden_state (batch, N, hidden)
    │                                                            └─► mean of the members' logits (batch, N, labels)
    └─► projected ─► distance to the nearest learned point ─► unknown (batch, N)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from hf_any3d.modeling.layers.forward_contract import NoAttentionMixin, strict_forward
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.layers.losses import point_loss
from hf_any3d.modeling.layers.tasks import refuse_problem_type
from hf_any3d.modeling.layers.unknown_score import UnknownScore, score_of_terms, surprise
from hf_any3d.modeling.local_features.configuration_local_features import LocalFeaturesConfig
from hf_any3d.modeling.point_encoders.base_model import PointCloudModel
from hf_any3d.modeling.point_ops import in_full_precision
from hf_any3d.modeling.point_ops.grouping import check_channels
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin

_SMALLEST = 1e-12
_AT_ONCE = 2048  # rows


@dataclass
class LocalFeaturesOutput(TokenClassifierOutput):
    """Output of a model that labels points.

    Args:
        unknown: `(batch, points)` scores from 0 to 1, the less a point is like those of the training; None without a
            score.
    """

    unknown: Tensor | None = None


class LocalFeaturesPreTrainedModel(LibraryModelMixin, NoAttentionMixin, PreTrainedModel):
    """Base class of these models."""

    config_class = LocalFeaturesConfig
    config: LocalFeaturesConfig
    base_model_prefix = "local_features"
    _no_split_modules = ["LocalFeaturesModel"]  # accelerate would find no device for the numbers beside its layers
    # Rounded to half precision, they would move features of little spread by tenths of it.
    _keep_in_fp32_modules_strict = [r"(?:^|local_features\.)(?:mean|scale)$"]


class LocalFeaturesModel(PointCloudModel, LocalFeaturesPreTrainedModel):
    """Standardized features of points, and hidden layers."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: LocalFeaturesConfig):
        super().__init__(config)
        width = config.in_channels - 3
        # Of the features that were learned from; set by training.
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        # Members are beside each other, so that a layer is one of all members.
        widths = (width, *config.hidden_sizes)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.GELU(), nn.Dropout(config.dropout))
                for _ in range(config.members)
            )
            for inputs, outputs in zip(widths[:-1], widths[1:], strict=True)
        )
        self.post_init()

    def standardize(self, features: Tensor) -> Tensor:
        """Return features `(…, features)` in standard deviations from the mean of the learned points."""
        # In place after the first step, as there are millions of points.
        return (features - self.mean).div_(self.scale).clamp_(-self.config.largest, self.config.largest)

    def hidden_layers(self, standard: Tensor) -> list[Tensor]:
        """Return the outputs `(…, members * width)` of all layers for standardized features `(…, features)`."""
        outputs: list[Tensor] = []
        # All members read the same features, and from then on their own layers.
        inputs = [standard] * self.config.members
        for layer in self.layers:
            members = cast("nn.ModuleList", layer)
            inputs = [member(values) for member, values in zip(members, inputs, strict=True)]
            outputs.append(torch.cat(inputs, dim=-1))
        return outputs

    def encode(self, points: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the standardized features, the outputs of the layers `(batch, points, width)`, and the places."""
        standard = self.input_tokens(self.standardize(points[..., 3:]).to(self.dtype))
        return [standard, *self.hidden_layers(standard)], points[..., :3]


class LearnedRows(nn.Module):
    """Some of the points that were learned: features (rows, features), labels and places (rows,)."""

    features: Tensor
    labels: Tensor
    places: Tensor

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(rows, width))
        self.register_buffer("labels", torch.zeros(rows, dtype=torch.long))
        self.register_buffer("places", torch.zeros(rows, dtype=torch.long))


class LocalFeaturesForPointCloudSegmentation(LocalFeaturesPreTrainedModel):
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

    unknown_score: UnknownScore | None
    learned: LearnedRows | None

    def __init__(self, config: LocalFeaturesConfig):
        super().__init__(config)
        refuse_problem_type(config)
        self.local_features = LocalFeaturesModel(config)
        # One layer for all members: the sum of their logits.
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or ()))
        self.unknown_score = None
        if config.unknown_rows:
            self.unknown_score = UnknownScore(config.unknown_rows, config.in_channels - 3, 0, config.unknown_width)
        self.learned = LearnedRows(config.learned_rows, config.in_channels - 3) if config.learned_rows else None
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
        if with_states or has_hooks or torch.is_grad_enabled() or _is_graph() or points.is_cuda:
            output = core(points, output_hidden_states=True, return_dict=True)
            logits, unknown = self._label(output.hidden_states[0], output.last_hidden_state)
            states = output.hidden_states if with_states else None
            return LocalFeaturesOutput(point_loss(logits, labels), logits, states, unknown=unknown)
        # Few rows at a time stay in the cache of a processor; a graph has no such loop, and states are of all points.
        check_channels(points, self.config.in_channels, 1)
        answers = []
        for piece in points.split(_AT_ONCE, dim=1):
            states, _ = core.encode(in_full_precision(piece, self.dtype))
            answers.append(self._label(states[0], states[-1]))
        logits = torch.cat([answer[0] for answer in answers], dim=1)
        scores = [answer[1] for answer in answers if answer[1] is not None]
        unknown = torch.cat(scores, dim=1) if scores else None
        return LocalFeaturesOutput(point_loss(logits, labels), logits, unknown=unknown)

    def _label(self, standard: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (batch, points, labels) and unknown scores (batch, points) by the outputs of the layers."""
        features = in_precision_of(self.classifier, hidden)
        # A mean of members, as the layer adds them up, and softened by the temperature.
        logits = self.classifier(features) / (self.config.members * self.config.temperature)
        unknown = None
        if self.unknown_score is not None:
            # Of what the first layer reads: hidden layers keep only what tells known classes apart.
            terms = self.unknown_terms(standard.flatten(0, 1), logits.flatten(0, 1))
            unknown = score_of_terms(terms, self.config).view(logits.shape[:2])
        return logits, unknown

    def unknown_terms(self, standard: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Return the terms `(points,)` of the unknown score, for standardized features and logits `(points, …)`."""
        score = self.unknown_score
        assert score is not None
        seen = score.project(standard).float()
        known = score.features.float()
        # By matrix products, as there are millions of points; what they round is far below the usual distance. Few
        # rows at a time stay in the cache of a processor, but a graph has no such loop.
        parts = [seen] if _is_graph() or seen.is_cuda else seen.split(_AT_ONCE)
        lengths = known.square().sum(dim=1)
        nearest = torch.cat([torch.addmm(lengths, part, known.T, alpha=-2).amin(dim=1) for part in parts])
        squared = seen.square().sum(dim=1) + nearest
        distance = squared.clamp(min=0).sqrt()
        return {"unknown_distance": distance.clamp(min=_SMALLEST).log(), "unknown_surprise": surprise(logits)}


def _is_graph() -> bool:
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()
