"""Learned positions of pretrained encoders: their tables, and their values at continuous coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.layers.constants import constant


@dataclass(frozen=True)
class TokenPlaces:
    """Continuous coordinates of all tokens in the views, in the units of the encoder's own positions.

    They are `(batch, views, 1 + tokens, 1)` on a line in [0, columns - 1], or `(batch, views, 1 + tokens, 2)` as
    (column, row) on a plane. A token without a position in space, such as the class token, is in the middle of every
    view. Some encoders have separate biases for a class token, of which there are `class_tokens`, 1 or 0. The last
    `added` tokens are those of adapters, which have no position either.
    """

    entry: torch.Tensor
    rows: int
    columns: int
    class_tokens: int = 1
    added: int = 0

    @classmethod
    def with_class_token(cls, entry: torch.Tensor, rows: int, columns: int) -> TokenPlaces:
        """Add a class token, in the middle, before tokens at `(batch, views, tokens, 1 or 2)`."""
        # (column, row) on a plane, (column,) on a line.
        middle = constant([(columns - 1) / 2, (rows - 1) / 2][: entry.shape[-1]], entry)
        front = middle.expand(*entry.shape[:2], 1, -1)
        return cls(torch.cat([front, entry], dim=2), rows, columns)

    def followed_by(self, count: int) -> TokenPlaces:
        """Add `count` tokens without a position in space after the others."""
        if not count:
            return self
        # That is where the class token is.
        middle = self.entry[:, :, :1].expand(-1, -1, count, -1)
        return replace(self, entry=torch.cat([self.entry, middle], dim=2), added=self.added + count)


@dataclass(frozen=True)
class LayerPass:
    """One run of a frozen encoder's layers, with adapters around them, from which its family makes their arguments.

    `hidden_states (batch, 1 + tokens, hidden)` are the input of the first layer, `mask` is the bidirectional attention
    mask, if one is needed, and `rotary_views` how rotary encoders combine the views.
    """

    encoder: PreTrainedModel
    layers: nn.ModuleList
    hidden_states: torch.Tensor
    mask: torch.Tensor | None
    places: TokenPlaces
    rotary_views: str


def bidirectional_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    """Yield the keyword arguments of each layer, for layers that do not depend on coordinates."""
    for _ in call.layers:
        yield {"attention_mask": call.mask, "is_causal": False}


def hidden_of(output: torch.Tensor | tuple | list | Mapping) -> torch.Tensor:
    """Return the hidden states of a layer's output; some layers return attention weights too."""
    if isinstance(output, Mapping):
        return next(iter(output.values()))
    return output[0] if isinstance(output, (tuple, list)) else output


def tensor_at(encoder: nn.Module, path: str) -> torch.Tensor:
    """Return a weight or buffer of an encoder by its name."""
    owner, _, name = path.rpartition(".")
    return getattr(encoder.get_submodule(owner), name)


