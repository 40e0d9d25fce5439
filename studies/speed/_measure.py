"""Timing in turns, and the memory that autograd saves for the backward pass, shared by the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

import torch
from torch import nn


class Spent(NamedTuple):
    """Wall and processor seconds."""

    wall: float
    cpu: float


def timed(step: Callable[[], Any]) -> Spent:
    """Time a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def timed_in_turns(
    steps: Mapping[str, Callable[[], Any]], rounds: int, before: Callable[[], Any] | None = None
) -> dict[str, list[Spent]]:
    """Time several steps in turns, so that other work on the machine affects all alike.

    Args:
        steps: What to time, by name.
        rounds: How often to time each; another round before them warms up.
        before: Called before each step, without being timed.
    """
    spent: dict[str, list[Spent]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            if before is not None:
                before()
            spent[name] += [timed(step)] * (number > 0)
    return spent


def storages(*modules: nn.Module) -> set[int]:
    """Return the addresses of the memory that holds the modules' parameters."""
    return {parameter.untyped_storage().data_ptr() for module in modules for parameter in module.parameters()}


def saved_bytes(step: Callable[[], torch.Tensor], known: Set[int]) -> int:
    """Run forward and backward; returns the bytes that autograd saves between them, every storage counted once.

    Args:
        step: The forward pass; returns the loss.
        known: Addresses of storages that do not count, such as `storages` of parameters.
    """
    saved: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = step()
        total = sum(saved.values())
    loss.backward()
    return total
