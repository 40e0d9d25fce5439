"""Batch norms that are fused with the linear layers before them."""

from __future__ import annotations

import torch
from torch import nn

from hf_any3d.modeling.layers.forward_contract import is_unmodified


def is_plain_training(linear: nn.Module, norm: nn.Module) -> bool:
    """Whether a linear layer and its norm are unchanged modules of torch, in training and in full precision.

    Synchronised norms, adapters and observers replace these modules with other types or add hooks to them.
    """
    if not is_unmodified(linear, norm) or not norm.training:
        return False
    return linear.weight.dtype in (torch.float32, torch.float64) and norm.momentum is not None


@torch.no_grad()
def update_running_statistics(
    norm: nn.BatchNorm1d, bias: torch.Tensor | None, mean: torch.Tensor, variance: torch.Tensor, rows: int
) -> None:
    """Update running statistics as the norm itself would.

    Args:
        norm: Batch norm to update.
        bias: Bias of the preceding layer, which `mean` does not include.
        mean: `(channels,)`.
        variance: `(channels,)`, biased (divided by `rows`).
        rows: Number of rows, at least 2.
    """
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean if bias is None else mean + bias, norm.momentum)
    norm.running_var.lerp_(variance * (rows / (rows - 1)), norm.momentum)
