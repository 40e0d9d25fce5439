"""Numbers on an accelerator that are not sent there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def constant(values: Sequence[Any], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers, in lists of any depth, as a tensor on the device and in the precision of another one.

    When a list is sent to an accelerator, the host waits until all work before it is done; here the numbers are
    arguments of a kernel.
    """
    dtype = dtype or like.dtype
    if like.device.type == "cpu" or torch.compiler.is_compiling():  # compilers make it a constant of the graph
        return torch.tensor(values, dtype=dtype, device=like.device)
    table = torch.tensor(values, dtype=dtype, device="cpu")
    result = torch.zeros(table.shape, dtype=dtype, device=like.device)
    torch._foreach_add_(result.view(-1).unbind(), table.flatten().tolist())  # pyright: ignore[reportPrivateImportUsage]
    return result
