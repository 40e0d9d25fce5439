"""Timing in turns, and the memory that autograd saves for the backward pass, shared by the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_any3d.modeling.pretrained_parts.tensors import holds_tensors


class Spent(NamedTuple):
    """Wall and processor seconds."""

    wall: float
    cpu: float


def held_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors that a quantized weight of torchao holds, such as bits and scales, or any other itself."""
    names = tensor.__tensor_flatten__()[0] if holds_tensors(tensor) else []
    return [part for name in names if isinstance(part := getattr(tensor, name), torch.Tensor)] or [tensor]


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


def check_same_step(
    model: nn.Module, steps: Sequence[Callable[[], torch.Tensor]], losses: float, gradients: float
) -> dict[str, float]:
    """Compare loss and gradients of a training step with those of its transcription.

    Args:
        model: The model of both.
        steps: Forward passes that return the loss: the transcription's, then ours.
        losses: Largest relative difference of the losses.
        gradients: Largest difference of a gradient's norm, relative to it.

    Returns:
        The relative difference of the losses, and the largest of the norms of the gradients' differences relative to
        the norm of each tensor's gradient.

    Raises:
        SystemExit: They are not the same step.
    """
    results = []
    for step in steps:
        model.zero_grad()
        loss = step()
        loss.backward()
        found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
        results.append((loss.item(), found))
    (loss, theirs), (our_loss, ours) = results
    # Leaves out what a norm or a softmax cancels, whose gradient is zero except for rounding.
    largest = max(gradient.norm() for gradient in theirs.values())
    counted = {name: gradient for name, gradient in theirs.items() if gradient.norm() > 1e-4 * largest}
    differences = {name: float((one - ours[name]).norm() / one.norm()) for name, one in counted.items()}
    worst = max(differences, key=differences.__getitem__)
    relative = abs(loss - our_loss) / abs(loss)
    if relative > losses or differences[worst] > gradients:
        raise SystemExit(
            f"not the same step: losses {loss} and {our_loss}, {worst} differs by {differences[worst]:.1e}"
        )
    return {"loss": relative, "gradients": differences[worst]}
