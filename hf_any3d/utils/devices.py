"""Devices that models run on."""

from __future__ import annotations

from typing import Any


def check_device(device: Any) -> None:
    """Raise an error about a device that this machine lacks, before a model is blamed for it.

    Args:
        device: A name such as "cuda:1", a `torch.device`, the number of an accelerator, or None for the fastest one.

    Raises:
        ValueError: There is no such device; names those that are there.
    """
    if device is None:
        return
    import torch

    found = ["cpu"]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        found += [f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count())]
    name = str(device)
    # As pipelines have it, numbers are those of accelerators, and -1 is the CPU.
    if name.lstrip("-").isdecimal() and accelerator is not None:
        name = f"{accelerator.type}:{name}"
    try:
        wanted = torch.device(name)
    except RuntimeError:
        wanted = None
    is_there = device in (-1, "-1")
    if wanted is not None:
        is_there |= wanted.type in ("cpu", "meta") or f"{wanted.type}:{wanted.index or 0}" in found
    if not is_there:
        raise ValueError(f"device {device}: there is none here; expected one of {', '.join(found)}")
