"""Bridge from the point encoder to the language model: point MLP, query experts, Q-Former, projector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Blip2QFormerModel

from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import MiniGPT3DConfig
from hf_any3d.modeling.minigpt3d.query_experts import QueryExperts, Routing


@dataclass
class Bridged:
    """Tokens for the language model.

    Args:
        tokens: `(clouds, num_query_tokens, text hidden)`.
        routing: The query sets used and their weights; None if only the first was used.
    """

    tokens: torch.Tensor
    routing: Routing | None = None


class PointMlp(nn.Module):
    """Linear layers with GELU between them, from the width of point tokens to the Q-Former's encoder width."""

    def __init__(self, in_width: int, hidden_widths: tuple[int, ...], out_width: int):
        super().__init__()
        widths = (in_width, *hidden_widths, out_width)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map `(…, in_width)` to `(…, out_width)`."""
        first, *others = self.layers
        tokens = first(tokens)
        for layer in others:
            tokens = layer(nn.functional.gelu(tokens))
        return tokens


class Projector(nn.Module):
    """Two linear layers without an activation, from the Q-Former's width to the language model's."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int):
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map `(…, in_width)` to `(…, out_width)`."""
        return self.fc2(self.fc1(tokens))


class Bridge(nn.Module):
    """All modules between the point encoder and the language model.

    Source: MiniGPT-3D, Sec. 3.1 and 3.2.
    """

    def __init__(self, config: MiniGPT3DConfig, qformer: Blip2QFormerModel | None = None):
        super().__init__()
        point_width, qformer_config = config.point_config.hidden_size, config.qformer_config
        self.config = config
        self.point_mlp = PointMlp(point_width, tuple(config.point_mlp_widths), qformer_config.encoder_hidden_size)
        self.experts = QueryExperts(config)
        self.qformer = Blip2QFormerModel._from_config(qformer_config) if qformer is None else qformer
        self.projector = Projector(qformer_config.hidden_size, config.projector_width, config.text_config.hidden_size)

    def forward(self, point_tokens: torch.Tensor) -> Bridged:
        """Turn `(clouds, 1 + groups, point width)`, the class token first, into tokens of the language model."""
        routing = self.experts.route(point_tokens) if self.config.use_query_experts else None
        encoded = self.point_mlp(point_tokens)  # (clouds, 1 + groups, encoder_hidden_size)
        if routing is None:
            queried = self.query(self.experts.first(len(encoded)), encoded)[:, 0]
        else:
            queried = routing.mix(self.query(self.experts.chosen(routing), encoded))
        return Bridged(self.projector(queried), routing)

    def query(self, queries: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        """Run the Q-Former on one or more query sets per cloud.

        All sets of a cloud run as one sequence, in which queries attend only to those of their own set. The keys and
        values of the cloud, most of the work, are thus computed once and not for each set.

        Args:
            queries: `(clouds, sets, num_query_tokens, hidden)`.
            encoded: `(clouds, tokens, encoder_hidden_size)`, the tokens that the queries attend to.

        Returns:
            `(clouds, sets, num_query_tokens, hidden)`.
        """
        _, sets, count, _ = queries.shape
        mask = None
        if sets > 1:
            own_set = torch.arange(sets, device=queries.device).repeat_interleave(count)
            mask = torch.zeros(1, 1, sets * count, sets * count, device=queries.device, dtype=queries.dtype)
            mask.masked_fill_(own_set[:, None] != own_set, torch.finfo(mask.dtype).min)
            mask = mask.expand(len(queries), -1, -1, -1)
        output = self.qformer(
            queries.flatten(1, 2), encoder_hidden_states=encoded, attention_mask=mask, return_dict=True
        )
        return output.last_hidden_state.unflatten(1, (sets, count))
