"""A training step of Any2Point as the method is described, for the benchmark to compare with.

The released configuration for CLIP and ScanObjectNN. Channels come before points, layers on points are 1x1
convolutions over every neighbor of every center, features of a center are repeated for each of its neighbors, every
stage samples its centers again, views are computed one after the other, attention within cells is a full matrix of
weights with a mask, and the cells of all views are rows of tables with empty ones. It uses the parameters of a model
under guided adapters, so that loss and gradients can be compared number by number.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn import functional as F

from hf_any3d.modeling.any2point.point_tokenizer import ALPHA, BETA
from hf_any3d.modeling.any2point.virtual_projection import VIEW_ROTATIONS
from hf_any3d.modeling.point_ops import farthest_point_sample

MASKED = -1e5


def training_loss(model: PeftModel, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the loss of `model(points=points, labels=labels)`.

    Args:
        model: Any2Point's classifier with the settings of `VARIANTS["clip-scan"]`, in training mode.
        points: `(batch, points, 3)`.
        labels: `(batch,)`.
    """
    classifier = model.get_base_model()
    base = classifier.any2point
    config, batch = base.config, len(points)
    tokens, centers = tokenize(trained(base.point_tokenizer), points)  # (batch, tokens, hidden), (batch, tokens, 3)
    table = base.family.positions_of(base.encoder).weight  # (entries, hidden)
    line = line_places(centers, config.line_direction, len(table))
    embedding = line_embedding(table, line)  # (batch, tokens, hidden)
    class_token = trained(base.class_token)
    hidden = torch.cat([class_token.token.expand(batch, 1, -1), tokens], dim=1)
    positions = torch.cat([class_token.position.expand(batch, 1, -1), embedding], dim=1)
    hidden = hidden + positions
    attention = None
    for layer in base.family.layers_of(base.encoder):
        hidden = frozen_layer(layer, hidden + positions)
        if "default" in layer.guided_adapter_attention:
            attention = layer.guided_adapter_attention["default"]
        guided = aggregate(layer, attention, hidden[:, 1:], centers, line, len(table))
        hidden = torch.cat([hidden[:, :1], guided], dim=1)
    hidden = trained(base.output_norm)(hidden)
    pooled = torch.cat([hidden[:, 1:].max(dim=1).values, hidden[:, 0]], dim=-1)
    head = trained(classifier.classifier)
    for linear, norm, dropout in zip(head.hidden, head.norms, head.dropouts, strict=True):
        pooled = dropout(torch.relu(norm(linear(pooled))))
    return F.cross_entropy(head.out(pooled), labels)


def trained(module: nn.Module) -> Any:
    """Return the trained copy of a module that PEFT saves in full."""
    return module.modules_to_save["default"] if isinstance(module, ModulesToSaveWrapper) else module


