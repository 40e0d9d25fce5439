"""Frozen layer with PointGST's adapters."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_ops.geometry import Geometry
from hf_any3d.modeling.point_ops.spectral import Spectrum, graph_spectrum
from hf_any3d.tuners.pointgst.config import PointGSTConfig
from hf_any3d.tuners.tuners_utils import WrappedModule


class SpectralAdapter(NamedTuple):
    """Bottleneck whose tokens are changed as coefficients of the eigenvectors of graphs.

    Args:
        down: Projection to the width of the bottleneck.
        adapt1: Layer that changes coefficients.
        norm_ly1: Norm before it, for the graph of all tokens.
        norm_ly2: The same for local graphs.
        up: Projection back.
        is_fourier: Whether tokens become coefficients by the transposed eigenvectors, as in a graph Fourier transform,
            and coefficients tokens by the eigenvectors; the released program does the opposite.
        both_signs: Whether the change of a coefficient is half the difference of those of both its signs, which does
            not depend on the signs of the eigenvectors.

    Source: PointGST, as released.
    """

    down: nn.Module
    adapt1: nn.Module
    norm_ly1: nn.Module
    norm_ly2: nn.Module
    up: nn.Module
    is_fourier: bool = True
    both_signs: bool = True

    def added(self, hidden_states: torch.Tensor, spectrum: Spectrum, special_tokens: int) -> torch.Tensor:
        """Return what is added to `(batch, sequence, hidden)`, of which the first tokens have no position."""
        narrow = self.down(in_precision_of(self.norm_ly1, hidden_states))  # (batch, sequence, r)
        # As released: the residual is activated, and the spectral branches read what is before the activation.
        active = nn.functional.silu(narrow)
        patches = narrow[:, special_tokens:]
        whole = self._analysis(spectrum.whole)
        local = self._analysis(spectrum.local)
        # Not the tokens, but the columns of the matrix are sorted, so that the result has the order of the tokens.
        local = local.gather(2, spectrum.inverse.unsqueeze(1).expand_as(local))
        changed = self._between(patches, whole, self.norm_ly1) + self._between(patches, local, self.norm_ly2)
        mixed = torch.cat([active[:, :special_tokens], active[:, special_tokens:] + changed.to(active.dtype)], dim=1)
        return self.up(mixed).to(hidden_states.dtype)

    def _analysis(self, eigenvectors: torch.Tensor) -> torch.Tensor:
        return eigenvectors.mT if self.is_fourier else eigenvectors

    def _between(self, patches: torch.Tensor, analysis: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """Change the coefficients of `(batch, patches, r)`; in float32, as half precision would mix frequencies."""
        with autocast_disabled(patches.device):
            coefficients = analysis @ patches.to(analysis.dtype)
            change = self._change(coefficients, norm)
            if self.both_signs:
                change = (change - self._change(-coefficients, norm)) / 2
            return analysis.mT @ (coefficients + change)

    def _change(self, coefficients: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        normed = norm(in_precision_of(norm, coefficients))
        return nn.functional.silu(self.adapt1(normed)).to(coefficients.dtype)


class PointGSTLayer(WrappedModule):
    """Layer with adapters beside its MLP, or after it where the layer does not give its inner tokens.

    Args:
        base_layer: The frozen layer.
        hidden_size: Channels of a token.
        is_open: Whether the layer takes, as its last argument, a function of the tokens between attention and MLP.
    """

    adapter_layer_names = tuple(f"pointgst_{part}" for part in SpectralAdapter._fields[:5])
    takes_geometry = True

    def __init__(self, base_layer: nn.Module, hidden_size: int, is_open: bool):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.is_open = is_open
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())

    def build(self, adapter_name: str, config: PointGSTConfig) -> None:
        """Create a bottleneck."""
        # One layer changes the coefficients of both graphs; only their norms are apart.
        down = nn.Linear(self.hidden_size, config.r)
        adapt1 = nn.Linear(config.r, config.r)
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

    def forward(self, hidden_states: torch.Tensor, *args: Any, geometry: Geometry, **kwargs: Any) -> torch.Tensor:
        """Run the frozen layer and the active adapters."""
        names = self._running_adapters()
        if not names:
            return hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        for name in names:
            # Before the layer, which may run a second time in the backward pass.
            self._spectrum(name, geometry)

        def adapt(hidden_states: torch.Tensor) -> torch.Tensor:
            # Adapters have the batch first, whatever the order of the encoder's axes is.
            tokens = hidden_states.transpose(0, 1) if geometry.batch_second else hidden_states
            added = torch.zeros_like(tokens)
            for name in names:
                config = self.configs[name]
                forms = {"is_fourier": config.transform == "fourier", "both_signs": config.signs == "averaged"}
                adapter = SpectralAdapter(*self._parts_of(name), **forms)
                added = added + adapter.added(tokens, self._spectrum(name, geometry), geometry.special_tokens)
            return added.transpose(0, 1) if geometry.batch_second else added

        if self.is_open:
            # By position: re-entrant checkpoints take no keywords.
            return hidden_of(self.base_layer(hidden_states, *args, adapt, **kwargs))
        output = hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        return output + adapt(output)

    def _spectrum(self, name: str, geometry: Geometry) -> Spectrum:
        """Return the eigenvectors of an adapter's graphs, computed once for all layers."""
        graphs = self.configs[name].graphs
        return geometry.once(graphs, partial(graph_spectrum, settings=graphs))
