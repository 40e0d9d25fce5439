"""Preparation of batches for the compiled parts of a training step."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


def mark_batch(*values: Any) -> None:
    """Let torch compile code for batches of any size, instead of again for each: the first axis of all tensors."""
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            torch._dynamo.maybe_mark_dynamic(value, 0)


def code_for(compiled: Callable[..., Any] | None, plain: Callable[..., Any], *batch: Any) -> Callable[..., Any]:
    """Return compiled code, prepared for a batch of any size, or the plain function if there is none."""
    if compiled is None:
        return plain
    mark_batch(*batch)
    return compiled
