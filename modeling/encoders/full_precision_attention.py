"""Attention of layers in half precision that is computed in float32 when a CPU trains through it.

Torch's SDPA on CPUs takes three times as long for the gradients of queries, keys and values in bfloat16 as in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_any3d.modeling.kernels.dispatch import autocast_disabled

_IMPLEMENTATION = "sdpa_in_full_precision"
_HALF = (torch.bfloat16, torch.float16)


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    if query.dtype not in _HALF or not any(tensor.requires_grad for tensor in (query, key, value)):
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)
    # Masks and biases of positions too.
    wide = (_widened(tensor) for tensor in (query, key, value, *args))
    with autocast_disabled(query.device):
        attended, _ = sdpa_attention_forward(module, *wide, **{name: _widened(one) for name, one in kwargs.items()})
    return attended.to(query.dtype), None


def _widened(argument: Any) -> Any:
    return argument.float() if isinstance(argument, torch.Tensor) and argument.dtype in _HALF else argument


# Masks are made as for SDPA: without an entry of its own, an implementation gets none.
AttentionInterface.register(_IMPLEMENTATION, _attend)
AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)


@contextmanager
def full_precision_attention(encoder: PreTrainedModel) -> Iterator[None]:
    """Compute SDPA of an encoder's layers in float32 where gradients of half precision would be slower on a CPU.

    Not for layers that gradient checkpointing runs again: that happens outside of this context.
    """
    chosen = encoder.config._attn_implementation
    # Under autocast, weights are in float32 and queries in half precision.
    is_half = encoder.dtype in _HALF or torch.is_autocast_enabled("cpu")
    if chosen != "sdpa" or not is_half or encoder.device.type != "cpu" or torch.compiler.is_compiling():
        yield
        return
    encoder.config._attn_implementation = _IMPLEMENTATION
    try:
        yield
    finally:
        encoder.config._attn_implementation = chosen
