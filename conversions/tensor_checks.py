"""Checks of named tensors: that they are those of a model, and finite."""

import os
from collections.abc import Mapping

import torch

from hf_any3d.utils import messages

# Names of tensors in a message, of those that are wrong
_SHOWN = 20


def account(path: str | os.PathLike, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Check that names, shapes and kinds of tensors are exactly those expected, which may be on `meta`."""
    missing = sorted(expected.keys() - found.keys())
    left_over = sorted(found.keys() - expected.keys())
    shapes = []
    types = []
    for name in sorted(expected.keys() & found.keys()):
        ours = expected[name]
        theirs = found[name]
        if theirs.shape != ours.shape:
            shapes.append(f"{name} is {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
        if theirs.is_floating_point() != ours.is_floating_point():
            types.append(f"{name} is {theirs.dtype}, expected {ours.dtype}")
    kinds = [("missing", missing), ("left over", left_over), ("of another shape", shapes), ("of another type", types)]
    problems = [f"{what}: {listed(names)}" for what, names in kinds if names]
    if problems:
        raise ValueError(f"{path}: tensors do not fit; {'; '.join(problems)}")


def check_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Check that all numbers are finite in float32."""
    largest = torch.finfo(torch.float32).max
    wrong = []
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            low, high = (float(bound) for bound in tensor.aminmax())  # both are NaN where any number is
            if not (-largest <= low and high <= largest):
                wrong.append(name)
    if wrong:
        raise ValueError(
            f"the checkpoint holds NaN or infinite numbers in {len(wrong)} tensors: {listed(sorted(wrong))}; expected "
            "finite weights"
        )


def listed(names: list[str]) -> str:
    """Join names in one line, shortened to the first ones and a count if there are many."""
    return messages.listed(names, _SHOWN)
