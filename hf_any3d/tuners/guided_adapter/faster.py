"""Faster forms of an adapted layer: the fused bottleneck, and a training pass as one compiled region."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_any3d.modeling import kernels
from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.kernels.dispatch import runs_reference
from hf_any3d.modeling.kernels.guided_aggregation import table_form
from hf_any3d.modeling.kernels.guided_aggregation.table import mark_batch
from hf_any3d.modeling.layers.direct_weights import is_unmodified
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_ops.geometry import table_of_places
from hf_any3d.tuners.guided_adapter import method


class AdaptedLayer(Protocol):
    """The part of a `GuidedAdapterLayer` that a compiled pass reads."""

    training: bool
    base_layer: nn.Module
    guidance: dict[str, method.Guidance]
    guided_adapter_gate: nn.ModuleDict
    guided_adapter_view_norm: nn.ModuleDict
    guided_adapter_voxel_norm: nn.ModuleDict

    def _running_adapters(self) -> list[str]:
        """Return the names of the adapters that run."""
        ...

    def modules_of(self, name: str) -> tuple[method.CellAttention, method.CellNorm, method.CellNorm]:
        """Return the attention of an adapter and its two norms."""
        ...


def add_bottleneck(branch: Tensor, down: nn.Linear, up: nn.Linear, dropout: nn.Module, scale: float) -> Tensor:
    """Add `method.bottleneck` to a branch of any precision."""
    narrow = in_precision_of(down, branch)
    if runs_reference() or not is_unmodified(up):
        return branch + method.bottleneck(narrow, down, up, dropout, scale).to(branch.dtype)
    if isinstance(dropout, nn.Dropout) and is_unmodified(down) and kernels.bottleneck.is_chosen_on(branch.device):
        # As a number: the fused form draws and applies the mask by itself.
        rate = dropout.p if dropout.training else 0.0
        weights = down.weight, down.bias, up.weight, up.bias
        return kernels.bottleneck(narrow, *weights, rate, scale).to(branch.dtype)
    hidden = dropout(kernels.quick_gelu(down(narrow)))
    # Scaling the narrow rows and the bias is cheaper than scaling the wide result.
    return branch + nn.functional.linear(hidden * scale, up.weight, up.bias * scale).to(branch.dtype)


class CompiledPass:
    """Training passes of a layer with its adapters in code that torch compiles, by options of `torch.compile`.

    Places, cells and shared weights are prepared before, so that one compiled region serves all layers of a model.
    """

    def __init__(self, **options: Any):
        self._run = torch.compile(run_with_tables, fullgraph=True, **options)
        self._table = torch.compile(table_of_places, fullgraph=True, **options)
        self._fold = torch.compile(table_form.fold, fullgraph=True, **options)

    def takes(self, layer: AdaptedLayer, geometry: Any) -> bool:
        """Return whether compiled code computes what a layer does now: in training, by tables of all cells."""
        running = layer._running_adapters()
        guided = [name for name in running if name in layer.guidance]
        return (
            layer.training
            and bool(running)
            and hasattr(geometry, "table")
            and all(table_form.is_right(*layer.modules_of(name), geometry, layer.guidance[name]) for name in guided)
        )

    def __call__(
        self,
        layer: AdaptedLayer,
        hidden_states: Tensor,
        positions: Tensor | None,
        geometry: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Run a layer; the arguments are those of its `forward`."""
        # Batches of any size run the same code.
        for of_batch in (hidden_states, positions):
            if of_batch is not None:
                torch._dynamo.maybe_mark_dynamic(of_batch, 1 if geometry.batch_second else 0)
        tables = {}
        for name in layer._running_adapters():
            if name in layer.guidance:
                attention, view_norm, _ = layer.modules_of(name)
                code = self._table, self._fold
                tables[name] = table_form.prepare(attention, view_norm, geometry, layer.guidance[name], *code)
                mark_batch(tables[name].table)
        hidden_states, statistics = self._run(layer, hidden_states, positions, tables, args, kwargs)
        for name, of_batch in statistics.items():
            _, *norms = layer.modules_of(name)
            table_form.update_statistics(*norms, tables[name], *of_batch)
        return hidden_states


def run_with_tables(
    layer: AdaptedLayer,
    hidden_states: Tensor,
    positions: Tensor | None,
    tables: dict[str, table_form.LayerTable],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
    """Compute `GuidedAdapterLayer.forward` by tables; also returns the statistics of the batch of each adapter."""
    if positions is not None:
        hidden_states = hidden_states + positions
    inputs = hidden_states
    statistics = {}
    hidden_states = hidden_of(layer.base_layer(hidden_states, *args, **kwargs))
    for name in layer._running_adapters():
        if name in layer.guided_adapter_gate:
            hidden_states = layer.guided_adapter_gate[name](inputs, hidden_states)
        if name in tables:
            norms = layer.guided_adapter_view_norm[name], layer.guided_adapter_voxel_norm[name]
            scale = layer.guidance[name].scale
            hidden_states, *of_batch = table_form.aggregate_prepared(hidden_states, *norms, tables[name], scale)
            statistics[name] = tuple(of_batch)
    return hidden_states, statistics
