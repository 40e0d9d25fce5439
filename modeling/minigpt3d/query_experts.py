"""The mixture of query experts: several sets of queries, and a router that picks by the cloud."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_any3d.modeling.forward_contract import onloaded
from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import MiniGPT3DConfig


@dataclass
class Routing:
    """Which query sets clouds are asked with.

    Args:
        logits: `(clouds, experts)`, what the router says; None where it isn't asked.
        index: `(clouds, chosen)`, numbers of the chosen sets, rising.
        weights: `(clouds, chosen)`, how much each counts.
    """

    logits: torch.Tensor | None
    index: torch.Tensor
    weights: torch.Tensor

    def mix(self, asked: torch.Tensor) -> torch.Tensor:
        """Sum `(clouds, chosen, …)` by weight, to `(clouds, …)`."""
        weights = self.weights.to(asked.dtype).view(*self.weights.shape, *[1] * (asked.ndim - 2))
        return (weights * asked).sum(dim=1)

    def load_balancing_loss(self) -> torch.Tensor:
        """How unevenly clouds fall on sets: from 1, where each set gets its share, to the number of sets.

        A constant router has none.

        Source: Switch Transformers (arXiv 2101.03961), Eq. 4, with the shares of all chosen sets.
        """
        experts = self.logits.shape[-1]
        share = nn.functional.one_hot(self.index, experts).float().mean(dim=(0, 1))  # (experts,)
        return experts * (share * self.logits.float().softmax(dim=-1).mean(dim=0)).sum()


class QueryExperts(nn.Module):
    """Sets of queries for the Q-Former, and the router between them.

    The first set is the one that is asked alone where experts are not in use.

    Source: MiniGPT-3D, Sec. 3.2.
    """

    def __init__(self, config: MiniGPT3DConfig):
        super().__init__()
        self.config = config
        shape = (config.num_query_tokens, config.qformer_config.hidden_size)
        self.queries = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for _ in range(config.num_query_experts))
        self.router = nn.Sequential(
            nn.Linear(2 * config.point_config.hidden_size, config.router_width),
            nn.GELU(),
            nn.Linear(config.router_width, config.num_query_experts),
        )

    def route(self, point_tokens: torch.Tensor) -> Routing:
        """Pick sets by the class token and the strongest patches of `(clouds, 1 + groups, point width)`."""
        count, clouds = len(self.queries), len(point_tokens)
        every = torch.arange(count, device=point_tokens.device).expand(clouds, -1)
        if self.config.router == "constant":
            return Routing(None, every, point_tokens.new_full((clouds, count), 1 / count))
        whole = torch.cat([point_tokens[:, 0], point_tokens[:, 1:].amax(dim=1)], dim=-1)  # (clouds, 2 * point width)
        logits = self.router(whole)
        weights = logits.float().softmax(dim=-1)
        if self.config.router == "soft":
            return Routing(logits, every, weights)
        index = weights.topk(self.config.router_top_k).indices.sort(dim=-1).values
        weights = weights.gather(1, index)
        if self.config.normalize_router_weights:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(logits, index, weights)

    def first(self, clouds: int) -> torch.Tensor:
        """The queries of the first set for each cloud, `(clouds, 1, num_query_tokens, hidden)`."""
        with onloaded(self.queries):
            return self.queries[0].expand(clouds, 1, -1, -1)

    def chosen(self, routing: Routing) -> torch.Tensor:
        """The queries of the chosen sets, `(clouds, chosen, num_query_tokens, hidden)`."""
        # Sets that nobody chose get a gradient of zero, not none, so that optimizers treat all alike.
        with onloaded(self.queries):
            return torch.stack(list(self.queries))[routing.index]
