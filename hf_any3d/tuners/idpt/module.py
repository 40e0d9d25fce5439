"""Modules that make a prompt of the tokens of a cloud."""

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.act import ActConfig
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_encoders.point_transformer import PointBlock

_SLOPE = 0.2
"""Slope of the activations below zero."""
PROMPT_MODULES: dict[str, int | None] = {
    "dgcnn": 3,
    "dgcnn_light2": 2,
    "dgcnn_light": 1,
    "mlp": 0,
    "transformer": None,
}
"""Number of layers on graphs of each kind of module; None for a transformer block."""


class PromptModule(nn.Module):
    """Makes one token of those of a cloud: layers on graphs, then a layer on the outputs of all, and the maximum.

    Shape: `(batch, tokens, hidden)` to `(batch, 1, hidden)`.

    Source: IDPT, as released, without its norms that nothing reads.
    """

    def __init__(self, kind: str, hidden_size: int, neighbors: int):
        super().__init__()
        self.graph_layers = PROMPT_MODULES[kind] or 0
        self.neighbors = neighbors
        for number in range(1, self.graph_layers + 1):
            self.add_module(f"conv{number}", _linear_and_norm(2 * hidden_size, hidden_size))
        # Names are those of the released files: the last layer is the fifth whatever comes before.
        self.conv5 = _linear_and_norm(max(self.graph_layers, 1) * hidden_size, hidden_size)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """Make a prompt; positions are not read, as graphs are of neighbors in the space of features."""
        del positions
        features = in_precision_of(self, tokens)
        outputs = []
        batch = torch.arange(len(features), device=features.device).view(-1, 1, 1)
        for number in range(1, self.graph_layers + 1):
            conv = self.get_submodule(f"conv{number}")
            linear: Any = conv.get_submodule("0")
            near = nearest(features, self.neighbors)  # (batch, tokens, neighbors)
            # The layer is on differences to neighbors and tokens. It is linear, so it runs once for each token instead
            # of once for each pair.
            difference, own = linear.weight.chunk(2, dim=1)
            of_neighbors = nn.functional.linear(features, difference)
            of_tokens = nn.functional.linear(features, own - difference)
            pairs = of_neighbors[batch, near] + of_tokens.unsqueeze(2)  # (batch, tokens, neighbors, hidden)
            features = _normed(conv, pairs).max(dim=2).values
            outputs.append(features)
        joined = torch.cat(outputs, dim=-1) if outputs else features  # (batch, tokens, layers * hidden)
        return _normed(self.conv5, self.conv5.get_submodule("0")(joined)).max(dim=1, keepdim=True).values


class TransformerPromptModule(nn.Module):
    """Makes one token of those of a cloud: a block of a point transformer, and the maximum; shapes as above."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        config = ActConfig(hidden_size=hidden_size, num_attention_heads=num_heads)
        config._attn_implementation = "sdpa"
        self.block = PointBlock(config, num_heads)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """Make a prompt of tokens and their positions of the same shape, which are None if tokens hold them."""
        tokens = in_precision_of(self, tokens)
        places = None if positions is None else positions.to(tokens.dtype)
        return self.block(tokens, places).max(dim=1, keepdim=True).values


@torch.no_grad()
def nearest(features: torch.Tensor, count: int) -> torch.Tensor:
    """Return the numbers `(batch, tokens, count)` of the tokens nearest to each in `(batch, tokens, channels)`."""
    square = features.square().sum(dim=-1)
    # Without the square of the token itself, which is the same for all its neighbors.
    distance = torch.baddbmm(square.unsqueeze(1), features, features.mT, alpha=-2)
    return distance.topk(count, dim=-1, largest=False, sorted=False).indices


def _linear_and_norm(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs))


def _normed(conv: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Return norm and activation of `(…, channels)`."""
    # Statistics are over all tokens, or pairs, of all clouds.
    norm = conv.get_submodule("1")
    return nn.functional.leaky_relu(norm(rows.flatten(0, -2)), _SLOPE).view(rows.shape)
