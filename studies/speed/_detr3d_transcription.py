"""A training step of 3DETR-m as the method is described, for the benchmark to compare with.

Channels come before points, layers on points are 1x1 convolutions over every neighbor of every center, neighbors come
from the matrix of all distances, attention keeps its matrix of weights, and the criterion runs layer by layer. It uses
the parameters of a model, so that loss and gradients can be compared number by number; dropout is that of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.detr3d.losses import BoxPredictions, BoxTargets, detection_loss
from hf_any3d.modeling.layers.boxes import wrap_heading
from hf_any3d.modeling.point_ops import farthest_point_sample

LOWEST = -1e9


def training_loss(
    model: Detr3DForPointCloudObjectDetection, points: torch.Tensor, labels: Sequence[Mapping[str, torch.Tensor]]
) -> torch.Tensor:
    """Compute the loss of `model(points=points, labels=labels)`.

    Args:
        model: A detector with the masked encoder, in training mode.
        points: `(batch, points, 3)`.
        labels: `class_labels (objects,)` and `boxes (objects, 7)` of each cloud.
    """
    base, config = model.detr3d, model.config
    radii = config.attention_radii
    assert radii is not None
    low, high = points.min(dim=1, keepdim=True).values, points.max(dim=1, keepdim=True).values
    extent = (high - low).clamp_min(config.min_extent)
    features, centers = set_abstraction(base.group_encoder, points, None)  # (batch, width, tokens)
    for number, layer in enumerate(base.encoder.layers):
        if number == 1:
            features, centers = set_abstraction(base.encoder.downsampling, centers, features)
        apart = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist") >= radii[number]
        features = encoder_layer(layer, features.transpose(1, 2), LOWEST * apart.float()).transpose(1, 2)
    memory = features
    for layer in base.memory_projection:
        memory = convolution(layer, memory)
    memory = memory.transpose(1, 2)  # (batch, tokens, hidden)
    queries = gather(centers, farthest_point_sample(centers, config.num_queries))
    memory_places, query_places = (fourier(base.positions, (places - low) / extent) for places in (centers, queries))
    query_places = base.positions.projection(query_places)
    content = torch.zeros_like(query_places)
    states = []
    for layer in base.layers:
        content = decoder_layer(layer, content, query_places, memory, memory_places)
        states.append(base.layer_norm(content))
    predictions = predict(model, torch.stack(states), queries, low, extent)
    targets = BoxTargets.checked(labels, len(points), config)
    losses = []
    for number in range(len(states)):
        own = BoxPredictions(*(values[number : number + 1] for values in predictions))
        losses.append(detection_loss(own, targets, low, extent, config)[0])
    return torch.stack(losses).sum()


def gather(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return rows of `(batch, points, channels)` by indices `(batch, ...)`."""
    clouds = torch.arange(len(values)).view(-1, *[1] * (index.ndim - 1))
    return values[clouds, index]


def set_abstraction(level: Any, xyz: torch.Tensor, features: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Group the points around sampled centers; returns features `(batch, width, centers)` and centers."""
    centers = gather(xyz, farthest_point_sample(xyz, level.num_centers))
    distances = torch.cdist(centers, xyz, compute_mode="donot_use_mm_for_euclid_dist")
    near = distances.topk(min(level.num_neighbors, xyz.shape[1]), dim=-1, largest=False)
    index = torch.where(near.values <= level.radius, near.indices, near.indices[..., :1])  # (batch, centers, k)
    rows = ((gather(xyz, index) - centers.unsqueeze(2)) / level.radius).permute(0, 3, 1, 2)  # (batch, 3, centers, k)
    if features is not None:
        rows = torch.cat([rows, gather(features.transpose(1, 2), index).permute(0, 3, 1, 2)], dim=1)
    for layer in level.layers:
        rows = F.conv2d(rows, layer.linear.weight[:, :, None, None])
        rows = torch.relu(batch_norm(layer.norm, rows))
    return rows.max(dim=3).values, centers


def batch_norm(norm: Any, values: torch.Tensor) -> torch.Tensor:
    """Normalize channels that come second, without touching the running statistics."""
    return F.batch_norm(values, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def convolution(layer: Any, values: torch.Tensor) -> torch.Tensor:
    """Run a shared layer on `(batch, channels, places)`."""
    return torch.relu(batch_norm(layer.norm, F.conv1d(values, layer.linear.weight.unsqueeze(-1))))


def fourier(positions: Any, places: torch.Tensor) -> torch.Tensor:
    """Embed places `(batch, places, 3)`."""
    angles = (2 * math.pi * places.unsqueeze(-1) * positions.frequencies).sum(dim=-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def attention(
    module: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend with a matrix of weights; the mask `(batch, queries, keys)` is added to the products."""
    query, key, value = (
        layer(rows).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)  # (batch, heads, rows, width / heads)
        for layer, rows in ((module.q_proj, queries), (module.k_proj, keys), (module.v_proj, values))
    )
    scores = query @ key.transpose(-2, -1) * module.scaling  # (batch, heads, queries, keys)
    if mask is not None:
        scores = scores + mask.unsqueeze(1)
    weights = F.dropout(scores.softmax(dim=-1), module.dropout)
    return module.out_proj((weights @ value).transpose(1, 2).flatten(2))


