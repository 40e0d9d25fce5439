"""Gradients and other tensors of our models under the names of the original program, by undoing a conversion."""

from collections.abc import Callable, Mapping

import torch

State = Mapping[str, torch.Tensor]


def as_theirs(convert: Callable[[State], State], original: State, ours: State) -> dict[str, torch.Tensor]:
    """Return tensors of our model in the layout of the original one, in float32.

    Args:
        convert: The conversion, which renames, splits, reorders and negates, and computes nothing.
        original: Tensors of the original; their names and shapes count.
        ours: Tensors of our model, such as gradients; those that are missing are missing in the result.
    """
    numbered = {}
    first = 1
    for name, tensor in original.items():
        # Each entry has a number of its own, from 1 so that it has a sign.
        numbered[name] = torch.arange(first, first + tensor.numel(), dtype=torch.float64).view(tensor.shape)
        first += tensor.numel()
    entries = torch.full((first,), torch.nan, dtype=torch.float64)
    for name, numbers in convert(numbered).items():
        if name in ours:
            values = ours[name].detach().double().flatten() * numbers.sign().flatten()
            entries[numbers.abs().long().flatten()] = values
    theirs = {}
    for name, numbers in numbered.items():
        values = entries[numbers.long()]
        if not values.isnan().all():
            theirs[name] = values.float()
    return theirs
