"""The mixture of query experts: several query sets, and a router that selects among them for each cloud."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_any3d.modeling.forward_contract import onloaded
from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import MiniGPT3DConfig


@dataclass
class Routing:
    """The query sets that are selected for each cloud.

    Args:
        logits: `(clouds, experts)`, output of the router; None for a constant router.
        index: `(clouds, chosen)`, indices of the selected sets, ascending.
        weights: `(clouds, chosen)`, their weights.
    """

    logits: torch.Tensor | None
    index: torch.Tensor
    weights: torch.Tensor

    def mix(self, outputs: torch.Tensor) -> torch.Tensor:
        """Sum `(clouds, chosen, …)` by weight, to `(clouds, …)`."""
        weights = self.weights.to(outputs.dtype).view(*self.weights.shape, *[1] * (outputs.ndim - 2))
        return (weights * outputs).sum(dim=1)

    def load_balancing_loss(self) -> torch.Tensor:
        """Measure how unevenly clouds use the sets: from 1, for even use, to the number of sets.

        Undefined for a constant router.

        Source: Switch Transformers (arXiv 2101.03961), Eq. 4, with the fractions of all selected sets.
        """
        experts = self.logits.shape[-1]
        share = nn.functional.one_hot(self.index, experts).float().mean(dim=(0, 1))  # (experts,)
        return experts * (share * self.logits.float().softmax(dim=-1).mean(dim=0)).sum()


class QueryExperts(nn.Module):
    """Query sets for the Q-Former, and their router.

    Without query experts, only the first set is used.

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
        """Select sets by the class token and the maximum of the patches in `(clouds, 1 + groups, point width)`."""
        count, clouds = len(self.queries), len(point_tokens)
        every = torch.arange(count, device=point_tokens.device).expand(clouds, -1)
        if self.config.router == "constant":
            return Routing(None, every, point_tokens.new_full((clouds, count), 1 / count))
        cloud_features = torch.cat(
            [point_tokens[:, 0], point_tokens[:, 1:].amax(dim=1)], dim=-1
        )  # (clouds, 2 * point width)
        logits = self.router(cloud_features)
        weights = logits.float().softmax(dim=-1)
        if self.config.router == "soft":
            return Routing(logits, every, weights)
        index = weights.topk(self.config.router_top_k).indices.sort(dim=-1).values
        weights = weights.gather(1, index)
        if self.config.normalize_router_weights:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(logits, index, weights)

    def first(self, clouds: int) -> torch.Tensor:
        """Return the queries of the first set for each cloud, `(clouds, 1, num_query_tokens, hidden)`."""
        with onloaded(self.queries):
            return self.queries[0].expand(clouds, 1, -1, -1)

    def chosen(self, routing: Routing) -> torch.Tensor:
        """Return the queries of the selected sets, `(clouds, chosen, num_query_tokens, hidden)`."""
        # Sets that were not selected get a zero gradient, not None, so that optimizers treat all sets alike.
        with onloaded(self.queries):
            return torch.stack(list(self.queries))[routing.index]
