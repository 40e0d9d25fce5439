"""A frozen layer with guided adapters behind it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.any2point.guided_adapter import (
    CellAttention,
    CellNorm,
    Guidance,
    LayerGate,
    bottleneck,
    guided_aggregation,
)
from hf_any3d.modeling.any2point.virtual_projection import Geometry
from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.tuners.guided_adapter.config import GuidedAdapterConfig
from hf_any3d.tuners.wrapped import WrappedModule


class GuidedAdapterLayer(WrappedModule):
    """Wraps one encoder layer: a bottleneck joins its feed-forward branch, guided aggregation follows its output.

    Args:
        base_layer: The frozen layer.
        branch: Path from the layer to the module whose output is the feed-forward branch.
        hidden_size: Channels of a token.
        views: Number of virtual views.
    """

    adapter_layer_names = (
        "guided_adapter_down",
        "guided_adapter_up",
        "guided_adapter_attention",
        "guided_adapter_view_norm",
        "guided_adapter_voxel_norm",
        "guided_adapter_gate",
    )
    other_param_names = ("guided_adapter_dropout", "guidance", "bottleneck_scale", "attention_owner")
    # The models look for this before they hand a layer the places of the tokens.
    takes_geometry = True

    def __init__(self, base_layer: nn.Module, branch: str, hidden_size: int, views: int):
        super().__init__(base_layer)
        self.hidden_size, self.views = hidden_size, views
        for name in (*self.adapter_layer_names, "guided_adapter_dropout"):
            setattr(self, name, nn.ModuleDict())
        self.guidance: dict[str, Guidance] = {}
        self.bottleneck_scale: dict[str, float] = {}
        self.attention_owner: dict[str, tuple[GuidedAdapterLayer, ...]] = {}
        # Inside the layer, between branch and residual sum, is a place that only a hook reaches.
        self._hook = base_layer.get_submodule(branch).register_forward_hook(self._add_bottlenecks)

    def update_layer(
        self, adapter_name: str, config: GuidedAdapterConfig, attention_owner: GuidedAdapterLayer | None
    ) -> None:
        """Add an adapter; `attention_owner` is the layer whose attention it shares, None to own one."""
        self.guided_adapter_down[adapter_name] = nn.Linear(self.hidden_size, config.r)
        self.guided_adapter_up[adapter_name] = nn.Linear(config.r, self.hidden_size)
        self.guided_adapter_dropout[adapter_name] = nn.Dropout(config.bottleneck_dropout)
        if config.gate is not None:
            self.guided_adapter_gate[adapter_name] = LayerGate(self.hidden_size, config.gate)
        if config.guidance:
            self._add_guidance(adapter_name, config, attention_owner)
        self.bottleneck_scale[adapter_name] = config.bottleneck_scale
        self.reset_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _add_guidance(
        self, adapter_name: str, config: GuidedAdapterConfig, attention_owner: GuidedAdapterLayer | None
    ) -> None:
        self.guided_adapter_view_norm[adapter_name] = CellNorm(self.views, self.hidden_size, config.count_empty_cells)
        self.guided_adapter_voxel_norm[adapter_name] = CellNorm(1, self.hidden_size)
        if attention_owner is None:
            self.guided_adapter_attention[adapter_name] = CellAttention(
                self.hidden_size, self.views, config.attention_width, config.attention_heads, config.attention_dropout
            )
        else:
            # In a tuple, so that torch does not register the other layer as a child of this one.
            self.attention_owner[adapter_name] = (attention_owner,)
        self.guidance[adapter_name] = Guidance(
            config.aggregation_scale, config.cell_size, config.voxel_size, config.pooling
        )

    def reset_parameters(self, adapter_name: str, init_weights: bool) -> None:
        """Draw an adapter's weights anew."""
        down, up = self.guided_adapter_down[adapter_name], self.guided_adapter_up[adapter_name]
        for linear in (down, up):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        if init_weights:
            nn.init.zeros_(up.weight)
        if adapter_name in self.guided_adapter_attention:
            attention = self.guided_adapter_attention[adapter_name]
            for stacked in (attention.qkv_weight, attention.out_weight):
                for weight in stacked:
                    nn.init.xavier_uniform_(weight)

    def forward(self, hidden_states: torch.Tensor, *args: Any, geometry: Geometry, **kwargs: Any) -> torch.Tensor:
        """Run the frozen layer, then the active adapters one after the other; `(batch, sequence, hidden)`."""
        entered = hidden_states
        hidden_states = hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        for name in self._running_adapters():
            if name in self.guided_adapter_gate:
                hidden_states = self.guided_adapter_gate[name](entered, hidden_states)
            if name not in self.guidance:
                continue
            if geometry.batch_second:
                hidden_states = self._aggregate(name, hidden_states.transpose(0, 1), geometry).transpose(0, 1)
            else:
                hidden_states = self._aggregate(name, hidden_states, geometry)
        return hidden_states

    def remove_hook(self) -> None:
        """Give the frozen layer back as it was."""
        self._hook.remove()

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: what follows a non-linear layer cannot become part of its weights."""
        raise ValueError("a guided adapter cannot be merged into the encoder; use unload() to remove it")

    unmerge = merge

    def _aggregate(self, name: str, hidden_states: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        view_norm = self.guided_adapter_view_norm[name]
        if name in self.attention_owner:
            owned = self.attention_owner[name][0].guided_adapter_attention[name]
            attention = _in_one_piece(owned, view_norm.weight.dtype)
        else:
            attention = self.guided_adapter_attention[name]
        return guided_aggregation(
            hidden_states,
            attention,
            view_norm,
            self.guided_adapter_voxel_norm[name],
            geometry,
            self.guidance[name],
        )

    def _add_bottlenecks(self, module: nn.Module, args: tuple, branch: torch.Tensor) -> torch.Tensor:
        for name in self._running_adapters():
            branch = branch + bottleneck(
                branch,
                self.guided_adapter_down[name],
                self.guided_adapter_up[name],
                self.guided_adapter_dropout[name],
                self.bottleneck_scale[name],
            )
        return branch


def _in_one_piece(attention: CellAttention, dtype: torch.dtype) -> CellAttention:
    """The attention of another layer with whole weights, also where FSDP2 shards that layer apart from this one.

    FSDP2 gathers the weights of a layer while it runs that layer. Those that it shares with a later one are gathered
    here once more; their gradients are averaged over the processes, as FSDP2 does.

    Args:
        attention: The shared attention.
        dtype: What weights that are gathered here are cast to, the type of the layer that asks.
    """
    if not any(hasattr(parameter, "full_tensor") for parameter in attention.parameters()):
        return attention
    whole = copy.copy(attention)
    whole._parameters = {name: _gather(parameter).to(dtype) for name, parameter in attention.named_parameters()}
    return whole


def _gather(parameter: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import Partial

    mesh = parameter.device_mesh
    whole = parameter.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if whole.requires_grad:
        whole.register_hook(lambda gradient: gradient / mesh.size())
    return whole
