"""Relative positions at continuous places: what a pair of tokens adds to its attention score, mean over the views.

An encoder learned one bias for each head and whole distance (or bucket of distances). Between two whole distances the
bias is interpolated, so that it is a continuous function of the places and equal to the encoder's own at whole ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hf_any3d.modeling.encoders.position_table import PositionTable
from hf_any3d.modeling.encoders.token_places import TokenPlaces


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
