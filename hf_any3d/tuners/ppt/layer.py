"""Frozen block with the tokens of further patches, and shared MLPs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from hf_any3d.modeling.layers.forward_contract import gathered, is_sharded
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_ops.geometry import Geometry
from hf_any3d.tuners.ppt.config import PPTConfig
from hf_any3d.tuners.tuners_utils import WrappedModule

_MLPS = ("ppt_prompt_mlp", "ppt_prompt_pos_mlp", "ppt_prompt_all_mlp")
"""On the tokens of the patches, on those of the further patches, and beside the block's MLP."""
_SPREAD = 0.02
"""Standard deviation of initial weights."""


class FurtherPatches(nn.Module):
    """Further patches of an adapter, and the first block, which owns the MLPs."""

    def __init__(self, num_groups: int, group_size: int, first: PPTLayer | None):
        super().__init__()
        self.num_groups, self.group_size = num_groups, group_size
        # In a tuple, so that torch does not register the other block as a child of this one.
        self.first = () if first is None else (first,)


class PPTLayer(WrappedModule):
    """Block that runs on the tokens of patches and, behind them, those of further patches."""

    adapter_layer_names = ("ppt_patches",)
    other_param_names = ("nested",)
    merge_error = "PPT's prompts and MLPs cannot be merged into the encoder; use unload() to remove them"
    # Models pass token positions only to layers with this attribute.
    takes_geometry = True

    def __init__(self, base_layer: nn.Module, hidden_size: int):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.ppt_patches = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: PPTConfig, first: PPTLayer | None) -> None:
        """Add an adapter, whose MLPs the layer `first` owns, or this one if that is None."""
        self.ppt_patches[adapter_name] = FurtherPatches(config.num_groups, config.group_size, first)
        for name in _MLPS if first is None else ():
            linears = nn.Linear(self.hidden_size, config.r), nn.Linear(config.r, self.hidden_size)
            for linear in linears:
                nn.init.trunc_normal_(linear.weight, std=_SPREAD)
                nn.init.zeros_(linear.bias)
            mlp = nn.Sequential(linears[0], nn.GELU(), linears[1])
            self._add_nested(adapter_name, **{name: mlp})
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def takes_added_tokens(self) -> bool:
        """True if the model leaves the tokens of further patches behind the others: not for the first block."""
        return any(self.ppt_patches[name].first for name in self._running_adapters())

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor | None = None,
        *args: Any,
        geometry: Geometry,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the frozen block and the active adapters: `(batch, sequence + further patches, hidden)`."""
        names = self._running_adapters()
        if not names:
            return self.base_layer(hidden_states, positions, *args, **kwargs)
        special = geometry.special_tokens
        count = special + geometry.centers.shape[1]
        tokens, prompts = hidden_states[:, :count], hidden_states[:, count:]
        if positions is not None:
            tokens = tokens + positions[:, :count]
        patches, added = tokens[:, special:], []
        changed = torch.stack([patches, *(self._run("ppt_prompt_mlp", name, patches) for name in names)]).sum(dim=0)
        for name in names:
            embedded, places = self._embedded(name, geometry)
            own, prompts = prompts[:, : embedded.shape[1]], prompts[:, embedded.shape[1] :]
            own = (own if self.ppt_patches[name].first else embedded.to(tokens.dtype)) + places.to(tokens.dtype)
            added.append(own + self._run("ppt_prompt_pos_mlp", name, own))
        sequence = torch.cat([tokens[:, :special], changed, *added], dim=1)
        # By position: re-entrant checkpoints take no keywords.
        return self.base_layer(sequence, None, partial(self._beside, names), *args, **kwargs)

    def _embedded(self, name: str, geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and positions of an adapter's patches, computed once for all blocks."""
        further: Any = self.ppt_patches[name]
        embed = geometry.embed_patches
        if embed is None:
            raise ValueError("PPT reads further patches of each cloud, but the model was given patches, not clouds")
        size = (further.num_groups, further.group_size)
        return geometry.once(("patches", *size), lambda _: embed(*size))

    def _beside(self, names: list[str], tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._run("ppt_prompt_all_mlp", name, tokens) for name in names]).sum(dim=0)

    def _run(self, which: str, name: str, tokens: torch.Tensor) -> torch.Tensor:
        first: Any = self.ppt_patches[name].first
        mlp = (first[0] if first else self).nested[name][which]
        if not any(is_sharded(weight) for weight in mlp.parameters()):
            return mlp(in_precision_of(mlp, tokens)).to(tokens.dtype)
        # FSDP2 gathers the weights of a block only while that block runs.
        weights = {key: gathered(weight) for key, weight in mlp.named_parameters()}
        return functional_call(mlp, weights, (tokens.to(weights["0.weight"].dtype),)).to(tokens.dtype)
