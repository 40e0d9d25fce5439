"""Parts of DAPT: the adapter with a scale for each token, and the scale and shift of channels."""

import math

import torch
from torch import nn

from hf_any3d.modeling.layers.heads import in_precision_of

_SPREAD = 0.02
"""Standard deviation of scales and shifts that start at random."""


class ScaleShift(nn.Module):
    """Scales and shifts each channel of `(…, width)`."""

    def __init__(self, width: int, is_random: bool):
        super().__init__()
        spread = _SPREAD if is_random else 0.0
        self.gamma = nn.Parameter(1 + spread * torch.randn(width))
        self.beta = nn.Parameter(spread * torch.randn(width))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Run on values of any precision; in float32 on those in half precision, which are rounded once."""
        wide = torch.promote_types(values.dtype, torch.float32)
        return (values.to(wide) * self.gamma + self.beta).to(values.dtype)


class DynamicAdapter(nn.Module):
    """Bottleneck on normed tokens, multiplied by a scale of each token, which is zero for tokens left as they are.

    Source: DAPT, as released.
    """

    def __init__(self, width: int, r: int, dropout: float, starts_at_zero: bool):
        super().__init__()
        self.adapter_layer_norm_before = nn.LayerNorm(width)
        self.scale = nn.Linear(width, 1)
        self.down_proj = nn.Linear(width, r)
        self.dropout = nn.Dropout(dropout)
        self.up_proj = nn.Linear(r, width)
        for linear in (self.scale, self.down_proj):
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
        if starts_at_zero:
            nn.init.zeros_(self.up_proj.weight)
        for linear in (self.scale, self.down_proj, self.up_proj):
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what is added to `(batch, tokens, width)`."""
        normed = self.adapter_layer_norm_before(in_precision_of(self, tokens))
        hidden = self.dropout(nn.functional.gelu(self.down_proj(normed)))
        change = self.up_proj(hidden) * torch.relu(self.scale(normed))
        return change.to(tokens.dtype)
