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
def beside_attended_rows(encoder: PreTrainedModel) -> Iterator[bool]:
    """Lets the encoder's layers look at rows, inside; gives whether its attention can.

    Encoders whose attention is not transformers' shared one, or another than plain ("flash_attention_2"), cannot, nor
    can a program that is being compiled; they need the rows in the sequence.
    """
    chosen = encoder.config._attn_implementation
    if chosen not in _READS_LIKE_SDPA or torch.compiler.is_compiling():
        yield False
        return
    encoder.config._attn_implementation = _IMPLEMENTATION
    try:
        yield True
    finally:
        encoder.config._attn_implementation = chosen


def attended_rows(layer: nn.Module, rows: torch.Tensor, **inputs: Any) -> AttendedRows | None:
    """Keys and values that a layer makes of rows, with gradients; use it inside `beside_attended_rows`.

    Args:
        layer: A layer of the encoder, in which every row sees all others.
        rows: `(1 or batch, rows, hidden)`, what would stand in the sequence.
        **inputs: What else the layer is called with.

    Returns:
        Keys and values, or None where the layer's attention is not transformers' shared one, or adds keys of its own.
    """
    token = _beside.set(_LOOK)
    try:
        layer(rows, **inputs)
    except _Seen as seen:
        # An attention that adds keys of its own (ImageBind's) would add them twice.
        return seen.rows if seen.rows.keys.shape[2] == rows.shape[1] else None
    finally:
        _beside.reset(token)
    return None


def run_beside(layer: nn.Module, hidden_states: torch.Tensor, rows: AttendedRows, **inputs: Any) -> Any:
    """What a layer makes of `(batch, tokens, hidden)` whose tokens also look at rows; inside `beside_attended_rows`.

    Equal, to rounding, to the last tokens of the layer's output for the whole sequence.
    """
    token = _beside.set(rows)
    try:
        return layer(hidden_states, **inputs)
    finally:
        _beside.reset(token)
