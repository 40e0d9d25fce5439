"""Rows of a sequence that others only look at: a layer makes keys and values of them, and nothing else.

Deep prompts are replaced before every layer, so that what a layer makes of them is thrown away. Leaving out their
queries, their attention and their MLP halves the work of a layer with as many prompts as tokens, and where prompts are
the same for all clouds their keys and values are made once for the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_IMPLEMENTATION = "sdpa_beside_attended_rows"
_READS_LIKE_SDPA = ("eager", "sdpa")


@dataclass(frozen=True)
class AttendedRows:
    """What one layer's attention sees of rows.

    Args:
        keys: `(1 or batch, heads, rows, head width)`.
        values: `(1 or batch, heads, rows, head width)`.
    """

    keys: torch.Tensor
    values: torch.Tensor


class _Seen(Exception):
    """Ends a layer as soon as its attention has made keys and values."""

    def __init__(self, rows: AttendedRows):
        self.rows = rows


_LOOK = object()
# What the attention running now shall do: stop with what it sees, look at rows too, or nothing.
_beside: ContextVar[object | AttendedRows | None] = ContextVar("attended_rows", default=None)


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    rows = _beside.get()
    if rows is _LOOK:
        raise _Seen(AttendedRows(key, value))
    if rows is not None:
        key = torch.cat([rows.keys.expand(len(key), -1, -1, -1), key], dim=2)
        value = torch.cat([rows.values.expand(len(value), -1, -1, -1), value], dim=2)
    return sdpa_attention_forward(module, query, key, value, *args, **kwargs)


AttentionInterface.register(_IMPLEMENTATION, _attend)


@contextmanager
def _looking(encoder: PreTrainedModel, what: object) -> Iterator[None]:
    """Lets the encoder's attention do something else, inside."""
    chosen, token = encoder.config._attn_implementation, _beside.set(what)
    encoder.config._attn_implementation = _IMPLEMENTATION
    try:
        yield
    finally:
        encoder.config._attn_implementation = chosen
        _beside.reset(token)


def attended_rows(
    encoder: PreTrainedModel, layer: nn.Module, rows: torch.Tensor, **inputs: Any
) -> AttendedRows | None:
    """Keys and values that a layer makes of rows, with gradients.

    Args:
        encoder: The encoder.
        layer: One of its layers, in which every row sees all others.
        rows: `(1 or batch, rows, hidden)`, what would stand in the sequence.
        **inputs: What else the layer is called with.

    Returns:
        Keys and values. None where the layer's attention is not transformers' shared one, adds keys of its own, or is
        another than plain ("flash_attention_2"), and in a program that is being compiled: there the rows have to stand
        in the sequence.
    """
    if encoder.config._attn_implementation not in _READS_LIKE_SDPA or torch.compiler.is_compiling():
        return None
    try:
        with _looking(encoder, _LOOK):
            layer(rows, **inputs)
    except _Seen as seen:
        # Keys that belong to no row (ImageBind's) would be there twice.
        return seen.rows if seen.rows.keys.shape[2] == rows.shape[1] else None
    return None


def run_beside(
    encoder: PreTrainedModel, layer: nn.Module, rows: AttendedRows, hidden_states: torch.Tensor, **inputs: Any
) -> Any:
    """What a layer makes of tokens that also look at rows.

    Equal, to rounding, to the last tokens of the layer's output for the whole sequence.

    Args:
        encoder: The encoder.
        layer: One of its layers.
        rows: What `attended_rows` gave.
        hidden_states: `(batch, tokens, hidden)`.
        **inputs: What else the layer is called with.
    """
    with _looking(encoder, rows):
        return layer(hidden_states, **inputs)
