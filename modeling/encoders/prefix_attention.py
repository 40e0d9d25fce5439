"""Attention to prompts whose own outputs are not needed: layers compute only keys and values for them.

Deep prompts are replaced before every layer, so a layer's output for them is discarded. Without their queries,
attention and MLP, a layer with as many prompts as tokens does half the work; and keys and values of prompts that are
equal for all clouds are computed once per batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_IMPLEMENTATION = "sdpa_with_prefix"
_EQUIVALENT_TO_SDPA = ("eager", "sdpa")


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a layer's prompts, `(1 or batch, heads, prompts, head width)` each."""

    keys: torch.Tensor
    values: torch.Tensor


class _Computed(Exception):
    """Leaves a layer as soon as its attention has computed keys and values."""

    def __init__(self, prefix: Prefix):
        self.prefix = prefix


_COMPUTE = object()
# What the attention does in the current call: leave with its keys and values, attend to a prefix too, or neither.
# Not an attribute of the encoder, which other threads may be running.
_prefix: ContextVar[object | Prefix | None] = ContextVar("prefix", default=None)


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    prefix = _prefix.get()
    if prefix is _COMPUTE:
        # Leaves the layer by an error: its queries' attention, output projection and MLP never run.
        raise _Computed(Prefix(key, value))
    if prefix is not None:
        # (batch, heads, prompts + tokens, head width); prompts in front, as they would be in one sequence
        key = torch.cat([prefix.keys.expand(len(key), -1, -1, -1), key], dim=2)
        value = torch.cat([prefix.values.expand(len(value), -1, -1, -1), value], dim=2)
    return sdpa_attention_forward(module, query, key, value, *args, **kwargs)


AttentionInterface.register(_IMPLEMENTATION, _attend)


@contextmanager
def prefix_attention(encoder: PreTrainedModel) -> Iterator[bool]:
    """Enable `compute_prefix` and `run_with_prefix` for an encoder's layers; yields whether its attention allows it.

    Compiled programs and attention other than eager and SDPA do not; these need the prompts in the sequence.
    """
    chosen = encoder.config._attn_implementation
    if chosen not in _EQUIVALENT_TO_SDPA or torch.compiler.is_compiling():
        yield False
        return
    encoder.config._attn_implementation = _IMPLEMENTATION
    try:
        yield True
    finally:
        encoder.config._attn_implementation = chosen


def compute_prefix(layer: nn.Module, prompts: torch.Tensor, **inputs: Any) -> Prefix | None:
    """Compute a layer's keys and values of prompts `(1 or batch, prompts, hidden)`; None if it adds its own."""
    token = _prefix.set(_COMPUTE)
    try:
        layer(prompts, **inputs)
    except _Computed as computed:
        # An attention that adds keys of its own (ImageBind's) would add them twice.
        return computed.prefix if computed.prefix.keys.shape[2] == prompts.shape[1] else None
    finally:
        _prefix.reset(token)
    return None


def run_with_prefix(layer: nn.Module, hidden_states: torch.Tensor, prefix: Prefix, **inputs: Any) -> Any:
    """Run a layer on `(batch, tokens, hidden)` whose tokens attend to prompts, too, as in one sequence."""
    token = _prefix.set(prefix)
    try:
        return layer(hidden_states, **inputs)
    finally:
        _prefix.reset(token)
