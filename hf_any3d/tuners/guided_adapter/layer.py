"""Frozen layer with guided adapters."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.kernels.guided_table import mark_batch
from hf_any3d.modeling.layers.direct_weights import gathered, is_sharded
from hf_any3d.modeling.point_ops.geometry import FlatGeometry, Geometry, table_of_places
from hf_any3d.tuners.guided_adapter.config import GuidedAdapterConfig
from hf_any3d.tuners.guided_adapter.module import (
    CellAttention,
    CellNorm,
    Guidance,
    LayerGate,
    LayerTable,
    TableCode,
    add_bottleneck,
    aggregate_by_table,
    guided_aggregation,
    guided_aggregation_flat,
    prepare_table,
    takes_table,
    update_statistics,
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
    adds_positions = True

    def __init__(self, base_layer: nn.Module, branch: str, hidden_size: int, views: int):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.views = views
        for name in (*self.adapter_layer_names, "guided_adapter_dropout"):
            setattr(self, name, nn.ModuleDict())
        self.guidance: dict[str, Guidance] = {}
        self._compiled_pass: Callable[..., Any] | None = None
        self._table_code = TableCode()
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
        """Let torch compile training passes of the frozen layer with its adapters, by options of `torch.compile`.

        Places, cells and shared weights are prepared before, so that one compiled region serves all layers of a model.
        Passes without a table of all cells, such as those in evaluation, are not compiled.
        """
        self._compiled_pass = torch.compile(GuidedAdapterLayer._pass, fullgraph=True, **options)
        self._table_code = TableCode(
            torch.compile(table_of_places, fullgraph=True, **options),
            torch.compile(CellAttention.folded, fullgraph=True, **options),
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        geometry: Geometry | FlatGeometry,
        positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Add the positions, if any, then run the frozen layer and the active adapters in order."""
        running = self._running_adapters()
        # Prepared before the layer runs, so that compiled code finds them ready
        guided = [name for name in running if name in self.guidance]
        tables = {}  # of all cells; the plain form of the aggregation needs none
        if not isinstance(geometry, FlatGeometry):
            for name in guided:
                modules = self._modules_of(name)
                if takes_table(hidden_states, *modules, self.guidance[name], self._compiled_pass is not None):
                    code = self._table_code if self.training else TableCode()
                    tables[name] = prepare_table(*modules, geometry, self.guidance[name], code)
        run = GuidedAdapterLayer._pass
        places: Geometry | FlatGeometry | None = geometry
        have_tables = len(tables) == len(guided)
        if self._compiled_pass and self.training and running and have_tables and isinstance(geometry, Geometry):
            run = self._compiled_pass
            places = None  # all that code needs of them is in the tables
            # Batches of any size run the same code.
            for of_batch in (hidden_states, positions):
                if of_batch is not None:
                    torch._dynamo.maybe_mark_dynamic(of_batch, 1 if geometry.batch_second else 0)
            for prepared in tables.values():
                mark_batch(prepared.table)
        hidden_states, statistics = run(self, hidden_states, positions, places, tables, args, kwargs)
        # Tables alone return them; the norms of the plain form update their own.
        for name, of_batch in statistics.items():
            norms = self.guided_adapter_view_norm[name], self.guided_adapter_voxel_norm[name]
            update_statistics(*norms, tables[name], *of_batch)
        return hidden_states

    def _modules_of(self, name: str) -> tuple[CellAttention, CellNorm, CellNorm]:
        """Return the attention of an adapter, which may be that of an earlier layer, and its two norms."""
        view_norm = self.guided_adapter_view_norm[name]
        attention = self._owner_for(name).guided_adapter_attention[name]
        if name in self.earlier and any(is_sharded(parameter) for parameter in attention.parameters()):
            # FSDP2 gathers the weights of a layer only while that layer runs, so shared ones are gathered here again,
            # in a shallow copy: the layer that owns them keeps its shards.
            sharded = attention
            attention = copy.copy(attention)
            dtype = view_norm.weight.dtype
            attention._parameters = {key: gathered(weight).to(dtype) for key, weight in sharded.named_parameters()}
        return attention, view_norm, self.guided_adapter_voxel_norm[name]

    def _pass(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor | None,
        geometry: Geometry | FlatGeometry | None,
        tables: dict[str, LayerTable],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Run the frozen layer and the active adapters.

        `tables` has those that aggregate by a table, and `geometry` serves the others.

        Returns:
            The hidden states, and the statistics of the batch of adapters with tables; see `aggregate_by_table`.
        """
        if positions is not None:
            hidden_states = hidden_states + positions
        # A gate mixes what went into the frozen layer with what came out, positions included.
        inputs = hidden_states
        statistics = {}
        hidden_states = hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        for name in self._running_adapters():
            if name in self.guided_adapter_gate:
                hidden_states = self.guided_adapter_gate[name](inputs, hidden_states)
            if name not in self.guidance:
                continue
            guidance = self.guidance[name]
            if name in tables:
                norms = self.guided_adapter_view_norm[name], self.guided_adapter_voxel_norm[name]
                hidden_states, *of_batch = aggregate_by_table(hidden_states, *norms, tables[name], guidance.scale)
                statistics[name] = tuple(of_batch)
                continue
            modules = self._modules_of(name)
            if isinstance(geometry, FlatGeometry):
                # Tokens of all clouds in one list: matrices of all pairs would be of thousands of tokens squared.
                cells = geometry.view_cells(guidance.cell_size), geometry.voxels(guidance.voxel_size)
                hidden_states = guided_aggregation_flat(hidden_states, *modules, *cells, guidance)
                continue
            assert geometry is not None
            # Adapters have the batch first, whatever the order of the encoder's axes is.
            tokens = hidden_states.transpose(0, 1) if geometry.batch_second else hidden_states
            tokens = guided_aggregation(tokens, *modules, geometry, guidance)
            hidden_states = tokens.transpose(0, 1) if geometry.batch_second else tokens
        return hidden_states, statistics

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
