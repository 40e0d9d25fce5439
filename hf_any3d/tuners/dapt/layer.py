"""Frozen layer with DAPT's adapters, scales and prompts."""

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_ops.geometry import Geometry
from hf_any3d.tuners.dapt.config import DAPTConfig
from hf_any3d.tuners.tuners_utils import WrappedModule

_SPREAD = 0.02
"""Standard deviation of scales and shifts that start at random."""


class ScaleShift(nn.Module):
    """Scales and shifts each channel of `(…, width)`."""

    def __init__(self, width: int, is_random: bool):
        super().__init__()
        spread = _SPREAD if is_random else 0.0
        # As released, around 1 and 0 with a random part; without it, the model starts as the frozen one.
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
        # Names are those of the released files.
        self.scale = nn.Linear(width, 1)
        self.down_proj = nn.Linear(width, r)
        self.dropout = nn.Dropout(dropout)
        self.up_proj = nn.Linear(r, width)
        # As released: Kaiming's rule inside, zeros at the end, so that nothing is added at first.
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
        # A token whose scale is negative gets nothing.
        change = self.up_proj(hidden) * torch.relu(self.scale(normed))
        return change.to(tokens.dtype)


class DAPTLayer(WrappedModule):
    """Layer whose inner outputs are scaled and shifted, with an adapter beside its MLP or after it, and a prompt.

    Prompts follow the tokens, so that the class token stays first; attention is bidirectional.
    """

    adapter_layer_names = ("dapt_prompt", "dapt_tokens")
    other_param_names = (*WrappedModule.other_param_names, "arriving")
    takes_geometry = True

    def __init__(
        self, base_layer: nn.Module, hidden_size: int, is_open: bool, is_first: bool, final_norm: nn.Module | None
    ):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.is_open = is_open
        self.is_first = is_first
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self.arriving: dict[str, int] = {}
        # Every norm and linear layer in a block, as released: six of them in a point transformer's
        inside = {name.replace(".", "_"): module for name, module in base_layer.named_modules() if _width_of(module)}
        self.widths = {name: _width_of(module) for name, module in inside.items()}
        if final_norm is not None:
            inside["final_norm"] = final_norm
            self.widths["final_norm"] = hidden_size
        # Only hooks can change what is computed between the inner modules of a layer.
        self.hooks = [module.register_forward_hook(partial(self._scale, name)) for name, module in inside.items()]

    def build(self, adapter_name: str, config: DAPTConfig, arriving: int = 0) -> None:
        """Create an adapter, at which so many prompts of its own arrive from earlier layers."""
        is_random = config.scales == "random"
        scales = {name: ScaleShift(width, is_random) for name, width in self.widths.items()}
        self._add_nested(
            adapter_name,
            dapt_adapter=DynamicAdapter(self.hidden_size, config.r, config.dropout, config.init_weights),
            dapt_scales=nn.ModuleDict(scales),
        )
        self.dapt_prompt[adapter_name] = ScaleShift(self.hidden_size, is_random)
        # As released, the tokens of the patches have scales of their own before the first block.
        if self.is_open and self.is_first:
            self.dapt_tokens[adapter_name] = ScaleShift(self.hidden_size, is_random)
        self.arriving[adapter_name] = arriving

    @property
    def extra_tokens(self) -> int:
        """Number of prompts behind the tokens, by which the model extends masks and positions."""
        return sum(self.arriving[name] for name in self._running_adapters())

    @property
    def takes_added_tokens(self) -> bool:
        """True if the model leaves prompts of earlier layers behind the tokens."""
        return self.extra_tokens > 0

    def forward(self, hidden_states: torch.Tensor, *args: Any, geometry: Geometry, **kwargs: Any) -> torch.Tensor:
        """Run the frozen layer and the active adapters.

        Returns:
            The same and one more prompt of each adapter, `(batch, sequence + prompts, hidden)`.
        """
        names = self._running_adapters()
        if not names:
            return hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        # The class token has no scale there.
        special = geometry.special_tokens
        for name in names:
            if name in self.dapt_tokens:
                patches = self.dapt_tokens[name](hidden_states[:, special:])
                hidden_states = torch.cat([hidden_states[:, :special], patches], dim=1)
        # Other layers do not show their inner tokens, so the bottleneck follows them.
        if not self.is_open:
            output = hidden_of(self.base_layer(hidden_states, *args, **kwargs))
            changes = [self.nested[name]["dapt_adapter"](output) for name in names]
            return self._with_prompts(names, torch.stack([output, *changes]).sum(dim=0), changes)
        # As released, positions are added once, though the base was pretrained with them before every block.
        is_once = any(self.configs[name].positions == "once" for name in names)
        positions = None if is_once and not self.is_first else args[0]
        # By position: re-entrant checkpoints take no keywords.
        return self.base_layer(hidden_states, positions, None, partial(self._second_half, names), **kwargs)

    def _second_half(
        self, names: list[str], normed: torch.Tensor, residual: torch.Tensor, branch: torch.Tensor
    ) -> torch.Tensor:
        """Add the adapters to the output of a block's MLP."""
        block: Any = self.base_layer
        changes = [self.nested[name]["dapt_adapter"](normed) for name in names]
        # One drop path for both, as released.
        branch = torch.stack([branch, *changes]).sum(dim=0)
        return self._with_prompts(names, residual + block.drop_path(branch), changes)

    def _with_prompts(self, names: list[str], output: torch.Tensor, changes: list[torch.Tensor]) -> torch.Tensor:
        # (batch, 1, hidden): the mean over all tokens, prompts included
        means = [nn.functional.gelu(change).mean(dim=1, keepdim=True) for change in changes]
        prompts = [self.dapt_prompt[name](mean) for name, mean in zip(names, means, strict=True)]
        return torch.cat([output, *prompts], dim=1)

    def _scale(self, key: str, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        for name in self._running_adapters():
            output = self.nested[name]["dapt_scales"][key](output)
        return output


def _width_of(module: nn.Module) -> int:
    """Return the output channels of a linear layer or norm; 0 for other modules."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return module.out_features if isinstance(module, nn.Linear) else module.nf
    weight = getattr(module, "weight", None)
    return weight.numel() if isinstance(weight, nn.Parameter) and weight.ndim == 1 else 0