def encoder_layer(layer: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run a layer of the encoder on `(batch, tokens, width)`."""
    normed = layer.self_attn_layer_norm(tokens)
    tokens = tokens + layer.dropout(attention(layer.self_attn, normed, normed, normed, mask))
    return tokens + layer.dropout(feed_forward(layer.mlp, layer.final_layer_norm(tokens)))


def feed_forward(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Run two linear layers with a ReLU and dropout between them."""
    return module.fc2(module.dropout(torch.relu(module.fc1(rows))))


def decoder_layer(
    layer: Any, content: torch.Tensor, places: torch.Tensor, memory: torch.Tensor, memory_places: torch.Tensor
) -> torch.Tensor:
    """Run a layer of the decoder on queries `(batch, queries, hidden)`."""
    normed = layer.self_attn_layer_norm(content)
    content = content + layer.dropout(attention(layer.self_attn, normed + places, normed + places, normed))
    normed = layer.encoder_attn_layer_norm(content)
    read = attention(layer.encoder_attn, normed + places, memory + memory_places, memory)
    content = content + layer.dropout(read)
    return content + layer.dropout(feed_forward(layer.mlp, layer.final_layer_norm(content)))


def predict(
    model: Detr3DForPointCloudObjectDetection,
    states: torch.Tensor,
    queries: torch.Tensor,
    low: torch.Tensor,
    extent: torch.Tensor,
) -> BoxPredictions:
    """Run the heads on the states `(layers, batch, queries, hidden)` of all layers, with channels first."""
    layers, batch = states.shape[:2]
    rows = states.flatten(0, 1).transpose(1, 2)  # (layers * batch, hidden, queries)
    heads = (model.class_head, model.center_head, model.size_head)
    logits, offset, size, bins, residuals = (
        head_of(head, rows).transpose(1, 2).unflatten(0, (layers, batch))
        for head in (*heads, model.heading_class_head, model.heading_residual_head)
    )
    reach = model.config.max_center_offset
    placed = queries + (2 * offset.sigmoid() - 1) * reach
    sizes, count = size.sigmoid(), bins.shape[-1]
    best = bins.argmax(dim=-1, keepdim=True)
    chosen = residuals.gather(-1, best) * (math.pi / count) + best * (2 * math.pi / count)
    boxes = torch.cat([placed, sizes * extent, wrap_heading(chosen)], dim=-1)
    return BoxPredictions(logits, (placed - low) / extent, sizes, bins, residuals, boxes)


def head_of(head: Any, rows: torch.Tensor) -> torch.Tensor:
    """Run a head on `(layers * batch, hidden, queries)`."""
    for linear, norm, dropout in zip(head.hidden, head.norms, head.dropouts, strict=True):
        rows = dropout(torch.relu(batch_norm(norm, F.conv1d(rows, linear.weight.unsqueeze(-1)))))
    return F.conv1d(rows, head.out.weight.unsqueeze(-1), head.out.bias)


class BareLayers(nn.Module):
    """Stock layers of torch, as wide and as many as those of a detector, without what makes tokens and boxes.

    Args:
        model: The detector.
    """

    def __init__(self, model: Detr3DForPointCloudObjectDetection):
        super().__init__()
        config = model.config
        shared: dict[str, Any] = {"batch_first": True, "norm_first": True}
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.encoder_hidden_size,
                config.encoder_attention_heads,
                config.encoder_ffn_dim,
                config.encoder_dropout,
                **shared,
            )
            for _ in range(config.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(
                config.hidden_size, config.decoder_attention_heads, config.decoder_ffn_dim, config.dropout, **shared
            )
            for _ in range(config.decoder_layers)
        )

    def forward(self, tokens: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """Run on tokens `(batch, tokens, width)`, half of them after the first layer, and queries."""
        for number, layer in enumerate(self.encoder):
            tokens = layer(tokens[:, : tokens.shape[1] // 2] if number == 1 else tokens)
        for layer in self.decoder:
            queries = layer(queries, tokens)
        return queries
