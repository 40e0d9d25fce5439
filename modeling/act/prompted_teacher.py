"""Run a frozen transformer on the tokens of a cloud, with learned prompts.

The tokens have no positions in a text or an image: learned positions of their centres are added to them instead. For
encoders that use positions in their attention, all tokens therefore get the same position. Rotations of queries and
keys then cancel, and so does a bias that depends on the distance only; where content and distance are combined
(DeBERTa), every pair has distance 0. Attention depends on content only, not on the order of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from hf_any3d.modeling.act.configuration_act_autoencoder import ActAutoencoderConfig
from hf_any3d.modeling.encoders import (
    EncoderFamily,
    LayerPass,
    TokenPlaces,
    attended_rows,
    beside_attended_rows,
    bidirectional_inputs,
    hidden_of,
    run_beside,
)


class Prompts(nn.Module):
    """Learned tokens before those of a cloud, with learned positions.

    Args:
        depth: Number of layers with their own prompts: 1, or all.
        count: Prompts per layer.
        width: Channels of a token.
        dropout: Dropout of the tokens in training; positions have none.

    Source: Visual Prompt Tuning (arXiv 2203.12119).
    """

    def __init__(self, depth: int, count: int, width: int, dropout: float):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(depth, count, width))
        self.positions = nn.Parameter(torch.zeros(depth, count, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, level: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens `(1 or batch, prompts, width)` and positions `(1, prompts, width)` of a layer's prompts.

        The tokens are the same for all clouds of a batch, except for dropout.
        """
        tokens, positions = self.tokens[level : level + 1], self.positions[level : level + 1]
        if self.training and self.dropout.p:
            tokens = self.dropout(tokens.expand(batch, -1, -1))
        return tokens, positions


def run_with_prompts(
    encoder: PreTrainedModel,
    family: EncoderFamily,
    prompts: Prompts | None,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    config: ActAutoencoderConfig,
    recompute: Callable | None = None,
    states: list[torch.Tensor] | None = None,
    record_attention: bool = False,
) -> torch.Tensor:
    """Run tokens through the layers of a frozen encoder.

    If prompts are discarded after a layer, the layer computes only keys and values for them, if supported.

    Args:
        encoder: The encoder.
        family: Its encoder family.
        prompts: Prompts of its first layer or of all layers, or None.
        tokens: `(batch, tokens, hidden)`.
        positions: `(batch, tokens, hidden)`, added to the tokens.
        config: Defines where positions are added, which norms are applied, and along which axis attention runs.
        recompute: Function that calls a layer with gradient checkpointing; None for no checkpointing.
        states: List to which the input of the first layer and the output of each are appended, without the prompts.
        record_attention: Whether attention weights are recorded; prompts then stay in the sequence of every layer.

    Returns:
        `(batch, tokens, hidden)` in the encoder's dtype, without the prompts.
    """
    dtype, batch = encoder.dtype, len(tokens)
    tokens, positions = tokens.to(dtype), positions.to(dtype)
    front = tokens.new_empty(1, 0, tokens.shape[-1])
    if prompts is not None:
        front, own = (part.to(dtype) for part in prompts(0, batch))
    count, deep = front.shape[1], prompts is not None and len(prompts.tokens) > 1
    input_norm = family.norm_of(encoder, family.input_norm) if config.use_input_norm else None
    if input_norm is not None:
        tokens, front = input_norm(tokens), input_norm(front) if count else front
    every_layer, over_batch = config.position_injection == "every_layer", config.attention_axis == "batch"
    layers = family.layers_of(encoder)
    inputs = _layer_inputs(encoder, family, tokens, count, over_batch)
    skip_prompts = count and recompute is None and not over_batch and family.layer_inputs is bidirectional_inputs
    skip_prompts = skip_prompts and not record_attention
    if states is not None:
        states.append(tokens)
    with beside_attended_rows(encoder) if skip_prompts else nullcontext(False) as supported:
        for number, (layer, arguments) in enumerate(zip(layers, inputs, strict=True)):
            if number and deep:
                front, own = (part.to(dtype) for part in prompts(number, batch))
            # Positions of prompts are added when the prompts enter.
            if count and (every_layer or deep or not number):
                front = front + own
            if every_layer or not number:
                tokens = tokens + positions
            last = deep or number == len(layers) - 1
            rows = attended_rows(layer, front, **arguments) if supported and last else None
            if rows is not None:
                tokens = hidden_of(run_beside(layer, tokens, rows, **arguments))
                if states is not None:
                    states.append(tokens)
                continue
            sequence = torch.cat([front.expand(batch, -1, -1), tokens], dim=1) if count else tokens
            sequence = sequence.transpose(0, 1) if over_batch else sequence
            call = partial(layer, **arguments)
            checkpoints = recompute is not None and getattr(layer, "gradient_checkpointing", True)
            sequence = hidden_of(recompute(call, sequence) if checkpoints else call(sequence))
            sequence = sequence.transpose(0, 1) if over_batch else sequence
            front, tokens = sequence[:, :count], sequence[:, count:]
            if states is not None:
                states.append(tokens)
    final_norm = family.norm_of(encoder, family.final_norm) if config.use_final_norm else None
    return tokens if final_norm is None else final_norm(tokens)


def _layer_inputs(
    encoder: PreTrainedModel, family: EncoderFamily, tokens: torch.Tensor, count: int, over_batch: bool
) -> Iterator[dict[str, Any]]:
    """Return the arguments of the layers for `count` prompts before the tokens."""
    sequence = nn.functional.pad(tokens, (0, 0, count, 0))
    sequence = sequence.transpose(0, 1) if over_batch else sequence
    mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=sequence, attention_mask=None)
    layers, places = family.layers_of(encoder), shared_position(encoder, family, sequence)
    return family.layer_inputs(LayerPass(encoder, layers, sequence, mask, places, "first_view"))


def shared_position(encoder: PreTrainedModel, family: EncoderFamily, hidden_states: torch.Tensor) -> TokenPlaces:
    """Return one position for all tokens `(batch, tokens, hidden)`: the middle of the encoder's line or plane."""
    rows, columns, axes = 1, None, 1
    if family.layer_inputs is not bidirectional_inputs:
        table = family.positions_of(encoder)
        rows, columns, axes = table.rows, table.columns, 1 if table.kind == "line" else 2
    columns = columns or 2
    middle = hidden_states.new_tensor([(columns - 1) / 2, (rows - 1) / 2][:axes], dtype=torch.float32)
    entry = middle.expand(hidden_states.shape[0], 1, hidden_states.shape[1], axes)
    return TokenPlaces(entry, rows, columns, class_tokens=0)
