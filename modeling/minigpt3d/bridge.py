"""From point tokens to tokens that a language model reads: point MLP, query experts, Q-Former, projector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Blip2QFormerModel

from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import MiniGPT3DConfig
from hf_any3d.modeling.minigpt3d.query_experts import QueryExperts, Routing


@dataclass
class Bridged:
    """What a language model gets for point clouds.

    Args:
        tokens: `(clouds, num_query_tokens, text hidden)`.
        routing: Which query sets were asked, and how much each counts; None where only the first was.
    """

    tokens: torch.Tensor
    routing: Routing | None = None


class PointMlp(nn.Module):
    """Linear layers with GELU between, from the width of point tokens to the one that the Q-Former attends to."""

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
    """Two linear layers with nothing between, from the Q-Former's width to the language model's."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int):
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map `(…, in_width)` to `(…, out_width)`."""
        return self.fc2(self.fc1(tokens))


class Bridge(nn.Module):
    """All that lies between the point encoder and the language model.

    Source: MiniGPT-3D, Sec. 3.1 and 3.2.
    """

    def __init__(self, config: MiniGPT3DConfig, qformer: Blip2QFormerModel | None = None):
        super().__init__()
        point_width, asking = config.point_config.hidden_size, config.qformer_config
        self.config = config
        self.point_mlp = PointMlp(point_width, tuple(config.point_mlp_widths), asking.encoder_hidden_size)
        self.experts = QueryExperts(config)
        self.qformer = Blip2QFormerModel._from_config(asking) if qformer is None else qformer
        self.projector = Projector(asking.hidden_size, config.projector_width, config.text_config.hidden_size)

    def forward(self, point_tokens: torch.Tensor) -> Bridged:
        """Turn `(clouds, 1 + groups, point width)`, the class token first, into tokens of the language model."""
        routing = self.experts.route(point_tokens) if self.config.use_query_experts else None
        seen = self.point_mlp(point_tokens)  # (clouds, 1 + groups, encoder_hidden_size)
        if routing is None:
            asked = self.ask(self.experts.first(len(seen)), seen)[:, 0]
        else:
            asked = routing.mix(self.ask(self.experts.chosen(routing), seen))
        return Bridged(self.projector(asked), routing)

    def ask(self, queries: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Run the Q-Former, which several query sets of a cloud share.

        The sets of a cloud run as one sequence: a set's queries attend to none of another set, and keys and values of
        the cloud, most of the work, are made once and not once for each set.

        Args:
            queries: `(clouds, sets, num_query_tokens, hidden)`.
            seen: `(clouds, tokens, encoder_hidden_size)`, what the queries attend to.

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
        asked = self.qformer(queries.flatten(1, 2), encoder_hidden_states=seen, attention_mask=mask, return_dict=True)
        return asked.last_hidden_state.unflatten(1, (sets, count))
