"""How much autograd keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Set

import torch
from torch import nn


def storages(*modules: nn.Module) -> set[int]:
    """Addresses of the memory that holds the modules' parameters."""
    return {parameter.untyped_storage().data_ptr() for module in modules for parameter in module.parameters()}


def saved_bytes(step: Callable[[], torch.Tensor], parameters: Set[int]) -> int:
    """Run forward and backward; bytes that autograd keeps between them, every storage counted once.

    Args:
        step: The forward pass; gives the loss.
        parameters: `storages` of what is kept anyway.
    """
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step()
        total = sum(kept.values())
    loss.backward()
    return total