def convolve_on_line(
    tokens: torch.Tensor, places: TokenPlaces, convolution: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Compute convolutional positions of tokens without the class token: mean over the views.

    Both are `(batch, tokens, hidden)`; the encoder's convolution keeps the shape `(batch, length, hidden)`.
    """
    entries = torch.arange(places.columns, device=tokens.device)
    total = 0
    for place in places.entry[:, :, 1:].unbind(dim=1):  # (batch, tokens, 1)
        # Linear interpolation weights of each token, (batch, tokens, length): at most two are not zero.
        share = (1 - (place.clamp(0, places.columns - 1) - entries).abs()).clamp_min(0).to(tokens.dtype)
        # Tokens at the same entry are averaged; entries with a total weight below 1 are not rescaled.
        load = share.sum(dim=1).clamp_min(1).unsqueeze(-1)
        line = share.transpose(1, 2) @ tokens / load
        total = total + share @ convolution(line)
    return total / places.entry.shape[1]


@dataclass(frozen=True)
class PositionTable:
    """Learned positions of an encoder, on a line (words) or on a plane (patches), row by row: `(length, hidden)`.

    Nothing is added to tokens where the weight is None, because positions act in the attention (relative, rotary) or
    are convolutional. A line of any length has None columns.
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
        """Interpolate at `(..., 1)` on a line or `(..., 2)`, (column, row), on a plane, clamped: `(..., hidden)`."""
        # Bilinear on a plane: along the columns of the rows above and below, then between these.
        left, right, along = _neighbors(position[..., 0], self.columns)
        if self.kind == "line":
            return _lerp(self.weight[left], self.weight[right], along)
        top, bottom, down = _neighbors(position[..., 1], self.rows)
        upper = _lerp(self.weight[top * self.columns + left], self.weight[top * self.columns + right], along)
        lower = _lerp(self.weight[bottom * self.columns + left], self.weight[bottom * self.columns + right], along)
        return _lerp(upper, lower, down)


def _neighbors(place: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    place = place.clamp(0, size - 1)
    # A place at the last entry lies between the last two, with all the weight on the second.
    low = place.floor().clamp(max=max(size - 2, 0))
    return low.long(), (low.long() + 1).clamp(max=size - 1), place - low


def _lerp(low: torch.Tensor, high: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.lerp(low, high, weight.unsqueeze(-1).to(low.dtype))


def line_bias(
    places: TokenPlaces, biases: nn.Embedding, bucket: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Interpolate the relative attention bias of all pairs of tokens on a line; mean over the views.

    `(batch, heads, queries, keys)` of biases with one row of heads per bucket; `bucket` maps integer distances (key
    minus query) to buckets.
    """
    reach = places.columns - 1
    # One row for each integer distance; distances between continuous places are interpolated in this table.
    distances = torch.arange(-reach, reach + 1, device=places.entry.device)
    table = PositionTable("line", biases(bucket(distances)), 1, len(distances))
    total = 0
    for place in places.entry.unbind(dim=1):  # (batch, tokens, 1)
        # Keys minus queries, moved to start at 0 as the table does.
        total = total + table.lookup(place.unsqueeze(1) - place.unsqueeze(2) + reach)
    return (total / places.entry.shape[1]).permute(0, 3, 1, 2)


def plane_bias(places: TokenPlaces, biases: torch.Tensor) -> torch.Tensor:
    """Interpolate the relative attention bias of all pairs of tokens on a plane; mean over the views.

    `(batch, heads, queries, keys)` of biases `((2 * rows - 1) * (2 * columns - 1) + 3, heads)` as in BEiT: offsets of
    the query from the key, row by row, then class token to patch, patch to class token, class token to itself.
    """
    table = PositionTable("plane", biases[:-3], 2 * places.rows - 1, 2 * places.columns - 1)
    center = constant([places.columns - 1, places.rows - 1], places.entry)
    total = 0
    for place in places.entry[:, :, places.class_tokens :].unbind(dim=1):  # (batch, tokens, 2)
        # Queries minus keys, moved to start at 0 as the table does.
        total = total + table.lookup(place.unsqueeze(2) - place.unsqueeze(1) + center)
    if not places.class_tokens:
        return (total / places.entry.shape[1]).permute(0, 3, 1, 2)
    batch = places.entry.shape[0]
    tokens = places.entry.shape[2]
    bias = biases.new_empty(batch, tokens, tokens, biases.shape[1])
    # The class token has no position; its pairs have learned biases of their own.
    bias[:, 1:, 1:] = total / places.entry.shape[1]
    # In this order: the first two also set the class token's bias to itself, which the third one corrects.
    bias[:, 0], bias[:, :, 0], bias[:, 0, 0] = biases[-3], biases[-2], biases[-1]
    return bias.permute(0, 3, 1, 2)


class Addend:
    """A term that is added out of place even if a layer computes `bias += term` with a bias of smaller shape."""

    def __init__(self, values: torch.Tensor):
        self.values = values

    def __radd__(self, other: torch.Tensor) -> torch.Tensor:
        return other + self.values


LEARNED_PLANE = {"kind": "learned, on a grid"}


def line(weight: torch.Tensor) -> PositionTable:
    """Make the table of a line from `(length, hidden)`."""
    return PositionTable("line", weight, 1, weight.shape[0])


def free_line(model: PreTrainedModel) -> PositionTable:
    """Make a line of any length, for encoders that add no positions to tokens."""
    return PositionTable("line", None, 1, None)


def plane(weight: torch.Tensor, special_tokens: int, rows: int) -> PositionTable:
    """Make the table of a grid from `(…, special_tokens + rows * columns, hidden)`, without special tokens."""
    # Some tables have a batch axis of 1 in front.
    patches = weight.reshape(-1, weight.shape[-1])[special_tokens:]
    return PositionTable("plane", patches, rows, patches.shape[0] // rows)


def pair_of(size: Any) -> tuple[int, int]:
    """Return the height and width of a size that a config gives as one number, two, or by name."""
    if isinstance(size, dict):
        return size["height"], size["width"]
    return (size[0], size[1]) if isinstance(size, (list, tuple)) else (size, size)


def patch_of(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the height and width of a patch, also of encoders of videos."""
    tubelet = getattr(config, "tubelet_size", None)
    return pair_of(tubelet[1:] if isinstance(tubelet, (list, tuple)) else config.patch_size)


def image_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the rows and columns of an image's patches."""
    image, patch = pair_of(config.image_size), patch_of(config)
    return image[0] // patch[0], image[1] // patch[1]


def class_token(model: PreTrainedModel) -> torch.Tensor:
    """Return the class token's embedding of an image encoder, `(hidden,)`."""
    return model.embeddings.cls_token.flatten()


def narrow_embeddings(config: PreTrainedConfig) -> str | None:
    """Refuse encoders whose embeddings, including positions, are narrower than their layers."""
    width = getattr(config, "embedding_size", None) or config.hidden_size
    if width == config.hidden_size:
        return None
    return (
        f"its positions have {width} channels and are normalized before they are projected to the "
        f"{config.hidden_size} of its layers, so they cannot be added to tokens of that width"
    )
