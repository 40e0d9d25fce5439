"""Tensors that say that they are on an accelerator while their values are on the CPU: its code runs in tests."""

import torch


class _Device(str):
    """Where tensors are made; only its type is that of an accelerator."""

    type = "cuda"


class _OnAccelerator(torch.Tensor):
    device = _Device("cpu")


def on_accelerator(values: torch.Tensor) -> torch.Tensor:
    """Return the same values; what is computed from them seems to be on the accelerator, too."""
    return values.as_subclass(_OnAccelerator)
