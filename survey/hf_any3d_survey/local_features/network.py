"""The network of local features in torch alone, which opens in half the time of a model of transformers.

`LocalFeaturesForPointCloudSegmentation` is made of the same parts, so that both compute the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import TokenClassifierOutput

from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.layers.unknown_score import (
    UnknownScore,
    UnknownScoreConfigMixin,
    score_of_terms,
    surprise,
)
from hf_any3d.modeling.point_ops import in_full_precision
from hf_any3d.modeling.point_ops.grouping import check_channels
from hf_any3d_survey.local_features.configuration_local_features import LocalFeaturesConfig

LEAST_ADAPTED = 1000
"""Stored points below which a network that learns them alone, beside a scan, would know less than the one before."""
_SMALLEST = 1e-12
# Rows that are labeled at a time, and compared with learned ones, whose distances are several hundred a row.
_AT_ONCE, _COMPARED = 1 << 12, 1 << 9


@dataclass
class LocalFeaturesOutput(TokenClassifierOutput):
    """Output of a model that labels points.

    Args:
        unknown: `(batch, points)` scores from 0 to 1, the less a point is like those of the training; None without a
            score.
    """

    unknown: Tensor | None = None


class FeatureLayers:
    """For modules: standardized features of points, and hidden layers."""

    config: LocalFeaturesConfig
    mean: Tensor
    scale: Tensor
    layers: nn.ModuleList

    def build_layers(self, config: LocalFeaturesConfig) -> None:
        """Add buffers and layers to the module."""
        module = cast("nn.Module", self)
        width = config.in_channels - 3
        # Of the features that were learned from; set by training.
        module.register_buffer("mean", torch.zeros(width))
        module.register_buffer("scale", torch.ones(width))
        # Members are beside each other, so that a layer is one of all members.
        widths = (width, *config.hidden_sizes)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.GELU(), nn.Dropout(config.dropout))
                for _ in range(config.members)
            )
            for inputs, outputs in zip(widths[:-1], widths[1:], strict=True)
        )

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


class PointLabels:
    """For modules: labels of points by `local_features`, and how unlike all learned points they are."""

    config: LocalFeaturesConfig
    dtype: torch.dtype
    device: torch.device
    local_features: Any
    classifier: nn.Linear
    unknown_score: UnknownScore | None
    learned: LearnedRows | None
    __call__: Callable[..., LocalFeaturesOutput]

    def build_head(self, config: LocalFeaturesConfig) -> None:
        """Add the layer of the labels, the unknown score and the stored points to the module."""
        # One layer for all members: the sum of their logits.
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or ()))
        self.unknown_score = UnknownScore.of_config(config, config.in_channels - 3)
        self.learned = LearnedRows(config.learned_rows, config.in_channels - 3) if config.learned_rows else None

    def label_in_pieces(self, points: Tensor) -> LocalFeaturesOutput:
        """Label points `(batch, points, 3 + features)` on a CPU, whose cache holds few rows at a time."""
        check_channels(points, self.config.in_channels, 1)
        core = self.local_features
        answers = []
        for piece in points.split(_AT_ONCE, dim=1):
            states, _ = core.encode(in_full_precision(piece, self.dtype))
            answers.append(self.label(states[0], states[-1]))
        logits = torch.cat([answer[0] for answer in answers], dim=1)
        scores = [answer[1] for answer in answers if answer[1] is not None]
        return LocalFeaturesOutput(None, logits, unknown=torch.cat(scores, dim=1) if scores else None)

    def label(self, standard: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
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
        parts = [seen] if is_graph() or seen.is_cuda else seen.split(_COMPARED)
        lengths = known.square().sum(dim=1)
        nearest = torch.cat([torch.addmm(lengths, part, known.T, alpha=-2).amin(dim=1) for part in parts])
        squared = seen.square().sum(dim=1) + nearest
        distance = squared.clamp(min=0).sqrt()
        return {"distance": distance.clamp(min=_SMALLEST).log(), "surprise": surprise(logits)}


class _Layers(FeatureLayers, nn.Module):
    dtype = torch.float32

    def __init__(self, config: LocalFeaturesConfig):
        super().__init__()
        self.config = config
        self.build_layers(config)

    def encode(self, points: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the standardized features, the outputs of the layers (batch, points, width), and the places."""
        standard = self.standardize(points[..., 3:])
        return [standard, *self.hidden_layers(standard)], points[..., :3]


class LocalFeaturesNetwork(PointLabels, nn.Module):
    """A saved `LocalFeaturesForPointCloudSegmentation` without what training, hub and devices need."""

    config_class = LocalFeaturesConfig
    # All that is of these models alone: layers and labels are those of the model.
    reads = frozenset(inspect.get_annotations(LocalFeaturesConfig)) | {
        *inspect.get_annotations(UnknownScoreConfigMixin)
    }
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, config: LocalFeaturesConfig):
        super().__init__()
        self.config = config
        self.name_or_path = ""
        self.local_features = _Layers(config)
        self.build_head(config)

    def forward(self, points: Tensor) -> LocalFeaturesOutput:
        """Label points `(batch, points, 3 + features)`, without gradients."""
        return self.label_in_pieces(points)


def is_graph() -> bool:
    """Return whether torch compiles or exports what runs."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()