def tokenize(tokenizer: Any, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the stages of the tokenizer; returns tokens `(batch, tokens, hidden)` and centers `(batch, tokens, 3)`."""
    config = tokenizer.config
    xyz = points
    rows = F.conv1d(xyz.transpose(1, 2), tokenizer.embed.weight.unsqueeze(-1))
    features = torch.relu(tokenizer.embed_norm(rows)).transpose(1, 2)  # (batch, points, width)
    count = config.num_tokens << (config.num_stages - 1)
    for stage in tokenizer.stages:
        index = farthest_point_sample(xyz, count, min_squared_norm=config.released.sampling_min_squared_norm)
        centers, own = gather(xyz, index), gather(features, index)
        near = nearest(centers, xyz, config.tokenizer_neighbors)  # (batch, centers, k)
        offsets = gather(xyz, near) - centers.unsqueeze(2)  # (batch, centers, k, 3)
        offsets = offsets / (offsets.abs().max(dim=2, keepdim=True).values + config.released.offset_eps)
        around = gather(features, near)  # (batch, centers, k, width / 2)
        joined = torch.cat([around, own.unsqueeze(2).expand_as(around)], dim=-1)
        joined = joined + sinusoid(offsets, joined.shape[-1], ALPHA, BETA)
        features = residual_blocks(stage, joined).transpose(1, 2)  # (batch, centers, width)
        xyz, count = centers, count // 2
    return features, xyz


def residual_blocks(stage: Any, rows: torch.Tensor) -> torch.Tensor:
    """Run the blocks of a stage on `(batch, centers, k, width)` and pool: `(batch, width, centers)`."""
    batch, centers, count, width = rows.shape
    rows = rows.permute(0, 3, 2, 1).reshape(batch, width, count * centers)  # (batch, width, k * centers)
    for block in stage.blocks:
        hidden = F.conv1d(rows, block.reduce.weight.unsqueeze(-1), block.reduce.bias)
        hidden = torch.relu(block.reduce_norm(hidden))
        hidden = F.conv1d(hidden, block.expand.weight.unsqueeze(-1), block.expand.bias)
        rows = torch.relu(block.expand_norm(hidden) + rows)
    return rows.view(batch, width, count, centers).max(dim=2).values


def gather(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return rows of `(batch, points, channels)` by indices `(batch, ...)`."""
    clouds = torch.arange(len(values), device=values.device).view(-1, *[1] * (index.ndim - 1))
    return values[clouds, index]


def nearest(centers: torch.Tensor, points: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices of the nearest points from the matrix of all distances, `(batch, centers, count)`."""
    distances = torch.cdist(centers, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.topk(count, dim=-1, largest=False).indices


def sinusoid(offsets: torch.Tensor, width: int, alpha: float, beta: float) -> torch.Tensor:
    """Encode offsets `(batch, centers, k, 3)` as sines and cosines of each axis, `(batch, centers, k, width)`."""
    count = width // 6
    powers = alpha ** (torch.arange(count, device=offsets.device) / count)
    phase = beta * offsets.unsqueeze(-1) / powers  # (batch, centers, k, 3, frequencies)
    return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2)


@torch.no_grad()
def line_places(centers: torch.Tensor, direction: Any, length: int) -> torch.Tensor:
    """Project centers on the line, one view after the other: `(batch, views, tokens)`."""
    unit = torch.tensor(direction, dtype=torch.float32, device=centers.device)
    unit = unit / unit.norm()
    places = []
    for rotation in VIEW_ROTATIONS:
        rotated = centers @ centers.new_tensor(rotation).T
        along = ((rotated - rotated.mean(dim=1, keepdim=True)) * unit).sum(dim=-1)  # (batch, tokens)
        low, high = along.min(dim=1, keepdim=True).values, along.max(dim=1, keepdim=True).values
        places.append(((along - low) / (high - low) * length - 0.5).remainder(length))
    return torch.stack(places, dim=1)


def line_embedding(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Interpolate positions, stretched over the batch; the mean over the views, `(batch, tokens, hidden)`."""
    last = len(table) - 1
    places = places * last / (places.max() - places.min())
    low, high = places.floor().clamp(0, last), places.ceil().clamp(0, last)
    vectors = (high - places).unsqueeze(-1) * table[low.long()] + (places - low).unsqueeze(-1) * table[high.long()]
    return vectors.mean(dim=1)


def frozen_layer(wrapped: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Run a layer of CLIP over the clouds of the batch, and the bottleneck on its feed-forward branch.

    Args:
        wrapped: The layer under a guided adapter.
        hidden: `(batch, sequence, hidden)`.
    """
    layer = wrapped.base_layer
    attention, heads = layer.self_attn, layer.self_attn.num_heads
    normed = layer.layer_norm1(hidden).transpose(0, 1)  # (sequence, batch, hidden), attended along the batch
    query, key, value = (
        F.linear(normed, part.weight, part.bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    hidden = hidden + F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias).transpose(0, 1)
    normed = layer.layer_norm2(hidden)
    wide = F.linear(normed, layer.mlp.fc1.weight, layer.mlp.fc1.bias)
    branch = F.linear(wide * torch.sigmoid(1.702 * wide), layer.mlp.fc2.weight, layer.mlp.fc2.bias)
    down, up = wrapped.guided_adapter_down["default"], wrapped.guided_adapter_up["default"]
    narrow = down(branch)
    narrow = wrapped.guided_adapter_dropout["default"](narrow * torch.sigmoid(1.702 * narrow))
    return hidden + branch + wrapped.configs["default"].bottleneck_scale * up(narrow)


def aggregate(
    layer: Any, attention: Any, tokens: torch.Tensor, centers: torch.Tensor, places: torch.Tensor, length: int
) -> torch.Tensor:
    """Aggregate tokens by their cells in every view, `(batch, tokens, hidden)`.

    Args:
        layer: The layer under a guided adapter.
        attention: The attention within cells that all layers share.
        tokens: `(batch, tokens, hidden)`.
        centers: `(batch, tokens, 3)`.
        places: `(batch, views, tokens)`, on a line.
        length: Of that line.
    """
    guidance = layer.guidance["default"]
    norm = layer.guided_adapter_voxel_norm["default"]
    voxel = voxel_features(norm, tokens, centers, guidance.voxel_size)  # (batch, tokens, hidden)
    cells = (places / guidance.cell_size).floor().long()  # (batch, views, tokens)
    count = math.ceil(length / guidance.cell_size)
    features, weights = [], []
    for view in range(places.shape[1]):
        attended = tokens + cell_attention(attention, view, tokens, cells[:, view])
        seen = cell_features(layer.guided_adapter_view_norm["default"], view, attended, cells[:, view], count)
        features.append(seen)
        weights.append((1 + F.cosine_similarity(seen, voxel, dim=-1)) / 2)
    shares = torch.stack(weights)
    shares = shares / shares.sum(dim=0)
    return tokens + guidance.scale * (shares.unsqueeze(-1) * torch.stack(features)).sum(dim=0)


def cell_attention(attention: Any, view: int, tokens: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """Attend to the tokens of the same cell of a view with a matrix of all pairs, `(batch, tokens, hidden)`."""
    normed = F.layer_norm(tokens, tokens.shape[-1:], attention.norm_weight[view], attention.norm_bias[view])
    qkv = F.linear(normed, attention.qkv_weight[view], attention.qkv_bias[view])
    width = qkv.shape[-1] // 3
    query, key, value = qkv.unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1) * width**-0.5  # (batch, heads, tokens, tokens)
    apart = cell.unsqueeze(2) != cell.unsqueeze(1)
    weights = (scores + MASKED * apart.unsqueeze(1)).softmax(dim=-1)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    return F.linear(mixed, attention.out_weight[view], attention.out_bias[view])


def cell_features(norm: Any, view: int, tokens: torch.Tensor, cell: torch.Tensor, count: int) -> torch.Tensor:
    """Average the tokens of each cell, normalize all cells of the batch, empty ones too, and hand them back."""
    batch, number, width = tokens.shape
    row = (cell + count * torch.arange(batch, device=cell.device).unsqueeze(1)).flatten()
    ones = tokens.new_zeros(batch * count, 1).index_add(0, row, tokens.new_ones(len(row), 1)).clamp(min=1)
    pooled = tokens.new_zeros(batch * count, width).index_add(0, row, tokens.flatten(0, 1)) / ones
    normed = F.batch_norm(pooled, None, None, norm.weight[view], norm.bias[view], training=True, eps=norm.eps)
    return F.gelu(normed)[row].view(batch, number, width)


def voxel_features(norm: Any, tokens: torch.Tensor, centers: torch.Tensor, edge: float) -> torch.Tensor:
    """Pool the tokens of each voxel, maximum plus mean, normalize, and hand them back."""
    batch, number, width = tokens.shape
    steps = ((centers - centers.min(dim=1, keepdim=True).values) / edge).long()  # (batch, tokens, 3)
    clouds = torch.arange(batch, device=steps.device).view(-1, 1, 1).expand(-1, number, 1)
    row = torch.cat([clouds, steps], dim=-1).flatten(0, 1).unique(dim=0, return_inverse=True)[1]
    rows, values = int(row.max()) + 1, tokens.flatten(0, 1)
    where = row.unsqueeze(1).expand_as(values)
    largest = values.new_zeros(rows, width).scatter_reduce(0, where, values, "amax", include_self=False)
    counts = values.new_zeros(rows, 1).index_add(0, row, values.new_ones(len(row), 1))
    pooled = largest + values.new_zeros(rows, width).index_add(0, row, values) / counts
    normed = F.batch_norm(pooled, None, None, norm.weight[0], norm.bias[0], training=True, eps=norm.eps)
    return F.gelu(normed)[row].view(batch, number, width)
