"""Frozen block with the tokens of further patches, and shared MLPs."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from hf_any3d.modeling.layers.direct_weights import gathered, is_sharded
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_ops.geometry import Geometry
from hf_any3d.tuners.ppt.config import PPTConfig
from hf_any3d.tuners.tuners_utils import WrappedModule

_MLPS = ("ppt_prompt_mlp", "ppt_prompt_pos_mlp", "ppt_prompt_all_mlp")
"""On the tokens of the patches, on those of the further patches, and beside the block's MLP."""
_SPREAD = 0.02
"""Standard deviation of initial weights."""


class PPTLayer(WrappedModule):
    """Block that runs on the tokens of patches and, behind them, those of further patches."""

    takes_geometry = True

    def __init__(self, base_layer: nn.Module, hidden_size: int):
        super().__init__(base_layer)
        self.hidden_size = hidden_size

    def build(self, adapter_name: str, config: PPTConfig) -> None:
        """Create MLPs, unless an earlier layer owns them."""
        for name in () if adapter_name in self.earlier else _MLPS:
            linears = nn.Linear(self.hidden_size, config.r), nn.Linear(config.r, self.hidden_size)
            for linear in linears:
                nn.init.trunc_normal_(linear.weight, std=_SPREAD)
                nn.init.zeros_(linear.bias)
            mlp = nn.Sequential(linears[0], nn.GELU(), linears[1])
            self._add_nested(adapter_name, **{name: mlp})

    @property
    def takes_added_tokens(self) -> bool:
        """True if the model leaves the tokens of further patches behind the others: not for the first block."""
        return any(name in self.earlier for name in self._running_adapters())

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
        embed = geometry.embed_patches
        assert embed is not None  # a model that is given clouds, not patches
        count = special + geometry.centers.shape[1]
        tokens = hidden_states[:, :count]
        prompts = hidden_states[:, count:]
        # Here and not in the block, since the MLPs read tokens with their positions.
        if positions is not None:
            tokens = tokens + positions[:, :count]
        patches = tokens[:, special:]
        added = []
        # Neither the class token nor the further patches pass this one.
        changed = torch.stack([patches, *(self._run("ppt_prompt_mlp", name, patches) for name in names)]).sum(dim=0)
        for name in names:
            size = (self.configs[name].num_groups, self.configs[name].group_size)
            # Computed once for all blocks.
            embedded, places = geometry.once(("patches", *size), lambda _, size=size: embed(*size))
            # Of each adapter in turn: the first block has none yet, and reads them from the patch encoder.
            further = prompts[:, : embedded.shape[1]]
            prompts = prompts[:, embedded.shape[1] :]
            further = (further if name in self.earlier else embedded.to(tokens.dtype)) + places.to(tokens.dtype)
            added.append(further + self._run("ppt_prompt_pos_mlp", name, further))
        sequence = torch.cat([tokens[:, :special], changed, *added], dim=1)
        # By position: re-entrant checkpoints take no keywords.
        return self.base_layer(sequence, None, partial(self._beside, names), *args, **kwargs)

    def _beside(self, names: list[str], tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._run("ppt_prompt_all_mlp", name, tokens) for name in names]).sum(dim=0)

    def _run(self, which: str, name: str, tokens: torch.Tensor) -> torch.Tensor:
        mlp = self._owner_for(name).nested[name][which]
        if not any(is_sharded(weight) for weight in mlp.parameters()):
            return mlp(in_precision_of(mlp, tokens)).to(tokens.dtype)
        # FSDP2 gathers the weights of a block only while that block runs.
        weights = {key: gathered(weight) for key, weight in mlp.named_parameters()}
        return functional_call(mlp, weights, (tokens.to(weights["0.weight"].dtype),)).to(tokens.dtype)
