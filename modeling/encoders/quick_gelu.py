"""The GELU of CLIP's layers, fused."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import QuickGELUActivation

from hf_any3d.modeling import kernels


class FusedQuickGELU(nn.Module):
    """`x * sigmoid(1.702 * x)`, saving only its input for the backward pass."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the activation to a tensor of any shape."""
        return kernels.quick_gelu(hidden_states)


def fuse_quick_gelu(model: nn.Module) -> None:
    """Replace all quick GELUs inside a model; they have no weights, and values stay the same."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is QuickGELUActivation:
                setattr(module, name, FusedQuickGELU())
