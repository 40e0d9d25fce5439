"""Frozen layer with PointGST's adapters."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.point_ops.geometry import Geometry
from hf_any3d.modeling.point_ops.spectral import GraphSettings, Spectrum, graph_spectrum
from hf_any3d.tuners.pointgst.config import PointGSTConfig
from hf_any3d.tuners.pointgst.module import SpectralAdapter
from hf_any3d.tuners.tuners_utils import WrappedModule


class PointGSTLayer(WrappedModule):
    """Layer with adapters beside its MLP, or after it where the layer does not give its inner tokens.

    Args:
        base_layer: The frozen layer.
        hidden_size: Channels of a token.
        is_open: Whether the layer takes, as its last argument, a function of the tokens between attention and MLP.
    """

    adapter_layer_names = (
        "pointgst_down",
        "pointgst_adapt1",
        "pointgst_norm_ly1",
        "pointgst_norm_ly2",
        "pointgst_up",
    )
    other_param_names = ("graphs", "forms")
    merge_error = "PointGST's adapter cannot be merged into the encoder; use unload() to remove it"
    # Models pass token positions only to layers with this attribute.
    takes_geometry = True

    def __init__(self, base_layer: nn.Module, hidden_size: int, is_open: bool):
        super().__init__(base_layer)
        self.hidden_size, self.is_open = hidden_size, is_open
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self.graphs: dict[str, GraphSettings] = {}
        self.forms: dict[str, tuple[bool, bool]] = {}

    def update_layer(self, adapter_name: str, config: PointGSTConfig) -> None:
        """Add an adapter."""
        down, adapt1 = nn.Linear(self.hidden_size, config.r), nn.Linear(config.r, config.r)
        up = nn.Linear(config.r, self.hidden_size)
        nn.init.xavier_uniform_(down.weight)
        for linear in (adapt1, up):
            # With zeros the layer starts as the frozen one.
            start = nn.init.zeros_ if config.init_weights else nn.init.xavier_uniform_
            start(linear.weight)
            nn.init.zeros_(linear.bias)
        parts = (down, adapt1, nn.LayerNorm(config.r), nn.LayerNorm(config.r), up)
        for name, part in zip(self.adapter_layer_names, parts, strict=True):
            getattr(self, name)[adapter_name] = part
        self.graphs[adapter_name] = config.graphs
        self.forms[adapter_name] = (config.transform == "fourier", config.signs == "averaged")
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, hidden_states: torch.Tensor, *args: Any, geometry: Geometry, **kwargs: Any) -> torch.Tensor:
        """Run the frozen layer and the active adapters."""
        names = self._running_adapters()
        if not names:
            return hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        for name in names:
            # Before the layer, which may run a second time in the backward pass.
            self._spectrum(name, geometry)
        adapt = partial(self._adapt, names, geometry)
        if self.is_open:
            # By position: re-entrant checkpoints take no keywords.
            return hidden_of(self.base_layer(hidden_states, *args, adapt, **kwargs))
        output = hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        return output + adapt(output)

    def _spectrum(self, name: str, geometry: Geometry) -> Spectrum:
        """Return the eigenvectors of an adapter's graphs, computed once for all layers."""
        graphs = self.graphs[name]
        return geometry.once(graphs, partial(graph_spectrum, settings=graphs))

    def _adapt(self, names: list[str], geometry: Geometry, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the sum of what the adapters add to tokens, in the shape of these."""
        # Adapters have the batch first, whatever the order of the encoder's axes is.
        tokens = hidden_states.transpose(0, 1) if geometry.batch_second else hidden_states
        added = torch.zeros_like(tokens)
        for name in names:
            spectrum = self._spectrum(name, geometry)
            is_fourier, both_signs = self.forms[name]
            adapter = SpectralAdapter(*self._parts_of(name), is_fourier=is_fourier, both_signs=both_signs)
            added = added + adapter.added(tokens, spectrum, geometry.special_tokens)
        return added.transpose(0, 1) if geometry.batch_second else added
