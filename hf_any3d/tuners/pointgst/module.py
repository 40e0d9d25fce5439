"""PointGST's adapter between the eigenvectors of graphs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_ops.spectral import Spectrum


class SpectralAdapter(NamedTuple):
    """Bottleneck whose tokens are changed as coefficients of the eigenvectors of graphs.

    Args:
        down: Projection to the width of the bottleneck.
        adapt1: Layer that changes coefficients.
        norm_ly1: Norm before it, for the graph of all tokens.
        norm_ly2: Norm before it, for local graphs.
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
        active = nn.functional.silu(narrow)
        patches = narrow[:, special_tokens:]
        whole, local = self._analysis(spectrum.whole), self._analysis(spectrum.local)
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
