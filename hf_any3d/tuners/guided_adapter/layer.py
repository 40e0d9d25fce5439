"""Frozen layer with guided adapters."""

import copy
from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.layers.forward_contract import gathered, is_sharded
from hf_any3d.modeling.point_ops.geometry import FlatGeometry, Geometry
from hf_any3d.tuners.guided_adapter.config import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter.module import (
    CellAttention,
    CellNorm,
    Guidance,
    LayerGate,
    add_bottleneck,
    guided_aggregation,
    guided_aggregation_flat,
)
from hf_any3d.tuners.tuners_utils import WrappedModule


class GuidedAdapterLayer(WrappedModule):
    """Encoder layer with a bottleneck added to its feed-forward branch, followed by guided aggregation."""

    adapter_layer_names = (
        "guided_adapter_down",
        "guided_adapter_up",
        "guided_adapter_attention",
        "guided_adapter_view_norm",
        "guided_adapter_voxel_norm",
        "guided_adapter_gate",
    )
    other_param_names = (*WrappedModule.other_param_names, "guided_adapter_dropout", "guidance")
    takes_geometry = True

    def __init__(self, base_layer: nn.Module, branch: str, hidden_size: int, views: int):
        super().__init__(base_layer)
        self.hidden_size, self.views = hidden_size, views
        for name in (*self.adapter_layer_names, "guided_adapter_dropout"):
            setattr(self, name, nn.ModuleDict())
        self.guidance: dict[str, Guidance] = {}
        # Only a hook can add to the branch before the residual sum inside the layer.
        self.hooks = [base_layer.get_submodule(branch).register_forward_hook(self._add_bottlenecks)]

    def build(self, adapter_name: str, config: GuidedAdapterConfig) -> None:
        """Create an adapter, which shares the attention of an earlier layer, or has its own if there is none."""
        self.guided_adapter_down[adapter_name] = nn.Linear(self.hidden_size, config.r)
        self.guided_adapter_up[adapter_name] = nn.Linear(config.r, self.hidden_size)
        self.guided_adapter_dropout[adapter_name] = nn.Dropout(config.bottleneck_dropout)
        if config.gate is not None:
            self.guided_adapter_gate[adapter_name] = LayerGate(self.hidden_size, config.gate)
        if config.guidance:
            self.guidance[adapter_name] = Guidance(
                config.aggregation_scale, config.cell_size, config.voxel_size, config.pooling
            )
            norm = CellNorm(self.views, self.hidden_size, config.count_empty_cells)
            self.guided_adapter_view_norm[adapter_name] = norm
            self.guided_adapter_voxel_norm[adapter_name] = CellNorm(1, self.hidden_size)
            if adapter_name not in self.earlier:
                sizes = (config.attention_width, config.attention_heads, config.attention_dropout)
                attention = CellAttention(self.hidden_size, self.views, *sizes)
                self.guided_adapter_attention[adapter_name] = attention
        self.reset_parameters(adapter_name, config.init_weights)

    def reset_parameters(self, adapter_name: str, init_weights: bool) -> None:
        """Initialize an adapter's weights."""
        down, up = self.guided_adapter_down[adapter_name], self.guided_adapter_up[adapter_name]
        for linear in (down, up):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        if init_weights:
            # With zeros the branch starts as that of the frozen layer.
            nn.init.zeros_(up.weight)
        if adapter_name in self.guided_adapter_attention:
            attention = self.guided_adapter_attention[adapter_name]
            for stacked in (attention.qkv_weight, attention.out_weight):
                # View by view: Xavier's bounds follow from the size of a single matrix, and would take further axes
                # for a kernel.
                for weight in stacked:
                    nn.init.xavier_uniform_(weight)

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, geometry: Geometry | FlatGeometry, **kwargs: Any
    ) -> torch.Tensor:
        """Run the frozen layer, then the active adapters in order."""
        inputs = hidden_states
        hidden_states = hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        for name in self._running_adapters():
            if name in self.guided_adapter_gate:
                hidden_states = self.guided_adapter_gate[name](inputs, hidden_states)
            if name not in self.guidance:
                continue
            view_norm, guidance = self.guided_adapter_view_norm[name], self.guidance[name]
            attention = self._owner_for(name).guided_adapter_attention[name]
            if name in self.earlier and any(is_sharded(parameter) for parameter in attention.parameters()):
                # FSDP2 gathers the weights of a layer only while that layer runs, so shared ones are gathered here
                # again, in a shallow copy: the layer that owns them keeps its shards.
                sharded, attention = attention, copy.copy(attention)
                dtype = view_norm.weight.dtype
                attention._parameters = {key: gathered(weight).to(dtype) for key, weight in sharded.named_parameters()}
            modules = attention, view_norm, self.guided_adapter_voxel_norm[name]
            if isinstance(geometry, FlatGeometry):
                cells = geometry.view_cells(guidance.cell_size), geometry.voxels(guidance.voxel_size)
                hidden_states = guided_aggregation_flat(hidden_states, *modules, *cells, guidance)
                continue
            # Adapters have the batch first, whatever the order of the encoder's axes is.
            tokens = hidden_states.transpose(0, 1) if geometry.batch_second else hidden_states
            tokens = guided_aggregation(tokens, *modules, geometry, guidance)
            hidden_states = tokens.transpose(0, 1) if geometry.batch_second else tokens
        return hidden_states

    def _add_bottlenecks(self, module: nn.Module, args: tuple, branch: torch.Tensor) -> torch.Tensor:
        for name in self._running_adapters():
            branch = add_bottleneck(
                branch,
                self.guided_adapter_down[name],
                self.guided_adapter_up[name],
                self.guided_adapter_dropout[name],
                self.configs[name].bottleneck_scale,
            )
        return branch
