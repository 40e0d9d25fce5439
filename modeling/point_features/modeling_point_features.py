"""Features of point clouds that need no training, and a linear head on them.

points (batch, N, channels)
    │  copies, slightly turned, scaled and jittered; the first is the cloud itself
    ▼
copies (batch, copies, N, channels) ─┬─► descriptors of the whole shape
                                     └─► frozen point encoder, pooled
    │  concatenated ─► mean over the copies ─► standardized
    ▼
features (batch, width) ─┬─► linear head ─► class scores
                         └─► distance to the nearest training cloud ─► unknown score
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from hf_any3d.modeling.card_info import CardInfo, CardMixin, MethodInfo
from hf_any3d.modeling.encoders.loading import FROZEN, freeze
from hf_any3d.modeling.layers.forward_contract import PointFeaturesOutput, PointTokensMixin, strict_forward
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.layers.tasks import classification_loss
from hf_any3d.modeling.layers.unknown_score import PointCloudClassifierOutput, UnknownScore
from hf_any3d.modeling.point_features.configuration_point_features import PointFeaturesConfig
from hf_any3d.modeling.point_features.descriptors import describe
from hf_any3d.modeling.point_features.packaged_encoder import packaged_weights
from hf_any3d.modeling.point_ops import in_full_precision
from hf_any3d.modeling.point_ops.grouping import check_channels
from hf_any3d.modeling.pretrained_parts import PretrainedPartsMixin

# Irrational steps of the sequences that copies take their numbers from, square roots of primes.
_STEPS = tuple(math.sqrt(prime) for prime in (2, 3, 5, 7, 11, 13, 17))


class PointFeaturesPreTrainedModel(CardMixin, PretrainedPartsMixin, PointTokensMixin, PreTrainedModel):
    """Base class of models of features without training."""

    config_class = PointFeaturesConfig
    config: PointFeaturesConfig
    base_model_prefix = "point_features"
    method_info = MethodInfo("Point features", None, ("point_features",))
    _part_paths = {"encoder": "encoder"}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the features; a model of descriptors alone has no weights."""
        return self.base_model.mean.dtype

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.base_model.mean.device

    def train(self, mode: bool = True) -> PreTrainedModel:
        """Set train mode, except for frozen encoders: their norms and drop path stay in eval mode."""
        super().train(mode)
        for module in self.modules():
            if FROZEN in vars(module):
                module.training = False
        return self


