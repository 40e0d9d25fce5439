"""ACT's classifier in torch alone, which opens in half the time of a model of transformers.

It computes what `ActForPointCloudClassification` does with a class token and without adapters.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.layers.heads import PROMPT_POOLING, ClassificationHead, ClassToken, pool
from hf_any3d.modeling.layers.unknown_score import (
    PointCloudClassifierOutput,
    UnknownScore,
    UnknownScoreConfigMixin,
    UnknownScoreMixin,
)
from hf_any3d.modeling.point_encoders.patches import PatchEncoder, cut_patches


class _Block(nn.Module):
    """Attention and MLP, each with a norm before and a residual connection; names are those of `PointBlock`."""

    def __init__(self, config: ActConfig):
        super().__init__()
        width, hidden = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width, bias=config.qkv_bias), "proj": nn.Linear(width, width)}
        )
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, width = tokens.shape
        heads = self.attention["qkv"](self.norm1(tokens)).view(batch, count, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (batch, heads, tokens, width / heads) each
        scale = (width // self.heads) ** -0.5
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
        tokens = tokens + self.attention["proj"](mixed.transpose(1, 2).reshape(batch, count, width))
        return tokens + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(tokens))))


class ActEncoderNetwork(nn.Module):
    """`ActModel`, from points to pooled features."""

    def __init__(self, config: ActConfig):
        super().__init__()
        if PROMPT_POOLING & {*config.pooling}:
            raise ValueError(f"pooling={list(config.pooling)}: prompts are of adapters; expected cls, max or mean")
        self.config = config
        width = config.hidden_size
        self.patch_encoder = PatchEncoder(
            config.in_channels, width, config.patch_widths, pooled_width=config.patch_pooled_width
        )
        self.class_token = ClassToken(width)
        self.position_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.blocks = nn.ModuleDict({"layers": nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))})
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Encode clouds `(batch, points, channels)`: `(batch, features)`."""
        patches = cut_patches(points, self.config, torch.float32)
        return self.encode(patches.neighborhoods, patches.centers)

    def encode(self, neighborhoods: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        """Encode patches `(batch, groups, neighbors, channels)` with their centers: `(batch, features)`."""
        tokens = self.patch_encoder(neighborhoods)  # (batch, groups, hidden)
        tokens, positions = self.class_token(tokens, self.position_embed(centers))
        for block in self.blocks["layers"]:  # pyright: ignore[reportGeneralTypeIssues]
            # Before each of them
            tokens = block(tokens + positions)
        return pool(self.norm(tokens), self.config.pooling)


class ActClassifierNetwork(UnknownScoreMixin, nn.Module):
    """A saved `ActForPointCloudClassification` without what training, hub and devices need."""

    dtype = torch.float32
    device = torch.device("cpu")
    config_class = ActConfig
    # The fields of the config that have a meaning here; others may only have their usual values.
    reads = frozenset(
        {
            *("in_channels", "num_groups", "group_size", "patch_widths", "patch_pooled_width", "hidden_size"),
            *("num_hidden_layers", "num_attention_heads", "mlp_ratio", "qkv_bias", "layer_norm_eps", "pooling"),
            *("sampling_min_squared_norm", "head_widths", "head_bias", "head_activation", "head_norm"),
            *inspect.get_annotations(UnknownScoreConfigMixin),
            *("expected_pose", "averaged_headings"),
        }
    )

    def __init__(self, config: ActConfig):
        super().__init__()
        self.config = config
        self.name_or_path = ""
        self.act = ActEncoderNetwork(config)
        features = len(config.pooling) * config.hidden_size
        self.classifier = ClassificationHead(
            features,
            config.num_labels,
            config.head_widths,
            bias=config.head_bias,
            activation=config.head_activation,
            norm=config.head_norm,
        )
        self.unknown_score = UnknownScore.of_config(config, features)

    def forward(self, points: torch.Tensor) -> PointCloudClassifierOutput:
        """Classify clouds `(batch, points, channels)`, without gradients."""
        features = self.act(points)
        logits = self.classifier(features)
        return PointCloudClassifierOutput(None, logits, unknown=self.score_unknown(features, logits))
