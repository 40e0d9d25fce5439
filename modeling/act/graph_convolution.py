"""Graph convolution over the tokens of a cloud, on the graph of nearest neighbours in space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hf_any3d.modeling.act.group_norms import NUM_GROUPS, SLOPE, normed_edge_maximum, normed_tokens
from hf_any3d.modeling.forward_contract import is_unmodified
from hf_any3d.modeling.point_ops import group, knn


class EdgeLayer(nn.Module):
    """Edge convolution: the maximum of `leaky_relu(norm(W [f_j - f_i; f_i]))` over the neighbours j of token i.

    Args:
        in_channels: Input channels of a token.
        out_channels: Output channels of a token.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.linear = nn.Linear(2 * in_channels, out_channels, bias=False)
        self.norm = nn.GroupNorm(NUM_GROUPS, out_channels)

    def forward(self, tokens: torch.Tensor, neighbors: torch.Tensor) -> torch.Tensor:
        """Map tokens to `(batch, tokens, out_channels)`.

        Args:
            tokens: `(batch, tokens, in_channels)`.
            neighbors: `(batch, tokens, k)`.
        """
        if not is_unmodified(self.linear, self.norm):
            ends = group(tokens, neighbors)  # (batch, tokens, k, in_channels)
            starts = tokens.unsqueeze(2).expand_as(ends)
            edges = self.linear(torch.cat([ends - starts, starts], dim=-1))  # (batch, tokens, k, out_channels)
            return _normed(edges, self.norm).amax(dim=2)
        # Linear in both tokens of an edge: W [f_j - f_i; f_i] = W_a f_j + (W_b - W_a) f_i, computed once per token.
        # Viewed as rows of `in_channels`, the weight yields W_a f and W_b f of every channel side by side, uncopied.
        terms = nn.functional.linear(tokens, self.linear.weight.view(-1, tokens.shape[-1]))
        return normed_edge_maximum(terms, neighbors, self.norm.weight, self.norm.bias, self.norm.eps)


class GraphConvolution(nn.Module):
    """Edge convolutions on one graph of nearest centres, and a layer on their concatenated outputs.

    Args:
        in_channels: Input channels of a token.
        out_channels: Output channels of a token.
        input_width: Output channels of the first linear layer.
        widths: Output channels of the edge convolutions.
        num_neighbors: Neighbours of a token, including itself.

    Source: DGCNN (arXiv 1801.07829) as Point-BERT (arXiv 2111.14819) uses it, with a fixed graph.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_width: int = 128,
        widths: Sequence[int] = (256, 512, 512, 1024),
        num_neighbors: int = 4,
    ):
        super().__init__()
        self.num_neighbors = num_neighbors
        self.input = nn.Linear(in_channels, input_width)
        all_widths = [input_width, *widths]
        self.layers = nn.ModuleList(EdgeLayer(a, b) for a, b in zip(all_widths, widths, strict=False))
        self.output = nn.Linear(sum(widths), out_channels, bias=False)
        self.norm = nn.GroupNorm(NUM_GROUPS, out_channels)

    def neighbors_of(self, centers: torch.Tensor) -> torch.Tensor:
        """Return the graph `(batch, tokens, num_neighbors)` of centres `(batch, tokens, 3)`."""
        return knn(centers, centers, self.num_neighbors)

    def forward(self, tokens: torch.Tensor, neighbors: torch.Tensor) -> torch.Tensor:
        """Map tokens to `(batch, tokens, out_channels)`.

        Args:
            tokens: `(batch, tokens, in_channels)`.
            neighbors: `(batch, tokens, k)`, from `neighbors_of`.
        """
        tokens = self.input(tokens)
        outputs = []
        for layer in self.layers:
            tokens = layer(tokens, neighbors)
            outputs.append(tokens)
        rows = self.output(torch.cat(outputs, dim=-1))
        if not is_unmodified(self.norm):
            return _normed(rows, self.norm)
        return normed_tokens(rows, self.norm.weight, self.norm.bias, self.norm.eps)


def _normed(rows: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """Group norm and leaky ReLU of `(batch, …, channels)`; statistics are taken over all rows of a cloud."""
    return nn.functional.leaky_relu(norm(rows.movedim(-1, 1)), SLOPE).movedim(1, -1)
