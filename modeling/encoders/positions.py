"""Learned positions of a pretrained encoder, read at continuous places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

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


def convolve_on_line(
    tokens: torch.Tensor, places: TokenPlaces, convolution: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Positions of tokens `(batch, tokens, hidden)`, mean over the views, in the same shape.

    Args:
        tokens: The point tokens, without the class token.
        places: Where they are, the class token first.
        convolution: From `(batch, length, hidden)` to the same shape.
    """
    whole = torch.arange(places.columns, device=tokens.device)
    total = 0
    for place in places.entry[:, :, 1:].unbind(dim=1):  # (batch, tokens, 1)
        # Share of each whole place in a token, (batch, tokens, length): at most two neighbours, summing to one.
        share = (1 - (place.clamp(0, places.columns - 1) - whole).abs()).clamp_min(0).to(tokens.dtype)
        # Several tokens on one place are averaged; a place that a token only touches keeps its share.
        load = share.sum(dim=1).clamp_min(1).unsqueeze(-1)
        line = share.transpose(1, 2) @ tokens / load
        total = total + share @ convolution(line)
    return total / places.entry.shape[1]


@dataclass(frozen=True)
class PositionTable:
    """The positions that an encoder learned, on a line (words) or on a plane (patches).

    Args:
        kind: "line" or "plane".
        weight: `(length, hidden)` on a line, `(rows * columns, hidden)`, row by row, on a plane; None where nothing is
            added to tokens, because positions act in the attention (relative, rotary) or depend on neighbours.
        rows: Rows of the plane; 1 on a line.
        columns: Columns of the plane; the length of a line, None where any length will do.
    """

    kind: Literal["line", "plane"]
    weight: torch.Tensor | None
    rows: int
    columns: int | None

    def __post_init__(self):
        if self.weight is None:
            return
        if self.weight.ndim != 2 or self.weight.shape[0] != self.rows * self.columns:
            raise ValueError(
                f"position table has shape {tuple(self.weight.shape)}; expected ({self.rows} * {self.columns}, hidden)"
            )

    def lookup(self, position: torch.Tensor) -> torch.Tensor:
        """Interpolate the table linearly at continuous places; places outside are moved to the border.

        Args:
            position: `(..., 1)` entries of the line in [0, length - 1], or `(..., 2)` (column, row) of the plane.

        Returns:
            `(..., hidden)` in the table's dtype.
        """
        column, row = position[..., 0], position[..., 1] if self.kind == "plane" else None
        left, right, along = _neighbors(column, self.columns)
        if row is None:
            return _lerp(self.weight[left], self.weight[right], along)
        top, bottom, down = _neighbors(row, self.rows)
        upper = _lerp(self.weight[top * self.columns + left], self.weight[top * self.columns + right], along)
        lower = _lerp(self.weight[bottom * self.columns + left], self.weight[bottom * self.columns + right], along)
        return _lerp(upper, lower, down)


def _neighbors(place: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    place = place.clamp(0, size - 1)
    low = place.floor().clamp(max=max(size - 2, 0))
    return low.long(), (low.long() + 1).clamp(max=size - 1), place - low


def _lerp(low: torch.Tensor, high: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.lerp(low, high, weight.unsqueeze(-1).to(low.dtype))


def line_bias(
    places: TokenPlaces, biases: nn.Embedding, bucket: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Bias of pairs on a line.

    Args:
        places: Where the tokens are.
        biases: One row of heads for each bucket.
        bucket: From whole distances (place of the key minus place of the query) to buckets.

    Returns:
        `(batch, heads, queries, keys)` in the dtype of the biases.
    """
    reach = places.columns - 1
    distances = torch.arange(-reach, reach + 1, device=places.entry.device)
    table = PositionTable("line", biases(bucket(distances)), 1, len(distances))
    total = 0
    for place in places.entry.unbind(dim=1):  # (batch, tokens, 1)
        total = total + table.lookup(place.unsqueeze(1) - place.unsqueeze(2) + reach)
    return (total / places.entry.shape[1]).permute(0, 3, 1, 2)


def plane_bias(places: TokenPlaces, biases: torch.Tensor) -> torch.Tensor:
    """Bias of pairs on a plane, from a table laid out as BEiT's.

    Args:
        places: Where the tokens are, a class token first.
        biases: `((2 * rows - 1) * (2 * columns - 1) + 3, heads)`: offsets of the query from the key, row by row, then
            class token to patch, patch to class token, class token to itself.

    Returns:
        `(batch, heads, queries, keys)` in the dtype of the biases.
    """
    table = PositionTable("plane", biases[:-3], 2 * places.rows - 1, 2 * places.columns - 1)
    center = places.entry.new_tensor([places.columns - 1, places.rows - 1])
    total = 0
    for place in places.entry[:, :, places.class_tokens :].unbind(dim=1):  # (batch, tokens, 2)
        total = total + table.lookup(place.unsqueeze(2) - place.unsqueeze(1) + center)
    if not places.class_tokens:
        return (total / places.entry.shape[1]).permute(0, 3, 1, 2)
    batch, tokens = places.entry.shape[0], places.entry.shape[2]
    bias = biases.new_empty(batch, tokens, tokens, biases.shape[1])
    bias[:, 1:, 1:] = total / places.entry.shape[1]
    bias[:, 0], bias[:, :, 0], bias[:, 0, 0] = biases[-3], biases[-2], biases[-1]
    return bias.permute(0, 3, 1, 2)


class Addend:
    """A term that is added out of place, also where a layer writes `bias += term` into a bias of smaller shape."""

    def __init__(self, values: torch.Tensor):
        self.values = values

    def __radd__(self, other: torch.Tensor) -> torch.Tensor:
        return other + self.values
