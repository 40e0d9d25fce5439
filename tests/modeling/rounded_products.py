"""Emulate the TF32 matrix products of GPUs on any machine."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "vdot", "_addmm_activation", "linear", "matmul"}


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Round a float32 tensor to the ten mantissa bits of TF32."""
    return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class RoundedProducts(TorchDispatchMode):
    """Mode in which float32 matrix products round their inputs to TF32.

    Attributes:
        products: Names of the products that were taken, in order.
    """

    def __init__(self):
        super().__init__()
        self.products: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function.overloadpacket.__name__
        if name in _PRODUCTS:
            self.products.append(name)
            args = tuple(
                rounded(value) if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value
                for value in args
            )
        return function(*args, **(kwargs or {}))
