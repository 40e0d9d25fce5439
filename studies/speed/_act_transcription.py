"""A pretraining step of ACT, written as the method is described, for the benchmark to compare with.

Channels come before points, layers on points are 1x1 convolutions, the maximum of a patch is repeated for each of its
points, every edge of a graph is a row, a code is a one-hot row times the codebook, attention is a matrix of weights,
prompts go through every layer, and losses are summed over clouds one by one. It uses the parameters of an
`ActForPreTraining`, so that gradients can be compared number by number.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from hf_any3d.modeling.act import ActForPreTraining
from hf_any3d.modeling.act.modeling_act_autoencoder import GraphConvolution
from hf_any3d.modeling.encoders import find_family, hidden_of
from hf_any3d.modeling.point_encoders.patches import PatchEncoder
from hf_any3d.modeling.point_encoders.point_transformer import PointBlock


def pretraining_loss(
    model: ActForPreTraining, points: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the loss of `model(points, mask, noise)` with a cosine loss and prompts for every layer of the teacher.

    Args:
        model: Model whose weights are used.
        points: `(batch, points, 3)`.
        mask: `(batch, groups)`, True where hidden.
        noise: `(batch, groups, codes)`, Gumbel noise of the targets.
    """
    config = model.config
    neighborhoods, centers = group_points(points, config.num_groups, config.group_size)
    predictions = student_predictions(model, neighborhoods, centers, mask)
    with torch.no_grad():
        features = teacher_features(model, neighborhoods, centers, noise)
        batch, _, width = features.shape
        targets = features[mask].reshape(batch, -1, width)
    loss = 0.0
    for prediction, target in zip(predictions, targets, strict=True):
        loss = loss + 1 - F.cosine_similarity(prediction, target, dim=-1).mean()
    return loss / batch


def group_points(points: torch.Tensor, num_groups: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute neighborhoods `(batch, groups, neighbors, 3)` and centers `(batch, groups, 3)`."""
    batch, count, _ = points.shape
    clouds = torch.arange(batch, device=points.device)
    far = points.new_full((batch, count), 1e10)
    chosen = torch.zeros(batch, dtype=torch.long, device=points.device)
    index = []
    for _ in range(num_groups):
        index.append(chosen)
        far = torch.minimum(far, ((points - points[clouds, chosen].unsqueeze(1)) ** 2).sum(dim=-1))
        chosen = far.argmax(dim=-1)
    centers = points[clouds.unsqueeze(1), torch.stack(index, dim=1)]
    distances = torch.cdist(centers, points, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(group_size, dim=-1, largest=False).indices  # (batch, groups, neighbors)
    neighborhoods = points[clouds[:, None, None], nearest] - centers.unsqueeze(2)
    return neighborhoods, centers


def patch_tokens(encoder: PatchEncoder, neighborhoods: torch.Tensor) -> torch.Tensor:
    """Run the mini-PointNet; returns `(batch, groups, width)`."""
    batch, groups, size, _ = neighborhoods.shape
    rows = neighborhoods.reshape(batch * groups, size, 3).transpose(2, 1)  # (batch * groups, 3, neighbors)
    rows = convolution(encoder.widen, F.relu(encoder.lift_norm(convolution(encoder.lift, rows))))
    pooled = rows.max(dim=2, keepdim=True).values
    rows = torch.cat([pooled.expand(-1, -1, size), rows], dim=1)
    rows = convolution(encoder.out, F.relu(encoder.join_norm(convolution(encoder.join, rows))))
    return rows.max(dim=2).values.reshape(batch, groups, -1)


def convolution(linear: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """Apply a linear layer as a 1x1 convolution over `(batch, channels, places)`."""
    return F.conv1d(rows, linear.weight.unsqueeze(-1), linear.bias)


def student_predictions(
    model: ActForPreTraining, neighborhoods: torch.Tensor, centers: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Predict the features of masked patches, `(batch, masked, width)`."""
    act = model.act
    batch = len(centers)
    tokens = patch_tokens(act.patch_encoder, neighborhoods)
    width = tokens.shape[-1]
    visible = tokens[~mask].reshape(batch, -1, width)
    seen, unseen = centers[~mask].reshape(batch, -1, 3), centers[mask].reshape(batch, -1, 3)
    tokens = torch.cat([act.class_token.token.expand(batch, 1, -1), visible], dim=1)
    positions = torch.cat([act.class_token.position.expand(batch, 1, -1), act.position_embed(seen)], dim=1)
    for block in act.blocks.layers:
        tokens = run_block(block, tokens + positions)
    visible = act.norm(tokens)[:, 1:]
    masked = unseen.shape[1]
    tokens = torch.cat([visible, model.mask_token.expand(batch, masked, -1)], dim=1)
    positions = torch.cat([model.decoder_position_embed(seen), model.decoder_position_embed(unseen)], dim=1)
    for block in model.decoder.layers:
        tokens = run_block(block, tokens + positions)
    return model.prediction_head(model.decoder_norm(tokens[:, -masked:]))


def run_block(block: PointBlock, tokens: torch.Tensor) -> torch.Tensor:
    """Run a pre-norm block on `(batch, tokens, width)`."""
    attention = block.attention
    batch, count, width = tokens.shape
    heads = attention.qkv(block.norm1(tokens)).reshape(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = heads[0], heads[1], heads[2]
    weights = (query @ key.transpose(-2, -1) * attention.scaling).softmax(dim=-1)
    mixed = attention.proj((weights @ value).transpose(1, 2).reshape(batch, count, width))
    tokens = tokens + block.drop_path(mixed)
    return tokens + block.drop_path(block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(tokens)))))