class PointFeaturesModel(PointFeaturesPreTrainedModel):
    """Standardized features of point clouds, averaged over slightly changed copies of each.

    Args:
        config: The configuration.
        parts: Loaded encoders by the names of the config's parts. Those that are not given are built from the config;
            the packaged one has its weights.
    """

    card_info = CardInfo("features", opens="PointFeaturesModel")
    mean: Tensor
    scale: Tensor

    def __init__(self, config: PointFeaturesConfig, parts: Mapping[str, PreTrainedModel] | None = None):
        super().__init__(config)
        # All points pass this module; `get_input_embeddings` returns it.
        self.input_tokens = nn.Identity()
        given = dict(parts or {})
        self.encoder = None
        if "encoder" in config.features:
            self.encoder = given.get("encoder") or AutoModel.from_config(config.encoder_config)
            if self.encoder.config._attn_implementation is None:
                # Nesting a config in another one resets the attention implementation that its model was built with.
                self.encoder.config._attn_implementation = config._attn_implementation
            config.encoder_config = self.encoder.config
        width = self._find_width() if "encoder" in config.features else None
        config.encoder_width = width
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("scale", torch.ones(config.hidden_size))
        self.post_init()
        if self.encoder is not None:
            is_new = given.get("encoder") is None and not self.encoder.device.type == "meta"
            if is_new and config.encoder_weights == "packaged":
                self.encoder.load_state_dict(packaged_weights())
            freeze(self.encoder)

    @torch.no_grad()
    def _find_width(self) -> int:
        """Return the number of the encoder's features, known or of a cloud that it reads."""
        if self.config.encoder_width is not None:
            return self.config.encoder_width
        config = self.encoder.config
        points = torch.rand(1, 2 * config.min_points, config.in_channels, generator=torch.Generator().manual_seed(0))
        pooled = self.encoder.eval()(points.to(self.encoder.device), return_dict=True).pooler_output
        return pooled.shape[-1]

    @strict_forward
    def forward(
        self,
        points: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> PointFeaturesOutput:
        """Compute features of point clouds.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            output_hidden_states: Whether to return the encoder's hidden states for the clouds themselves; None for
                the config's choice.
            output_attentions: The same for attention weights, which only eager attention returns.

        Returns:
            `pooler_output (batch, width)`, the standardized features; of the encoder and the clouds themselves,
            `last_hidden_state`, `centers`, and on request hidden states and attention weights.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If the points have other channels or are too few, or a number is NaN, infinite or too large;
                if attention weights are requested of no encoder, or without eager attention.
        """
        config = self.config
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_attentions and self.encoder is None:
            raise ValueError(
                f"output_attentions=True with features={list(config.features)}, which have no attention; expected "
                "False"
            )
        check_channels(points, config.in_channels)
        if points.shape[1] < config.min_points:
            raise ValueError(
                f"points has shape {tuple(points.shape)}; expected (batch, points, channels) with at least "
                f"{config.min_points} points"
            )
        points = self.input_tokens(in_full_precision(points, self.dtype))
        copies = make_copies(points, config).flatten(0, 1)  # (batch * copies, points, channels)
        sets, encoded = [], None
        for name in config.features:
            if name == "descriptors":
                sets.append(describe(copies, config.up_axis, config.normals))
            else:
                encoded = self.encoder(
                    copies[..., : config.encoder_config.in_channels],
                    output_hidden_states=output_hidden_states,
                    output_attentions=output_attentions,
                    return_dict=True,
                )
                sets.append(encoded.pooler_output.float())
        features = torch.cat(sets, dim=-1).unflatten(0, (-1, config.copies)).mean(dim=1)  # (batch, width)
        features = (features - self.mean.float()) / self.scale.float()
        states = () if encoded is None else encoded

        def own(name: str) -> Any:
            """Return what the encoder says of the clouds themselves, the first copies."""
            found = states.get(name) if states else None
            if isinstance(found, tuple):
                return tuple(each[:: config.copies] for each in found)
            return None if found is None else found[:: config.copies]

        hidden = own("hidden_states")
        if output_hidden_states and encoded is None:
            hidden = (points.to(self.dtype),)
        return PointFeaturesOutput(
            own("last_hidden_state"), features.to(self.dtype), own("centers"), hidden, own("attentions")
        )


class PointFeaturesForPointCloudClassification(PointFeaturesPreTrainedModel):
    """`PointFeaturesModel` with a linear head, and an unknown score if the config has one."""

    card_info = CardInfo("classification")

    def __init__(self, config: PointFeaturesConfig, parts: Mapping[str, PreTrainedModel] | None = None):
        super().__init__(config)
        self.point_features = PointFeaturesModel(config, parts)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.unknown_score = UnknownScore(config, config.hidden_size) if config.unknown_rows else None
        self.post_init()

    @strict_forward
    def forward(
        self,
        points: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> PointCloudClassifierOutput:
        """Classify point clouds.

        Args:
            points: `(batch, points, in_channels)`, xyz first.
            labels: `(batch,)` class numbers, -100 for ignored clouds, or what `classification_loss` takes for the
                config's `problem_type`; with them `loss` is returned.
            output_hidden_states: As in `PointFeaturesModel.forward`.
            output_attentions: As in `PointFeaturesModel.forward`.

        Returns:
            `logits (batch, labels)`, and `unknown (batch,)` if the config has `unknown_rows`.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If labels and `config.problem_type` do not match; see also `PointFeaturesModel.forward`.
        """
        output = self.point_features(
            points, output_hidden_states=output_hidden_states, output_attentions=output_attentions, return_dict=True
        )
        features = in_precision_of(self.classifier, output.pooler_output)
        logits = self.classifier(features) / self.config.temperature  # (batch, labels)
        return PointCloudClassifierOutput(
            loss=classification_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            unknown=None if self.unknown_score is None else self.unknown_score(features, logits),
        )

    @torch.no_grad()
    def set_head(self, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> None:
        """Set the head, and what features are standardized by.

        Args:
            weight: `(labels, width)`.
            bias: `(labels,)`.
            mean: `(width,)`, subtracted from the features.
            scale: `(width,)`, their divisor; above 0.

        Raises:
            ValueError: If a tensor has another shape, or holds a number that is not finite.
        """
        core = self.point_features
        places = {
            "weight": self.classifier.weight,
            "bias": self.classifier.bias,
            "mean": core.mean,
            "scale": core.scale,
        }
        values = {"weight": weight, "bias": bias, "mean": mean, "scale": scale}
        for name, value in values.items():
            if value.shape != places[name].shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {tuple(places[name].shape)}")
            if not value.isfinite().all() or (name == "scale" and not (value > 0).all()):
                raise ValueError(f"{name} holds {'0 or less, or ' if name == 'scale' else ''}no finite numbers")
        for name, value in values.items():
            places[name].copy_(value)

    def fit_unknown_score(self, features: Tensor, logits: Tensor, groups: Any = None) -> None:
        """Store training features and calibrate `unknown`; see `UnknownScore.fit`."""
        score = UnknownScore(self.config, self.config.hidden_size).to(self.device, self.dtype)
        score.fit(features, logits, groups)
        self.unknown_score = score


def make_copies(points: Tensor, config: PointFeaturesConfig) -> Tensor:
    """Turn, scale and jitter clouds slightly, by the same amounts for each cloud and every call.

    Args:
        points: `(batch, points, channels)` in full precision, xyz first; with `config.normals` these are turned too.
        config: Has the settings of copies.

    Returns:
        `(batch, copies, points, channels)`; the first copy is the cloud itself.
    """
    if config.copies == 1:
        return points.unsqueeze(1)
    device, kind = points.device, points.dtype
    number = torch.arange(config.copies - 1, device=device, dtype=torch.float64) + 1
    turn = math.radians(config.copy_turn) * (2 * _spread(number, 0) - 1)
    low, high = config.copy_scale
    factors = torch.stack([low + (high - low) * _spread(number, 1 + axis) for axis in range(3)], -1)  # (copies - 1, 3)
    up = "xyz".index(config.up_axis)
    first, second = (up + 1) % 3, (up + 2) % 3
    cosine, sine = turn.cos().to(kind)[:, None], turn.sin().to(kind)[:, None]

    def turned(vectors: Tensor) -> Tensor:
        # (batch, points, 3) to (batch, copies - 1, points, 3)
        x, y = vectors[:, None, :, first], vectors[:, None, :, second]
        axes: list[Tensor] = [vectors] * 3
        axes[first], axes[second] = cosine * x - sine * y, sine * x + cosine * y
        axes[up] = vectors[:, None, :, up].expand_as(axes[first])
        return torch.stack(axes, dim=-1)

    xyz = points[..., :3]
    changed = turned(xyz) * factors.to(kind)[:, None, :]
    if config.copy_jitter:
        place = torch.arange(xyz.shape[1], device=device, dtype=torch.float64)
        noise = torch.stack(
            [_spread(place[None] + 1, 4 + axis, number[:, None]) for axis in range(3)], dim=-1
        )  # (copies - 1, points, 3)
        center = xyz.mean(dim=1, keepdim=True)
        radius = (xyz - center).square().sum(-1).amax(dim=1).sqrt()[:, None, None, None]
        changed = changed + (2 * noise - 1).to(kind) * (config.copy_jitter * radius)
    others = points[:, None, :, 3:].expand(-1, config.copies - 1, -1, -1)
    if config.normals:
        others = torch.cat([turned(points[..., 3:6]), others[..., 3:]], dim=-1)
    copies = torch.cat([changed, others], dim=-1)
    return torch.cat([points.unsqueeze(1), copies], dim=1)


def _spread(number: Tensor, sequence: int, shift: Tensor | float = 0.0) -> Tensor:
    """Return numbers from 0 to 1 that are spread evenly: fractions of the multiples of an irrational number.

    A generator would give other numbers on other devices, and none in an exported program.
    """
    value = number * _STEPS[sequence] + shift * _STEPS[(sequence + 1) % len(_STEPS)]
    return value - value.floor()
