"""The module that PointGST adds to a layer."""

from __future__ import annotations

import torch
from torch import nn

from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_ops.spectral import Spectrum


class SpectralAdapter(nn.Module):
    """Bottleneck whose tokens are changed as coefficients of the eigenvectors of graphs.

    Args:
        hidden_size: Channels of a token.
        r: Width between the projections.
        transposed_first: Whether tokens become coefficients by the transposed eigenvectors, as in a graph Fourier
            transform, and coefficients tokens by the eigenvectors; the released program does the opposite.
        both_signs: Whether the change of a coefficient is half the difference of those of both its signs, which does
            not depend on the signs of the eigenvectors.

    Source: PointGST, as released.
    """

    def __init__(self, hidden_size: int, r: int, transposed_first: bool = True, both_signs: bool = True):
        super().__init__()
        self.transposed_first, self.both_signs = transposed_first, both_signs
        self.down = nn.Linear(hidden_size, r)
        self.adapt1 = nn.Linear(r, r)
        self.norm_ly1 = nn.LayerNorm(r)
        self.norm_ly2 = nn.LayerNorm(r)
        self.up = nn.Linear(r, hidden_size)

    def reset_parameters(self, init_weights: bool) -> None:
        """Initialize the projections; with `init_weights` the output is zero at first."""
        nn.init.xavier_uniform_(self.down.weight)
        for linear in (self.adapt1, self.up):
            nn.init.zeros_(linear.bias)
            if init_weights:
                nn.init.zeros_(linear.weight)
            else:
                nn.init.xavier_uniform_(linear.weight)

    def forward(self, hidden_states: torch.Tensor, spectrum: Spectrum, special_tokens: int) -> torch.Tensor:
        """Return what is added to `(batch, sequence, hidden)`, of which the first tokens have no position."""
        narrow = self.down(in_precision_of(self, hidden_states))  # (batch, sequence, r)
        active = nn.functional.silu(narrow)
        patches = narrow[:, special_tokens:]
        changed = self._whole(patches, spectrum) + self._local(patches, spectrum)
        mixed = torch.cat([active[:, :special_tokens], active[:, special_tokens:] + changed.to(active.dtype)], dim=1)
        return self.up(mixed).to(hidden_states.dtype)

    def _whole(self, patches: torch.Tensor, spectrum: Spectrum) -> torch.Tensor:
        return self._between(patches, self._analysis(spectrum.whole), self.norm_ly1)

    def _local(self, patches: torch.Tensor, spectrum: Spectrum) -> torch.Tensor:
        # Instead of the tokens, the columns of the matrix are sorted, so that the result is in the order of the tokens.
        analysis = self._analysis(spectrum.local)
        columns = spectrum.inverse.unsqueeze(1).expand_as(analysis)
        return self._between(patches, analysis.gather(2, columns), self.norm_ly2)

    def _analysis(self, eigenvectors: torch.Tensor) -> torch.Tensor:
        return eigenvectors.mT if self.transposed_first else eigenvectors

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