def teacher_features(
    model: ActForPreTraining, neighborhoods: torch.Tensor, centers: torch.Tensor, noise: torch.Tensor | None
) -> torch.Tensor:
    """Compute the autoencoder's features of all patches, `(batch, groups, width)`."""
    autoencoder = model.autoencoder
    tokens = patch_tokens(autoencoder.patch_encoder, neighborhoods)
    logits = graph_convolution(autoencoder.graph_encoder, tokens, centers)
    scores = (logits if noise is None else logits + noise).softmax(dim=-1)
    one_hot = torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
    codes = one_hot - scores.detach() + scores  # (batch, groups, codes)
    tokens = torch.einsum("bgn,nc->bgc", codes, autoencoder.codebook.weight)
    tokens = run_teacher(model, autoencoder.teacher_in(tokens), autoencoder.position_embed(centers))
    return graph_convolution(autoencoder.graph_decoder, autoencoder.teacher_out(tokens), centers)


def run_teacher(model: ActForPreTraining, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Run the teacher over prompts and tokens; returns `(batch, groups, teacher width)` without the prompts."""
    autoencoder, config = model.autoencoder, model.autoencoder.config
    encoder, prompts, batch = autoencoder.encoder, autoencoder.prompts, len(tokens)
    family, count = find_family(encoder.config), prompts.tokens.shape[1]
    sequence = torch.cat([prompts.dropout(prompts.tokens[0].expand(batch, -1, -1)), tokens], dim=1)
    input_norm = family.norm_of(encoder, family.input_norm) if config.use_input_norm else None
    sequence = sequence if input_norm is None else input_norm(sequence)
    attention, encoder.config._attn_implementation = encoder.config._attn_implementation, "eager"
    for number, layer in enumerate(family.layers_of(encoder)):
        if number:
            front = prompts.dropout(prompts.tokens[number].expand(batch, -1, -1))
            sequence = torch.cat([front, sequence[:, count:]], dim=1)
        places = torch.cat([prompts.positions[number].expand(batch, -1, -1), positions], dim=1)
        sequence = hidden_of(layer(sequence + places, attention_mask=None))
    encoder.config._attn_implementation = attention
    sequence = sequence[:, count:]
    final_norm = family.norm_of(encoder, family.final_norm) if config.use_final_norm else None
    return sequence if final_norm is None else final_norm(sequence)


def graph_convolution(graph: GraphConvolution, tokens: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Run edge convolutions over the 4 nearest centers; returns `(batch, groups, width)`."""
    tokens = convolution(graph.input, tokens.transpose(1, 2))  # (batch, channels, groups)
    nearest = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist").topk(4, largest=False).indices
    outputs = []
    for layer in graph.layers:
        batch, channels, groups = tokens.shape
        rows = tokens.transpose(1, 2)
        clouds = torch.arange(batch, device=tokens.device)[:, None, None]
        neighbors = rows[clouds, nearest]  # (batch, groups, 4, channels)
        itself = rows.unsqueeze(2).expand(-1, -1, 4, -1)
        edges = torch.cat([neighbors - itself, itself], dim=-1).permute(0, 3, 1, 2)  # (batch, 2 channels, groups, 4)
        edges = F.conv2d(edges, layer.linear.weight[:, :, None, None])
        tokens = F.leaky_relu(layer.norm(edges), 0.2).max(dim=-1).values
        outputs.append(tokens)
    rows = F.conv1d(torch.cat(outputs, dim=1), graph.output.weight.unsqueeze(-1))
    return F.leaky_relu(graph.norm(rows), 0.2).transpose(1, 2)
