"""Frozen layer with guided adapters."""

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.kernels.guided_aggregation.choice import guided_aggregation
from hf_any3d.modeling.layers.direct_weights import with_gathered_weights
from hf_any3d.modeling.point_ops.geometry import FlatGeometry, Geometry
from hf_any3d.tuners.guided_adapter import method
from hf_any3d.tuners.guided_adapter.config import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter.faster import CompiledPass, add_bottleneck
from hf_any3d.tuners.guided_adapter.method import CellAttention, CellNorm, Guidance
from hf_any3d.tuners.tuners_utils import WrappedModule


class LayerGate(nn.Module):
    """Learned interpolation, for each channel, from the input of a frozen layer (0) to its output (1)."""

    def __init__(self, hidden_size: int, start: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((hidden_size,), float(start)))

    def forward(self, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Interpolate between two `(..., hidden)` tensors."""
        # One tensor is kept for the backward pass; `lerp` would keep both.
        return torch.addcmul(inputs, outputs - inputs, self.weight.to(outputs.dtype))


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
    adds_positions = True
    guided_adapter_gate: nn.ModuleDict
    guided_adapter_view_norm: nn.ModuleDict
    guided_adapter_voxel_norm: nn.ModuleDict

    def __init__(self, base_layer: nn.Module, branch: str, hidden_size: int, views: int):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.views = views
        for name in (*self.adapter_layer_names, "guided_adapter_dropout"):
            setattr(self, name, nn.ModuleDict())
        self.guidance: dict[str, Guidance] = {}
        self._compiled: CompiledPass | None = None
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
            # Cells of each view have statistics of their own, voxels are one more view.
            norm = CellNorm(self.views, self.hidden_size, config.count_empty_cells)
            self.guided_adapter_view_norm[adapter_name] = norm
            self.guided_adapter_voxel_norm[adapter_name] = CellNorm(1, self.hidden_size)
            if adapter_name not in self.earlier:
                sizes = (config.attention_width, config.attention_heads, config.attention_dropout)
                attention = CellAttention(self.hidden_size, self.views, *sizes)
                self.guided_adapter_attention[adapter_name] = attention
        self.reset_parameters(adapter_name, config.init_weights, config.start)

    def reset_parameters(self, adapter_name: str, init_weights: bool, start: str) -> None:
        """Initialize an adapter's weights."""
        down = self.guided_adapter_down[adapter_name]
        up = self.guided_adapter_up[adapter_name]
        for linear in (down, up):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        if init_weights:
            # With zeros the branch starts as that of the frozen layer.
            nn.init.zeros_(up.weight)
        if start == "identity" and adapter_name in self.guidance:
            # The last gain before the sum over the views; the rows of the voxels only weigh the views.
            nn.init.zeros_(self.guided_adapter_view_norm[adapter_name].weight)
        if adapter_name in self.guided_adapter_attention:
            attention = self.guided_adapter_attention[adapter_name]
            for stacked in (attention.qkv_weight, attention.out_weight):
                # View by view: Xavier's bounds follow from the size of a single matrix, and would take further axes
                # for a kernel.
                for weight in stacked:
                    nn.init.xavier_uniform_(weight)

    def compile(self, **options: Any) -> None:
        """Let torch compile training passes of the frozen layer with its adapters, by options of `torch.compile`."""
        self._compiled = CompiledPass(**options)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        geometry: Geometry | FlatGeometry,
        positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Add the positions, if any, then run the frozen layer and the active adapters in order."""
        if self._compiled is not None and self._compiled.takes(self, geometry):
            return self._compiled(self, hidden_states, positions, geometry, args, kwargs)
        if positions is not None:
            hidden_states = hidden_states + positions
        # A gate mixes what went into the frozen layer with what came out, positions included.
        inputs = hidden_states
        hidden_states = hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        for name in self._running_adapters():
            if name in self.guided_adapter_gate:
                hidden_states = self.guided_adapter_gate[name](inputs, hidden_states)
            if name in self.guidance:
                modules = self.modules_of(name)
                places = geometry, self.guidance[name]
                hidden_states = guided_aggregation(method.guided_aggregation, hidden_states, *modules, *places)
        return hidden_states

    def modules_of(self, name: str) -> tuple[CellAttention, CellNorm, CellNorm]:
        """Return the attention of an adapter, which may be that of an earlier layer, and its two norms."""
        view_norm = self.guided_adapter_view_norm[name]
        attention = self._owner_for(name).guided_adapter_attention[name]
        if name in self.earlier:
            attention = with_gathered_weights(attention, view_norm.weight.dtype)
        return attention, view_norm, self.guided_adapter_voxel_norm[name]

    def _add_bottlenecks(self, module: nn.Module, args: tuple, output: Any) -> Any:
        # Mixtures of experts return the scores of their router beside the branch.
        if isinstance(output, tuple):
            return self._add_bottlenecks(module, args, output[0]), *output[1:]
        branch = output
        for name in self._running_adapters():
            branch = add_bottleneck(
                branch,
                self.guided_adapter_down[name],
                self.guided_adapter_up[name],
                self.guided_adapter_dropout[name],
                self.configs[name].bottleneck_scale,
            )
        return branch
