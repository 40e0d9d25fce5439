"""Numbers on an accelerator that are not sent there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def constant(values: Sequence[Any], like: Tensor) -> Tensor:
    """Return numbers, in lists of any depth, as a tensor with the device and precision of another one.

    For a list that is sent to an accelerator, the host waits until all work before it is done; here the numbers are
    arguments of a kernel.
    """
    if like.device.type == "cpu" or torch.compiler.is_compiling():  # a constant of the compiled graph
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    table = torch.tensor(values, dtype=like.dtype, device="cpu")
    result = torch.zeros(table.shape, dtype=like.dtype, device=like.device)
    torch._foreach_add_(result.view(-1).unbind(), table.flatten().tolist())
    return result
