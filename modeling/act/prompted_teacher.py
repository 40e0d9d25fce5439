"""A frozen transformer that reads the tokens of a cloud beside learned prompts.

Tokens have no place among words or pixels here: where they are in space is told by learned positions of their centres,
which are added to them. Positions that an encoder looks up by itself, in its attention, are therefore given one place
for all tokens. Rotations of queries and keys cancel then, and so does a bias that depends on the distance alone; where
content and distance act together (DeBERTa), every pair is read at distance 0. Attention is left to content, and the
order of the tokens means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from hf_any3d.modeling.act.configuration_act_autoencoder import ActAutoencoderConfig
from hf_any3d.modeling.encoders import EncoderFamily, LayerPass, TokenPlaces, bidirectional_inputs, hidden_of


class Prompts(nn.Module):
    """Learned tokens in front of a cloud's, with learned positions.

    Args:
        depth: Layers that read prompts of their own: 1, or all.
        count: Prompts of a layer.
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
        """Tokens and positions of a layer's prompts, `(batch, prompts, width)` each."""
        tokens = self.dropout(self.tokens[level].expand(batch, -1, -1))
        return tokens, self.positions[level].expand(batch, -1, -1)


def read_with_prompts(
    encoder: PreTrainedModel,
    family: EncoderFamily,
    prompts: Prompts | None,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    config: ActAutoencoderConfig,
    run: Callable[[Callable, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Send tokens through the layers of a frozen encoder.

    Args:
        encoder: The encoder.
        family: Where its parts are.
        prompts: Prompts of its first layer or of all layers, or None.
        tokens: `(batch, tokens, hidden)`.
        positions: `(batch, tokens, hidden)`, added to the tokens.
        config: Says where positions are added, which norms are applied, and along which axis attention runs.
        run: Calls a layer with hidden states and gives its hidden states.

    Returns:
        `(batch, tokens, hidden)` in the encoder's dtype, without the prompts.
    """
    dtype, count = encoder.dtype, 0
    hidden_states, positions = tokens.to(dtype), positions.to(dtype)
    if prompts is not None:
        count = prompts.tokens.shape[1]
        front, own = (part.to(dtype) for part in prompts(0, len(tokens)))
        hidden_states = torch.cat([front, hidden_states], dim=1)
        positions = torch.cat([own, positions], dim=1)
    input_norm = family.norm_of(encoder, family.input_norm) if config.use_input_norm else None
    if input_norm is not None:
        hidden_states = input_norm(hidden_states)
    layers = family.layers_of(encoder)
    over_batch = config.attention_axis == "batch"
    like = hidden_states.transpose(0, 1) if over_batch else hidden_states
    every_layer = config.position_injection == "every_layer"
    for number, (layer, arguments) in enumerate(zip(layers, _layer_inputs(encoder, family, like), strict=True)):
        if number and prompts is not None and len(prompts.tokens) > 1:
            front, own = (part.to(dtype) for part in prompts(number, len(tokens)))
            # Prompts that enter bring their position with them wherever the cloud's tokens got theirs.
            hidden_states = torch.cat([front if every_layer else front + own, hidden_states[:, count:]], dim=1)
            positions = torch.cat([own, positions[:, count:]], dim=1)
        if every_layer or not number:
            hidden_states = hidden_states + positions
        hidden_states = hidden_states.transpose(0, 1) if over_batch else hidden_states
        hidden_states = run(partial(layer, **arguments), hidden_states)
        hidden_states = hidden_states.transpose(0, 1) if over_batch else hidden_states
    hidden_states = hidden_states[:, count:]
    final_norm = family.norm_of(encoder, family.final_norm) if config.use_final_norm else None
    return hidden_states if final_norm is None else final_norm(hidden_states)


def _layer_inputs(encoder: PreTrainedModel, family: EncoderFamily, hidden_states: torch.Tensor):
    mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=hidden_states, attention_mask=None)
    layers = family.layers_of(encoder)
    places = one_place(encoder, family, hidden_states)
    return family.layer_inputs(LayerPass(encoder, layers, hidden_states, mask, places, "first_view"))


def one_place(encoder: PreTrainedModel, family: EncoderFamily, hidden_states: torch.Tensor) -> TokenPlaces:
    """The same place for all tokens `(batch, tokens, hidden)`: the middle of the encoder's own line or plane."""
    rows, columns, axes = 1, None, 1
    if family.layer_inputs is not bidirectional_inputs:
        table = family.positions(encoder)
        rows, columns, axes = table.rows, table.columns, 1 if table.kind == "line" else 2
    columns = columns or 2
    middle = hidden_states.new_tensor([(columns - 1) / 2, (rows - 1) / 2][:axes], dtype=torch.float32)
    entry = middle.expand(hidden_states.shape[0], 1, hidden_states.shape[1], axes)
    return TokenPlaces(entry, rows, columns, class_tokens=0)
