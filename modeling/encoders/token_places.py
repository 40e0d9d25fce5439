"""Where the tokens of a forward pass are in the views, and what a layer is called with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class TokenPlaces:
    """Continuous places of all tokens, a class token first, in the units of the encoder's own positions.

    A token without a place in space stands in the middle of every view: as far from one end as from the other.

    Args:
        entry: `(batch, views, 1 + tokens, 1)` on a line in [0, columns - 1], or `(batch, views, 1 + tokens, 2)` as
            (column, row) on a plane.
        rows: Rows of the plane; 1 on a line.
        columns: Columns of the plane; places of the line.
        class_tokens: Whether a class token stands in front (1 or 0); some encoders have biases of its own for it.
    """

    entry: torch.Tensor
    rows: int
    columns: int
    class_tokens: int = 1

    @classmethod
    def with_class_token(cls, entry: torch.Tensor, rows: int, columns: int) -> TokenPlaces:
        """Put the class token, in the middle, in front of tokens at `(batch, views, tokens, 1 or 2)`."""
        middle = entry.new_tensor([(columns - 1) / 2, (rows - 1) / 2][: entry.shape[-1]])
        front = middle.expand(*entry.shape[:2], 1, -1)
        return cls(torch.cat([front, entry], dim=2), rows, columns)

    def followed_by(self, count: int) -> TokenPlaces:
        """The same with `count` tokens without a place behind them."""
        if not count:
            return self
        middle = self.entry[:, :, :1].expand(-1, -1, count, -1)
        return replace(self, entry=torch.cat([self.entry, middle], dim=2))


@dataclass(frozen=True)
class LayerPass:
    """What a family may look at to say what its layers are called with.

    Args:
        encoder: The frozen encoder.
        layers: Its layers, adapters around them included.
        hidden_states: `(batch, 1 + tokens, hidden)`, what enters the first layer.
        mask: The bidirectional attention mask; None where all tokens see each other anyway.
        places: Where the tokens are.
        rotary_views: How rotary encoders combine the views.
    """

    encoder: PreTrainedModel
    layers: nn.ModuleList
    hidden_states: torch.Tensor
    mask: torch.Tensor | None
    places: TokenPlaces
    rotary_views: str


def bidirectional_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    """Keyword arguments, one dictionary a layer, for layers that need to know nothing of places."""
    for _ in call.layers:
        yield {"attention_mask": call.mask, "is_causal": False}


def hidden_of(output: torch.Tensor | tuple) -> torch.Tensor:
    """The hidden states among what a layer returns; some return attention weights beside them."""
    return output[0] if isinstance(output, tuple) else output
